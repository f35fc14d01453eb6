"""Logical volumes of machines: /dev/GROUP/HOST, made, mounted, wiped and removed with LVM's own programs.

A tag with the machine's uuid tells whose a volume is. Formats: lvs(8), vgs(8), lvmreport(7) as JSON; blkdiscard(8).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from vac.background import BackgroundWork, Outcome
from vac.config.settings import Settings, slot_number
from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.host import child_processes, filesystems

GB = 1000**3
DEFAULT_GROUP = "vac_volume_group"
TAG = "vac.uuid="
LVM_SECONDS = 60.0
GROUP_LOOK_SECONDS = 300.0
"""Age up to which the answer if the default group exists is used."""
WIPE_PATIENCE_SECONDS = 5.0
"""Longest that a machine's removal waits for its volume to be wiped, before it has to be asked for again."""
PACKAGES = {"blkdiscard": "util-linux", "mkfs.ext4": "e2fsprogs", "mount": "mount", "umount": "mount"}
"""Packages of programs that aren't LVM's."""
_log = logging.getLogger(__name__)


class NoLvm(CreationFailed):
    """LVM's programs, or blkdiscard, are not installed."""


@dataclass(frozen=True)
class Volume:
    """One logical volume."""

    group: str
    name: str
    size_bytes: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A volume group as LVM reports it."""

    size_bytes: int
    extent_bytes: int
    volumes: tuple[Volume, ...]


class Volumes:
    """Makes and removes volumes of machines; from any thread.

    Volumes are overwritten in the background, as disks may be slow.
    """

    def __init__(self) -> None:
        self._wiped: dict[str, Outcome[None]] = {}
        """By device, until somebody has waited for it."""
        self._wiping: BackgroundWork[None] = BackgroundWork("wiping", self._note_wiped, at_once=None)
        self._in_use: str | None = None
        self._default: str | None = None
        self._default_until = float("-inf")

    def group(self, settings: Settings) -> str | None:
        """As group_in_use(); the answer for the default group is remembered for GROUP_LOOK_SECONDS."""
        if settings.volume_group is None and time.monotonic() >= self._default_until:
            self._default = group_in_use(settings)
            self._default_until = time.monotonic() + GROUP_LOOK_SECONDS
        self._in_use = settings.volume_group or self._default
        return self._in_use

    def make(self, group: str, spec: MachineSpec) -> Path:
        """Make a volume for this machine; an old one of its name is wiped and removed before. Raises CreationFailed."""
        found = read_group(group)
        if any(volume.name == spec.name for volume in found.volumes):
            self._remove(group, spec.name, wiped=False)
        gb = spec.machinetype.disk_gb_per_processor
        size_bytes = volume_bytes(found, gb, spec.processors, spec.settings)
        if size_bytes <= 0:
            raise CreationFailed(f"volume group {group} has no room for a volume of {spec.name}")
        self._wiped.pop(str(device(group, spec.name)), None)  # of one that somebody else has removed
        # signatures that others have left in these blocks go unasked
        options = ["--yes", "--wipesignatures", "y", "--addtag", TAG + spec.uuid, "--size", f"{size_bytes}b"]
        run_lvm(["lvcreate", *options, "--name", spec.name, group])
        return device(group, spec.name)

    @contextmanager
    def mounted(self, spec: MachineSpec) -> Iterator[None]:
        """Make a volume for the block that makes the machine, as ext4 on its mnt/, if a group is in use.

        Its size limits what the machine can write there. If the block fails the volume is removed, but not if it raises
        EngineUnavailable, since then the machine may run. Raises CreationFailed.
        """
        try:
            group = self.group(spec.settings)
            if group is not None:
                self._mount(self.make(group, spec), spec.directory / "mnt")
            yield
        except CreationFailed:
            self.discard(spec)
            raise

    def _mount(self, volume: Path, place: Path) -> None:
        """Mount it with the owner and mode of the directory that it covers."""
        try:
            below = place.stat()
            run_lvm(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", str(volume)])
            run_lvm(["mount", "-t", "ext4", "-o", "nosuid,nodev,noatime", str(volume), str(place)])
            os.chown(place, below.st_uid, below.st_gid)
            place.chmod(below.st_mode & 0o7777)
        except OSError as error:
            raise CreationFailed(f"{error.filename}: {error.strerror}") from error

    def discard(self, spec: MachineSpec) -> None:
        """Remove the volume of a machine that hasn't been made, if possible."""
        try:
            self._remove_own(spec.name, spec.uuid, unused=True)
        except CreationFailed as left:
            _log.warning("%s: its volume is left: %s", spec.name, left)

    def remove(self, name: str, uuid: str) -> None:
        """Unmount, wipe and remove the machine's volume, if it has one, whatever group it is in and wherever it is
        mounted: another group may be in use since it was made.

        No error if there is no LVM, nor if LVM can't list volumes where no group is in use. Raises EngineUnavailable,
        also while the volume is being wiped.
        """
        try:
            self._remove_own(name, uuid, unused=False)
        except CreationFailed as failure:
            raise EngineUnavailable(str(failure)) from failure

    def _remove_own(self, name: str, uuid: str, *, unused: bool) -> None:
        try:
            found = read_volumes()
        except NoLvm:
            return
        except CreationFailed as failure:
            if self._in_use is not None:
                raise
            _log.warning("cannot tell if %s has left a logical volume: %s", name, failure)
            return
        for volume in found:
            if volume.name == name and TAG + uuid in volume.tags:
                self._remove(volume.group, name, wiped=unused)

    def _remove(self, group: str, name: str, *, wiped: bool) -> None:
        path = device(group, name)
        for place in mount_points(path):
            run_lvm(["umount", place])
        if not wiped:
            self._wipe(path)
        run_lvm(["lvremove", "--yes", f"{group}/{name}"])

    def _wipe(self, path: Path) -> None:
        """Start overwriting, or go on waiting for it; after a failure the next call starts anew."""
        key = str(path)
        if key not in self._wiped:
            self._wiping.start(key, lambda: self._overwrite(key))
            self._wiping.wait(key, WIPE_PATIENCE_SECONDS)
        outcome = self._wiped.pop(key, None)
        if outcome is None:
            raise CreationFailed(f"{path} is being wiped, since another machine will get these blocks")
        if outcome.failure:
            raise CreationFailed(outcome.failure)

    def _note_wiped(self, outcome: Outcome[None]) -> None:
        self._wiped[outcome.key] = outcome

    def _overwrite(self, path: str) -> None:
        try:
            # fast where the device can do that itself
            run_lvm(["blkdiscard", "--force", "--zeroout", path])
        except CreationFailed as failure:
            raise OSError(str(failure)) from failure


def group_in_use(settings: Settings) -> str | None:
    """Return the volume group for machines' disks: the configured one, else the default one if it exists.

    LVM is asked, as /dev has no directory of a group without active volumes. If it can't tell, there is none: nobody
    has asked for it.
    """
    if settings.volume_group is not None:
        return settings.volume_group
    try:
        run_lvm(["vgs", DEFAULT_GROUP])
    except CreationFailed:
        return None
    return DEFAULT_GROUP


def device(group: str, name: str) -> Path:
    """Return the path of a machine's volume."""
    return Path("/dev", group, name)


def mount_points(volume: Path, mountinfo: Path = filesystems.MOUNTINFO) -> list[str]:
    """Return where this device is mounted."""
    try:
        number = volume.stat().st_rdev
    except OSError:
        return []
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return [mount.point for mount in filesystems.mounts(mountinfo) if mount.device == wanted]


def volume_bytes(group: Group, gb_per_processor: int | None, processors: int, settings: Settings) -> int:
    """Return the size of a machine's volume in whole extents: as configured, else its share of what isn't others'."""
    if gb_per_processor:
        wanted = gb_per_processor * GB * processors
    else:
        others = (v for v in group.volumes if slot_number(settings.factory_name, v.name) is None)
        free = group.size_bytes - sum(volume.size_bytes for volume in others)
        wanted = free * processors // settings.total_processors
    return wanted // group.extent_bytes * group.extent_bytes


def read_group(group: str) -> Group:
    """Ask LVM for a group. Raises CreationFailed."""
    sizes = _report("vgs", "vg", {"vg_size": int, "vg_extent_size": int}, group)
    if len(sizes) != 1:
        raise CreationFailed(f"LVM reports {len(sizes)} groups {group}")
    size_bytes, extent_bytes = sizes[0]
    return Group(size_bytes, extent_bytes, read_volumes(group))


def read_volumes(*group: str) -> tuple[Volume, ...]:
    """Ask LVM for the volumes of this group, or of all. Raises CreationFailed."""
    columns = {"vg_name": str, "lv_name": str, "lv_size": int, "lv_tags": str}
    rows = _report("lvs", "lv", columns, *group)
    return tuple(
        Volume(of, name, size, tuple(filter(None, tags.split(",")))) for of, name, size, tags in rows
    )


def run_lvm(command: Sequence[str]) -> str:
    """Run LVM, mkfs, mount, or blkdiscard, which may take hours; return its output.

    Raises CreationFailed with what it says.
    """
    done = child_processes.run(
        command, time_limit_seconds=None if command[0] == "blkdiscard" else LVM_SECONDS
    )
    if done.missing:
        raise NoLvm(f"{done.failure}: install {PACKAGES.get(command[0], 'lvm2')}")
    if done.failure:
        raise CreationFailed(done.failure)
    return done.text


def _report(
    program: str, kind: str, columns: Mapping[str, Callable[[Any], Any]], *group: str
) -> list[tuple[Any, ...]]:
    options = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", ",".join(columns)]
    try:
        rows = json.loads(run_lvm([program, *options, *group]))["report"][0][kind]
        return [tuple(convert(row[name]) for name, convert in columns.items()) for row in rows]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CreationFailed(f"LVM's report can't be understood: {error!r}") from error
