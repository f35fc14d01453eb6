"""Making one virtual machine: its image, its disks, its domain. Whatever fails, nothing is left behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import libvirt

from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, MachineSpec
from vac.drivers.libvirt.api import explanation, lost, no_filter
from vac.drivers.libvirt.disks import (
    DEFAULT_GB_PER_PROCESSOR,
    GB,
    make_overlay,
    make_sparse,
    open_image,
    remove_names,
)
from vac.drivers.libvirt.domain_xml import FILTER, Disk, Hypervisor, Image, domain_xml
from vac.drivers.libvirt.volumes import GroupFinder, Run, Wipe, Wiper, make_volume, remove_volume, run_lvm
from vac.logs import OnChange

IMAGE, OVERLAY, SPARSE = "root.image", "root.qcow2", "root.img"
"""Names in the machine's directory, until its hypervisor has these files open: its image's own one, its disks'."""
_log = logging.getLogger(__name__)


class DomainMaker:
    """Makes domains. run runs LVM's programs."""

    def __init__(self, run: Run = run_lvm) -> None:
        self._run = run
        self._groups = GroupFinder(run)
        self._wiper = Wiper(run)
        self._changes = OnChange(_log)

    def make(
        self, connection: libvirt.virConnect, spec: MachineSpec, hypervisor: Hypervisor, image: Path
    ) -> None:
        """Make the machine and start it. Raises CreationFailed, or libvirtError if the connection fails."""
        try:
            root_image, disks = self._parts(spec, hypervisor, image)
            cd_image = None if spec.machinetype.machine_model == "vm-raw" else root_image
            self._start(connection, spec, hypervisor, disks, cd_image)
        except libvirt.libvirtError as error:
            if lost(error):  # it may run all the same
                raise
            _remove_names(spec)
            self.remove_volume(spec.name, spec.uuid, spec.settings, used=False)
            raise CreationFailed(explanation(error)) from error
        except CreationFailed:
            _remove_names(spec)
            raise
        _remove_names(spec)

    def remove_volume(self, name: str, uuid: str, settings: Settings, *, used: bool = True) -> None:
        """Remove the machine's logical volume, if it has one, after it was wiped if it was used. Raises CreationFailed,
        also while it is being wiped."""
        wipe: Wipe = self._wiper.wipe if used else lambda path: None
        remove_volume(self._groups.in_use(settings), name, uuid, self._run, wipe)

    def _start(
        self,
        connection: libvirt.virConnect,
        spec: MachineSpec,
        hypervisor: Hypervisor,
        disks: Sequence[Disk],
        cd_image: Image | None,
    ) -> None:
        """Without the filter only if it can't be had now: what keeps it from working may pass."""
        reason = "libvirt has no such filter"
        if hypervisor.filtering:
            try:
                connection.createXML(domain_xml(spec, hypervisor, disks, cd_image), 0)
            except libvirt.libvirtError as error:
                if not no_filter(error):
                    raise
                reason = f"this host refuses it: {explanation(error)}"
            else:
                self._changes.clear(FILTER)
                return
        without = replace(hypervisor, filtering=False)
        connection.createXML(domain_xml(spec, without, disks, cd_image), 0)
        if spec.address is not None:
            self._changes.say(FILTER, f"a VM is made without the filter {FILTER}: {reason}", logging.WARNING)

    def _parts(self, spec: MachineSpec, hypervisor: Hypervisor, image: Path) -> tuple[Image, list[Disk]]:
        """The image, and all disks. Raises CreationFailed."""
        try:
            root_image = open_image(image)
            disks = self._disks(spec, root_image)
            if hypervisor.owner is not None:
                for disk in disks:
                    if not disk.block:
                        os.chown(disk.path, *hypervisor.owner)
        except OSError as error:
            raise CreationFailed(f"{error.filename or spec.directory}: {error.strerror or error}") from error
        return root_image, disks

    def _disks(self, spec: MachineSpec, image: Image) -> list[Disk]:
        """An empty disk beside the CD, or the image's overlay and, on LVM, scratch. Raises OSError, CreationFailed."""
        machinetype = spec.machinetype
        group = self._groups.in_use(spec.settings)
        if machinetype.machine_model == "vm-raw":
            overlay = make_overlay(image, spec.directory / OVERLAY)
            disks = [Disk(overlay, machinetype.root_device, "qcow2", backing=image)]
            if group is not None:
                disks.append(Disk(self._volume(spec, group), machinetype.scratch_device, block=True))
            return disks
        if group is not None:
            return [Disk(self._volume(spec, group), machinetype.root_device, block=True)]
        gb = machinetype.disk_gb_per_processor or DEFAULT_GB_PER_PROCESSOR
        path = make_sparse(spec.directory / SPARSE, gb * GB * spec.processors)
        return [Disk(path, machinetype.root_device)]

    def _volume(self, spec: MachineSpec, group: str) -> Path:
        gb = spec.machinetype.disk_gb_per_processor
        settings, wipe = spec.settings, self._wiper.wipe
        return make_volume(group, spec.name, spec.uuid, gb, spec.processors, settings, self._run, wipe)


def _remove_names(spec: MachineSpec) -> None:
    remove_names(spec.directory / name for name in (IMAGE, OVERLAY, SPARSE))
