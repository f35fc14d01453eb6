"""Usage and processes of cgroups that an engine has made: found through one of its processes.

A container's group is where its first process is, whichever cgroup driver the engine uses: the path in
/proc/PID/cgroup (cgroups(7)), cut after the component that holds the container's id, since the container may
have made groups inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vac.host import cgroup_v1, cgroup_v2
from vac.host.cgroup_base import GroupUsage, processes_in
from vac.host.cgroups import Mounts

PROC = Path("/proc")
V1 = ("cpuacct", "memory")


@dataclass(frozen=True)
class ForeignGroup:
    """Where the usage of one group is to be read: v2 or, where the controllers are there, v1's two."""

    v2: Path | None
    v1: tuple[Path, Path] | None
    """The directories of cpuacct and memory."""


def find_group(pid: int, mark: str, mounts: Mounts, proc: Path = PROC) -> ForeignGroup | None:
    """The group of this process; None unless its path has a component that holds the mark.

    Raises OSError if there is no such process.
    """
    paths: dict[str, str] = {}
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        head, found, tail = path.partition(mark)
        if found:
            paths.update(dict.fromkeys(controllers.split(","), head + found + tail.partition("/")[0]))
    if not paths:
        return None
    v1 = [mounts.v1[each] / paths[each].lstrip("/") for each in V1 if each in mounts.v1 and each in paths]
    v2 = mounts.v2 / paths[""].lstrip("/") if mounts.v2 is not None and "" in paths else None
    return ForeignGroup(v2, (v1[0], v1[1]) if len(v1) == len(V1) else None)


def foreign_usage(group: ForeignGroup) -> GroupUsage | None:
    """What the group has used until now; None if it is gone."""
    try:
        if group.v1 is not None:
            usage = cgroup_v1.read_usage(*group.v1)
        elif group.v2 is not None:
            usage = cgroup_v2.read_usage(group.v2)
        else:
            return None
    except OSError:
        return None
    return None if usage.cpu_seconds is None and usage.memory_bytes is None else usage


def foreign_processes(group: ForeignGroup) -> list[int]:
    """Numbers of the group's processes; none if it is gone. Raises CgroupError."""
    directory = group.v1[1] if group.v1 is not None else group.v2
    return processes_in(directory) if directory is not None else []
