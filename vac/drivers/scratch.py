"""A container's mnt/ on a logical volume of its own, as ext4, where a volume group is in use.

Its size is the limit of what the machine can write there. The volume bears the machine's uuid as a tag and goes with
the machine; after a crash it is found by that tag and unmounted wherever it is mounted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.drivers.volumes import GroupFinder, Run, make_volume, remove_volume, run_lvm

_log = logging.getLogger(__name__)


class Scratch:
    """Makes and removes the volumes of one engine's containers; from any thread. run runs LVM, mkfs and mount."""

    def __init__(self, run: Run = run_lvm) -> None:
        self._run = run
        self._groups = GroupFinder(run)
        self._group: str | None = None

    @contextmanager
    def made(self, spec: MachineSpec) -> Iterator[None]:
        """Within it the machine is made, with its volume mounted; if that fails, it is removed again.

        Raises CreationFailed. If the engine can't be asked any more the volume stays, since the machine may run.
        """
        try:
            self._make(spec)
            yield
        except CreationFailed:
            try:
                self.remove(spec.name, spec.uuid)
            except EngineUnavailable as left:
                _log.warning("%s: its volume is left: %s", spec.name, left)
            raise

    def remove(self, name: str, uuid: str) -> None:
        """Unmount and remove the machine's volume, if it has one. Raises EngineUnavailable."""
        try:
            remove_volume(self._group, name, uuid, self._run)
        except CreationFailed as error:
            raise EngineUnavailable(str(error)) from error

    def _make(self, spec: MachineSpec) -> None:
        self._group = self._groups.in_use(spec.settings)
        if self._group is None:
            return
        gb = spec.machinetype.disk_gb_per_processor
        volume = make_volume(self._group, spec.name, spec.uuid, gb, spec.processors, spec.settings, self._run)
        try:
            mount_volume(volume, spec.directory / "mnt", self._run)
        except OSError as error:
            raise CreationFailed(f"{error.filename}: {error.strerror}") from error


def mount_volume(volume: Path, place: Path, run: Run) -> None:
    """Make a file system on the volume and mount it, with the owner and mode of the directory that it is to cover.

    Raises CreationFailed, OSError.
    """
    below = place.stat()
    run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", str(volume)])
    run(["mount", "-t", "ext4", "-o", "nosuid,nodev,noatime", str(volume), str(place)])
    os.chown(place, below.st_uid, below.st_gid)
    place.chmod(below.st_mode & 0o7777)
