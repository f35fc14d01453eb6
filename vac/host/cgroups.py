"""Which cgroups this host has, v1 or v2, and a factory's groups in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vac.host.cgroup_base import CgroupError, Groups, GroupUsage, Limits, Watch
from vac.host.cgroup_v1 import GroupsV1
from vac.host.cgroup_v2 import GroupsV2

__all__ = ["CgroupError", "GroupUsage", "Groups", "Limits", "Mounts", "Watch", "find_mounts", "open_groups"]

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mounts:
    """Where cgroup hierarchies are mounted."""

    v1: dict[str, Path]
    """By controller; systemd's own is `name=systemd`."""
    v2: Path | None


def find_mounts(mountinfo: Path = MOUNTINFO) -> Mounts:
    """Read where cgroups are mounted; the format is proc_pid_mountinfo(5)'s."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        point = Path(_unescape(fields.split(" ")[4]))
        if kind == "cgroup2":
            v2 = v2 or point
        elif kind == "cgroup":
            for option in options.split(","):
                v1.setdefault(option, point)
    return Mounts(v1, v2)


def open_groups(factory: str, mountinfo: Path = MOUNTINFO) -> Groups:
    """The factory's groups, in v2 if that controls memory on this host or v1 isn't there, else in v1.

    Raises CgroupError if this host has no cgroups that would do.
    """
    mounts = find_mounts(mountinfo)
    if mounts.v2 is not None:
        offered = (mounts.v2 / "cgroup.controllers").read_text().split()
        if "memory" in offered or "memory" not in mounts.v1:
            return GroupsV2(mounts.v2, factory)
    if not mounts.v1:
        raise CgroupError("no cgroups are mounted, neither v1 nor v2; usual is cgroup2 on /sys/fs/cgroup")
    others = [each for each in (mounts.v1.get("name=systemd"), mounts.v2) if each is not None]
    return GroupsV1(mounts.v1, others, factory)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
