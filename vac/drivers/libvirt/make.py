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
    make_overlay,
    make_sparse,
    open_image,
    remove_names,
)
from vac.drivers.libvirt.domain_xml import FILTER, Disk, Hypervisor, Image, domain_xml
from vac.drivers.volumes import GB, GroupFinder, Run, make_volume, remove_volume, run_lvm

_log = logging.getLogger(__name__)


class DomainMaker:
    """Makes domains. run runs LVM's programs."""

    def __init__(self, run: Run = run_lvm) -> None:
        self._run = run
        self._groups = GroupFinder(run)
        self._unfiltered = False

    def make(
        self, connection: libvirt.virConnect, spec: MachineSpec, hypervisor: Hypervisor, image: Path
    ) -> None:
        """Make the machine and start it. Raises CreationFailed, or libvirtError if the connection fails."""
        try:
            root_image = open_image(image)
            disks = self._disks(spec, root_image)
            files = [disk.path for disk in disks if not disk.block]
            if hypervisor.owner is not None:
                for path in files:
                    os.chown(path, *hypervisor.owner)
        except OSError as error:
            raise CreationFailed(f"{error.filename or spec.directory}: {error.strerror or error}") from error
        cd_image = None if spec.machinetype.machine_model == "vm-raw" else root_image
        try:
            self._start(connection, spec, hypervisor, disks, cd_image)
        except libvirt.libvirtError as error:
            if lost(error):  # it may run all the same
                raise
            remove_names(files)
            self.remove_volume(spec.name, spec.uuid, spec.settings)
            raise CreationFailed(explanation(error)) from error
        remove_names(files)

    def notices(self) -> list[str]:
        """What this host could not do."""
        return [f"VMs run without the filter {FILTER}: one can take another's address"] * self._unfiltered

    def remove_volume(self, name: str, uuid: str, settings: Settings) -> None:
        """Remove the machine's logical volume, if it has one. Raises CreationFailed."""
        remove_volume(self._groups.in_use(settings), name, uuid, self._run)

    def _start(
        self,
        connection: libvirt.virConnect,
        spec: MachineSpec,
        hypervisor: Hypervisor,
        disks: Sequence[Disk],
        cd_image: Image | None,
    ) -> None:
        if self._unfiltered:
            hypervisor = _without_filter(hypervisor)
        try:
            connection.createXML(domain_xml(spec, hypervisor, disks, cd_image), 0)
        except libvirt.libvirtError as error:
            if not hypervisor.filtering or not no_filter(error):
                raise
            connection.createXML(domain_xml(spec, _without_filter(hypervisor), disks, cd_image), 0)
            self._unfiltered = True
            _log.warning(
                "VMs run without the filter %s: this host refuses it: %s", FILTER, explanation(error)
            )

    def _disks(self, spec: MachineSpec, image: Image) -> list[Disk]:
        """An empty disk beside the CD, or the image's overlay and, on LVM, scratch. Raises OSError, CreationFailed."""
        machinetype = spec.machinetype
        group = self._groups.in_use(spec.settings)
        if machinetype.machine_model == "vm-raw":
            overlay = make_overlay(image, spec.directory / "root.qcow2")
            disks = [Disk(overlay, machinetype.root_device, "qcow2", backing=image)]
            if group is not None:
                disks.append(Disk(self._volume(spec, group), machinetype.scratch_device, block=True))
            return disks
        if group is not None:
            return [Disk(self._volume(spec, group), machinetype.root_device, block=True)]
        gb = machinetype.disk_gb_per_processor or DEFAULT_GB_PER_PROCESSOR
        path = make_sparse(spec.directory / "root.img", gb * GB * spec.processors)
        return [Disk(path, machinetype.root_device)]

    def _volume(self, spec: MachineSpec, group: str) -> Path:
        gb = spec.machinetype.disk_gb_per_processor
        return make_volume(group, spec.name, spec.uuid, gb, spec.processors, spec.settings, self._run)


def _without_filter(hypervisor: Hypervisor) -> Hypervisor:
    return replace(hypervisor, filtering=False)
