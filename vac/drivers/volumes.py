"""Logical volumes of machines: /dev/GROUP/HOST, made, mounted, wiped and removed with LVM's own programs.

A tag with the machine's uuid tells whose a volume is. Formats: lvs(8), vgs(8), lvmreport(7) as JSON; blkdiscard(8).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from vac.config.settings import Settings, slot_number
from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.host import child_processes, filesystems

GB = 1000**3
DEFAULT_GROUP = "vac_volume_group"
TAG = "vac.uuid="
LVM_SECONDS = 60.0
GROUP_LOOK_SECONDS = 300.0
"""How long it is remembered whether the default group exists."""
WIPE_PATIENCE_SECONDS = 5.0
"""How long a machine's removal waits for its volume to be wiped, before it has to be asked for again."""
Run = Callable[[Sequence[str]], str]
"""Runs a command and returns its output; raises CreationFailed with what it says."""
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
    """Makes and removes volumes of machines; from any thread. run runs LVM's programs, mkfs, mount and blkdiscard.

    Volumes are overwritten in threads of their own, as disks may be slow.
    """

    def __init__(
        self,
        run: Run | None = None,
        patience_seconds: float = WIPE_PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run or run_lvm
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._wiping: dict[Path, Future[str]] = {}
        self._default: str | None = None
        self._default_until = float("-inf")

    def group(self, settings: Settings) -> str | None:
        """As group_in_use(); the answer for the default group is remembered for GROUP_LOOK_SECONDS."""
        if settings.volume_group is not None:
            return settings.volume_group
        if self._clock() >= self._default_until:
            self._default = group_in_use(settings, self.run)
            self._default_until = self._clock() + GROUP_LOOK_SECONDS
        return self._default

    def make(self, group: str, spec: MachineSpec) -> Path:
        """Make a volume for this machine; an old one of its name is wiped and removed before. Raises CreationFailed."""
        found = read_group(group, self.run)
        if any(volume.name == spec.name for volume in found.volumes):
            self._remove(group, spec.name, wiped=False)
        gb = spec.machinetype.disk_gb_per_processor
        size_bytes = volume_bytes(found, gb, spec.processors, spec.settings)
        if size_bytes <= 0:
            raise CreationFailed(f"volume group {group} has no room for a volume of {spec.name}")
        # signatures that others have left in these blocks go unasked
        options = ["--yes", "--wipesignatures", "y", "--addtag", TAG + spec.uuid, "--size", f"{size_bytes}b"]
        self.run(["lvcreate", *options, "--name", spec.name, group])
        return device(group, spec.name)

    def remove(self, in_use: str | None, name: str, uuid: str, *, unused: bool = False) -> None:
        """Wipe, unless it is unused, and remove the machine's volume, whatever group it is in: another may be in use
        since it was made.

        in_use: the group used now. No error if there is no volume or no LVM, nor if LVM can't list volumes where no
        group is in use. Raises CreationFailed, also while the volume is being wiped.
        """
        try:
            found = read_volumes(self.run)
        except NoLvm:
            return
        except CreationFailed as failure:
            if in_use is not None:
                raise
            _log.warning("cannot tell if %s has left a logical volume: %s", name, failure)
            return
        for volume in found:
            if volume.name == name and TAG + uuid in volume.tags:
                self._remove(volume.group, name, wiped=unused)

    def _remove(self, group: str, name: str, *, wiped: bool) -> None:
        path = device(group, name)
        for place in mount_points(path):
            self.run(["umount", place])
        if not wiped:
            self._wipe(path)
        self.run(["lvremove", "--yes", f"{group}/{name}"])

    def _wipe(self, path: Path) -> None:
        """Start overwriting, or go on waiting for it; after a failure the next call starts anew."""
        with self._lock:
            work = self._wiping.get(path)
            if work is None:
                work = self._wiping[path] = Future()
                threading.Thread(
                    target=self._overwrite, args=(path, work), name="wiping", daemon=True
                ).start()
        try:
            work.result(self._patience_seconds)
        except TimeoutError:
            raise CreationFailed(
                f"{path} is being wiped, since another machine will get these blocks"
            ) from None
        finally:
            if work.done():
                with self._lock:
                    self._wiping.pop(path, None)

    def _overwrite(self, path: Path, work: Future[str]) -> None:
        try:
            # fast where the device can do that itself
            work.set_result(self.run(["blkdiscard", "--force", "--zeroout", str(path)]))
        except CreationFailed as failure:
            work.set_exception(failure)


class ScratchVolumes:
    """Containers' mnt/ on volumes of their own, as ext4, where a volume group is in use; from any thread.

    A volume's size limits what the machine can write there. After a crash it is found by its tag and unmounted wherever
    it is mounted.
    """

    def __init__(self, run: Run | None = None, patience_seconds: float = WIPE_PATIENCE_SECONDS) -> None:
        self._volumes = Volumes(run, patience_seconds)
        self._group: str | None = None

    @contextmanager
    def made(self, spec: MachineSpec) -> Iterator[None]:
        """Make and mount the machine's volume for the block that makes the machine; remove it if that fails.

        Raises CreationFailed. If the block raises EngineUnavailable the volume stays, since the machine may run.
        """
        try:
            self._make(spec)
            yield
        except CreationFailed:
            try:
                self.remove(spec.name, spec.uuid, unused=True)
            except EngineUnavailable as left:
                _log.warning("%s: its volume is left: %s", spec.name, left)
            raise

    def remove(self, name: str, uuid: str, *, unused: bool = False) -> None:
        """Unmount, wipe unless it is unused, and remove the machine's volume, if it has one.

        Raises EngineUnavailable, also while it is being wiped.
        """
        try:
            self._volumes.remove(self._group, name, uuid, unused=unused)
        except CreationFailed as error:
            raise EngineUnavailable(str(error)) from error

    def _make(self, spec: MachineSpec) -> None:
        """Make the volume and mount it, with the owner and mode of the directory that it covers."""
        self._group = self._volumes.group(spec.settings)
        if self._group is None:
            return
        volume, place = self._volumes.make(self._group, spec), spec.directory / "mnt"
        try:
            below = place.stat()
            self._volumes.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", str(volume)])
            self._volumes.run(["mount", "-t", "ext4", "-o", "nosuid,nodev,noatime", str(volume), str(place)])
            os.chown(place, below.st_uid, below.st_gid)
            place.chmod(below.st_mode & 0o7777)
        except OSError as error:
            raise CreationFailed(f"{error.filename}: {error.strerror}") from error


def group_in_use(settings: Settings, run: Run) -> str | None:
    """Return the volume group for machines' disks: the configured one, else the default one if it exists.

    LVM is asked, as /dev has no directory of a group without active volumes. If it can't tell, there is none: nobody
    has asked for it.
    """
    if settings.volume_group is not None:
        return settings.volume_group
    try:
        run(["vgs", DEFAULT_GROUP])
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


def read_group(group: str, run: Run) -> Group:
    """Ask LVM for a group. Raises CreationFailed."""
    sizes = _report(run, "vgs", "vg", {"vg_size": int, "vg_extent_size": int}, group)
    if len(sizes) != 1:
        raise CreationFailed(f"LVM reports {len(sizes)} groups {group}")
    size_bytes, extent_bytes = sizes[0]
    return Group(size_bytes, extent_bytes, read_volumes(run, group))


def read_volumes(run: Run, *group: str) -> tuple[Volume, ...]:
    """Ask LVM for the volumes of this group, or of all. Raises CreationFailed."""
    columns = {"vg_name": str, "lv_name": str, "lv_size": int, "lv_tags": str}
    rows = _report(run, "lvs", "lv", columns, *group)
    return tuple(
        Volume(of, name, size, tuple(filter(None, tags.split(",")))) for of, name, size, tags in rows
    )


def run_lvm(command: Sequence[str]) -> str:
    """Run LVM, or blkdiscard, which may take hours; see Run."""
    done = child_processes.run(
        command, time_limit_seconds=None if command[0] == "blkdiscard" else LVM_SECONDS
    )
    if done.missing:
        raise NoLvm(f"{done.failure}: install {PACKAGES.get(command[0], 'lvm2')}")
    if done.failure:
        raise CreationFailed(done.failure)
    return done.text


def _report(
    run: Run, program: str, kind: str, columns: Mapping[str, Callable[[Any], Any]], *group: str
) -> list[tuple[Any, ...]]:
    command = [
        program,
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "-o",
        ",".join(columns),
        *group,
    ]
    try:
        rows = json.loads(run(command))["report"][0][kind]
        return [tuple(convert(row[name]) for name, convert in columns.items()) for row in rows]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CreationFailed(f"LVM's report can't be understood: {error!r}") from error
