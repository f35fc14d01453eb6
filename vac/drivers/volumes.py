"""Logical volumes of machines: /dev/GROUP/HOST, made and removed with LVM's own programs, and wiped in between.

Whose a volume is, is told by a tag with the machine's uuid. Formats: lvs(8), vgs(8), lvmreport(7) as JSON;
blkdiscard(8).
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from vac.config.settings import Settings, slot_number
from vac.drivers.base import CreationFailed

GB = 1000**3
DEFAULT_GROUP = "vac_volume_group"
TAG = "vac.uuid="
MOUNTS = Path("/proc/self/mountinfo")
LVM_SECONDS = 60.0
GROUP_LOOK_SECONDS = 300.0
"""How long it is remembered whether there is the usual group."""
WIPE_PATIENCE_SECONDS = 5.0
"""How long a machine's removal waits for its volume to be wiped, before it is to be asked for again."""
Run = Callable[[Sequence[str]], str]
"""Runs a command, and gives what it prints; raises CreationFailed with what it says."""
Wipe = Callable[[Path], None]
"""Returns when a volume reads as zeros; raises CreationFailed if that takes longer, or fails."""
PACKAGES = {"blkdiscard": "util-linux", "mkfs.ext4": "e2fsprogs", "mount": "mount", "umount": "mount"}
"""Where programs come from that aren't LVM's."""
_ESCAPED = re.compile(r"\\([0-7]{3})")
_log = logging.getLogger(__name__)


class NoLvm(CreationFailed):
    """LVM's programs, or blkdiscard, are not installed."""


@dataclass(frozen=True)
class Volume:
    """One logical volume."""

    name: str
    size_bytes: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A volume group as LVM reports it."""

    size_bytes: int
    extent_bytes: int
    volumes: tuple[Volume, ...]


class Wiper:
    """Overwrites volumes, each in a thread of its own as long as it takes: disks may be slow. wipe() is a Wipe."""

    def __init__(self, run: Run, patience_seconds: float = WIPE_PATIENCE_SECONDS) -> None:
        self._run = run
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._works: dict[Path, Future[str]] = {}

    def wipe(self, path: Path) -> None:
        """Begin it, or go on waiting for it. What has failed is begun anew the next time."""
        with self._lock:
            work = self._works.get(path)
            if work is None:
                work = self._works[path] = Future()
                threading.Thread(target=self._work, args=(path, work), name="wiping", daemon=True).start()
        try:
            work.result(self._patience_seconds)
        except TimeoutError:
            raise CreationFailed(
                f"{path} is being wiped, since another machine will get these blocks"
            ) from None
        finally:
            if work.done():
                with self._lock:
                    self._works.pop(path, None)

    def _work(self, path: Path, work: Future[str]) -> None:
        try:
            work.set_result(self._run(wiping_command(path)))
        except CreationFailed as failure:
            work.set_exception(failure)


class GroupFinder:
    """Tells which volume group to use, and remembers for GROUP_LOOK_SECONDS whether there is the usual one."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self._usual: str | None = None
        self._good_until = float("-inf")

    def in_use(self, settings: Settings) -> str | None:
        """As group_in_use."""
        if settings.volume_group is not None:
            return settings.volume_group
        if self._clock() >= self._good_until:
            self._usual = group_in_use(settings, self._run)
            self._good_until = self._clock() + GROUP_LOOK_SECONDS
        return self._usual


def group_in_use(settings: Settings, run: Run) -> str | None:
    """The volume group for machines' disks: the one that is configured, else the usual one if there is one.

    LVM is asked, for /dev has no directory of a group without active volumes. If it can't tell, there is none:
    nobody has asked for it.
    """
    if settings.volume_group is not None:
        return settings.volume_group
    try:
        run(group_command(DEFAULT_GROUP))
    except CreationFailed:
        return None
    return DEFAULT_GROUP


def device(group: str, name: str) -> Path:
    """Where the machine's volume is."""
    return Path("/dev", group, name)


def make_volume(
    group: str,
    name: str,
    uuid: str,
    gb_per_processor: int | None,
    processors: int,
    settings: Settings,
    run: Run,
    wipe: Wipe,
) -> Path:
    """A new volume of this machine; one of its name that is left from another is wiped and removed before.

    gb_per_processor None: the machine's share of the group. Raises CreationFailed.
    """
    found = read_group(run(group_command(group)), run(volumes_command(group)))
    if any(volume.name == name for volume in found.volumes):
        _remove(group, name, run, wipe)
    size_bytes = volume_bytes(found, gb_per_processor, processors, settings)
    if size_bytes <= 0:
        raise CreationFailed(f"volume group {group} has no room for a volume of {name}")
    run(creation_command(group, name, uuid, size_bytes))
    return device(group, name)


def remove_volume(in_use: str | None, name: str, uuid: str, run: Run, wipe: Wipe) -> None:
    """Wipe and remove the machine's volume, in whatever group it is: another may be in use since it was made.

    in_use: the group used now. No error if there is no volume or no LVM, nor if LVM can't list volumes where no group
    is in use. Raises CreationFailed.
    """
    try:
        found = read_owners(run(owners_command()))
    except NoLvm:
        return
    except CreationFailed as failure:
        if in_use is not None:
            raise
        _log.warning("whether %s has left a logical volume can't be told: %s", name, failure)
        return
    for group, volume, tags in found:
        if volume == name and TAG + uuid in tags:
            _remove(group, name, run, wipe)


def _remove(group: str, name: str, run: Run, wipe: Wipe) -> None:
    """Wipe and remove a volume, unmounted before wherever it is mounted."""
    for place in mount_points(device(group, name), MOUNTS):
        run(["umount", place])
    wipe(device(group, name))
    run(removal_command(group, name))


def mount_points(volume: Path, mounts: Path) -> list[str]:
    """Where this device is mounted; the format is proc(5)'s of /proc/PID/mountinfo."""
    try:
        number = volume.stat().st_rdev
    except OSError:
        return []
    fields = (line.split(" ") for line in mounts.read_text(errors="surrogateescape").splitlines())
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return [
        _ESCAPED.sub(lambda found: chr(int(found[1], 8)), each[4]) for each in fields if each[2] == wanted
    ]


def volume_bytes(group: Group, gb_per_processor: int | None, processors: int, settings: Settings) -> int:
    """How large a machine's volume is, in whole extents: as configured, else its share of what isn't others'."""
    if gb_per_processor:
        wanted = gb_per_processor * GB * processors
    else:
        others = (v for v in group.volumes if slot_number(settings.factory_name, v.name) is None)
        free = group.size_bytes - sum(volume.size_bytes for volume in others)
        wanted = free * processors // settings.total_processors
    return wanted // group.extent_bytes * group.extent_bytes


def group_command(group: str) -> list[str]:
    """Asks for a group's size."""
    return ["vgs", *_REPORT, "-o", "vg_size,vg_extent_size", group]


def volumes_command(group: str) -> list[str]:
    """Asks for a group's volumes."""
    return ["lvs", *_REPORT, "-o", "lv_name,lv_size,lv_tags", group]


def owners_command() -> list[str]:
    """Asks for the volumes of all groups, and whose they are."""
    return ["lvs", *_REPORT, "-o", "vg_name,lv_name,lv_tags"]


def creation_command(group: str, name: str, uuid: str, size_bytes: int) -> list[str]:
    """Makes a volume. Signatures that others have left in these blocks are removed without asking."""
    options = ["--yes", "--wipesignatures", "y", "--addtag", TAG + uuid]
    return ["lvcreate", *options, "--size", f"{size_bytes}b", "--name", name, group]


def removal_command(group: str, name: str) -> list[str]:
    """Removes a volume."""
    return ["lvremove", "--yes", f"{group}/{name}"]


def wiping_command(path: Path) -> list[str]:
    """Has all of a volume read as zeros; a device that can do that itself does it in no time."""
    return ["blkdiscard", "--force", "--zeroout", str(path)]


def read_group(group_report: str, volumes_report: str) -> Group:
    """The answers to group_command and volumes_command. Raises CreationFailed if they aren't."""
    try:
        (group,) = _rows(group_report, "vg")
        volumes = tuple(
            Volume(str(row["lv_name"]), int(row["lv_size"]), _tags(row))
            for row in _rows(volumes_report, "lv")
        )
        return Group(int(group["vg_size"]), int(group["vg_extent_size"]), volumes)
    except _UNREADABLE as error:
        raise _not_understood(error) from error


def read_owners(report: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """The answer to owners_command: group, name and tags. Raises CreationFailed if it isn't."""
    try:
        return [(str(row["vg_name"]), str(row["lv_name"]), _tags(row)) for row in _rows(report, "lv")]
    except _UNREADABLE as error:
        raise _not_understood(error) from error


def run_lvm(command: Sequence[str]) -> str:
    """A Run with LVM itself, and with blkdiscard, which may take hours."""
    seconds = None if command[0] == "blkdiscard" else LVM_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        package = PACKAGES.get(command[0], "lvm2")
        raise NoLvm(f"{command[0]} isn't there: install {package}") from error
    except subprocess.TimeoutExpired as error:
        raise CreationFailed(f"{command[0]} hasn't answered for {LVM_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise CreationFailed(f"{command[0]}: {said or f'exit status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


_REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix")
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError)


def _rows(report: str, kind: str) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = json.loads(report)["report"][0][kind]
    return rows


def _tags(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(filter(None, str(row["lv_tags"]).split(",")))


def _not_understood(error: Exception) -> CreationFailed:
    return CreationFailed(f"LVM's report can't be understood: {error!r}")
