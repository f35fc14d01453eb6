"""The driver of virtual machines: cernvm3, cernvm4 and vm-raw on libvirt.

A machine is a transient domain with its name and uuid, so that nothing of it stays defined when it ends. It is this
factory's if our element in the domain's metadata says so; machines that an older Vac has made bear none, and the
factory, which has them on record, names them to adopt(). The names of statistics are those of
virConnectGetAllDomainStats.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import libvirt

from vac.background import BackgroundWork
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings, slot_number
from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineState,
    EngineUnavailable,
    Fetch,
    LeftProcess,
    MachineSpec,
    Observed,
    Usage,
    no_images,
    with_growing_counters,
)
from vac.drivers.images import ImageFacts, ImageFiles, version_of
from vac.drivers.libvirt.libvirt_api import (
    GONE,
    Connection,
    EventReader,
    end_domain,
    explanation,
    find_domain,
    is_active,
    lost,
    no_filter,
    press_power_button,
)
from vac.drivers.libvirt.libvirt_domain import (
    DEFAULT_GB_PER_PROCESSOR,
    FILTER,
    Disk,
    DomainFacts,
    Hypervisor,
    Image,
    domain_facts,
    domain_xml,
    mac_address,
    make_overlay,
    make_sparse,
    open_image,
    remove_names,
)
from vac.drivers.libvirt.libvirt_network import NetworkKeeper
from vac.drivers.volumes import GB, Volumes
from vac.host.child_processes import call_at_end
from vac.host.connections import Contact, tracked
from vac.host.nat import NatHost
from vac.logs import OnChange

GRACE_SECONDS = 30.0
"""From pressing a machine's power button to ending it by force."""
LOOK_SECONDS = 1.0
"""Interval at which a machine that is to end by itself is checked."""
OBSERVE, ACT, PRESS = "observe", "act", "press"
"""Purposes of connections. A power button is pressed by the hypervisor's process, which may hang: so not by ACT."""
STATISTICS = (
    libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_INTERFACE
)
"""VIR_DOMAIN_STATS_CPU_TOTAL isn't among them: libvirt 9 asks each QEMU for it even if told not to wait (NOWAIT), so
that one that hangs would hold up the listing."""
FLAGS = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
IMAGE, OVERLAY, SPARSE = "root.image", "root.qcow2", "root.img"
"""Names in the machine's directory of its image and disks, until its hypervisor has these files open."""
STARTING_UP = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
SHUTTING_DOWN = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN)
"""States with their reasons in which a domain is paused for a moment at its beginning and end."""
NANO = 1_000_000_000
PID_FILES = Path("/run/libvirt/qemu")
"""Directory with the process numbers of QEMU domains."""

_log = logging.getLogger(__name__)


class LibvirtDriver(Driver):
    """The hypervisor at libvirt_uri; see Driver for what the methods promise.

    stop() may be called for many machines at once, each call in a thread of its own.
    """

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch = no_images,
        grace_seconds: float = GRACE_SECONDS,
        nat: NatHost | None = None,
    ) -> None:
        self._settings = settings
        self._grace_seconds = grace_seconds
        self._connection = Connection(settings.libvirt_uri, settings.vm_domain_type)
        self._images = ImageFiles(fetch, self.changed)
        self._network = NetworkKeeper(self._connection, self.changed, nat)
        self._image_facts = ImageFacts()
        self._volumes = Volumes()
        self._changes = OnChange(_log)
        self._pressing: BackgroundWork[None] = BackgroundWork("power-button", at_once=None)
        self._refused: set[str] = set()
        """Machines whose power button couldn't be pressed."""
        self._samples = Samples()
        self._events = EventReader(self._connection, self._look, self._may_be_ours, self._samples.note_reason)
        self._looking = threading.Lock()
        self._facts: dict[str, DomainFacts] = {}
        self._adopted: Mapping[str, str] = {}

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """See Driver: network and image have to be there."""
        self._settings = settings
        network = self._network.prepare(settings)
        return self._images.prepare(machinetype.root_image, machinetype.image_signing_dn, files) or network

    def notices(self) -> Sequence[str]:
        unfiltered = sum(
            not facts.filtered and self._belongs(uuid, facts) for uuid, facts in list(self._facts.items())
        )
        text = f"{unfiltered} VM(s) without libvirt's filter {FILTER}: such a VM can take another's address"
        return [*self._network.notices(), *([text] if unfiltered else ())]

    def adopt(self, machines: Mapping[str, str], processes: Mapping[str, LeftProcess]) -> None:
        self._adopted = dict(machines)

    def list(self) -> Sequence[Observed]:
        self._network.keep()
        self._look()
        return [self._detailed(machine) for machine in self._samples.all()]

    def create(self, spec: MachineSpec) -> None:
        kind = spec.machinetype
        with self._connection.use(ACT) as connection:
            hypervisor = self._connection.hypervisor(connection)
            own_name = spec.directory / IMAGE
            image, name = self._images.held(kind.root_image, kind.image_signing_dn, spec.files, own_name)
            version = version_of(image)
            self._make(connection, spec, hypervisor, name)
        self._image_facts.note(spec.uuid, {"image_path": str(image)}, version)

    def stop(self, name: str, uuid: str) -> None:
        """See Driver. The machine has time to shut down by itself."""
        with self._connection.use(ACT) as connection:
            domain = find_domain(connection, uuid)
            if domain is None:
                return
            self._refused.discard(uuid)
            self._pressing.start(uuid, lambda: self._press(uuid))
            deadline = time.monotonic() + self._grace_seconds
            while time.monotonic() < deadline and uuid not in self._refused and is_active(domain):
                time.sleep(LOOK_SECONDS)
            self._look()
            end_domain(domain)
            self._look()

    def destroy(self, name: str, uuid: str) -> None:
        with self._connection.use(ACT) as connection:
            domain = find_domain(connection, uuid)
            if domain is not None:
                end_domain(domain)
        self._volumes.group(self._settings)
        self._volumes.remove(name, uuid)
        with self._looking:
            self._samples.forget(uuid)
            self._image_facts.forget(uuid)
            self._facts.pop(uuid, None)
            self._refused.discard(uuid)

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        return tracked({uuid: facts.address for uuid, facts in list(self._facts.items()) if facts.address})

    def events(self) -> Iterator[str]:
        return self._events.listen()

    def close(self) -> None:
        self._events.close()
        self._connection.close()

    def _look(self) -> None:
        """List all machines of this factory, in one call, and their usage, of which CPU takes one more for each.

        Nothing is asked for that one hypervisor process has to answer itself: one that hangs would hold up all. CPU by
        virDomainGetInfo is read by libvirtd from /proc.
        """
        with self._looking, self._connection.use(OBSERVE) as connection:
            found = connection.getAllDomainStats(STATISTICS, FLAGS)
            seen = [self._seen(*one) for one in found if self._may_be_ours(one[0].name())]
            self._samples.take([machine for machine in seen if machine is not None])
            present = {domain.UUIDString() for domain, _ in found}
            self._facts = {uuid: facts for uuid, facts in self._facts.items() if uuid in present}

    def _seen(self, domain: Any, statistics: Mapping[str, Any]) -> Observed | None:
        """Return the machine that the domain is; None if it isn't this factory's, or has just ended."""
        name, uuid = domain.name(), domain.UUIDString()
        try:
            facts = self._facts.get(uuid) or domain_facts(domain.XMLDesc())
            ours = self._belongs(uuid, facts)
            if not starting_up(statistics):  # until then it may be made once more, without the filter
                if ours:
                    remove_names(facts.own_files)  # its maker may have died before it could do that
                    facts = replace(facts, own_files=())
                    self._samples.watch(uuid, name)
                self._facts[uuid] = facts
            if not ours:
                return None
            usage = replace(usage_of(statistics, domain.info()[4]), started_time=started_time(name))
        except libvirt.libvirtError as error:
            if error.get_error_code() in GONE:
                return None
            raise
        return Observed(name, uuid, machine_state(statistics), usage, _details(facts))

    def _detailed(self, machine: Observed) -> Observed:
        return replace(machine, details={**machine.details, **self._image_facts.of(machine.uuid)})

    def _may_be_ours(self, name: str) -> bool:
        return slot_number(self._settings.factory_name, name) is not None

    def _belongs(self, uuid: str, facts: DomainFacts) -> bool:
        if facts.factory is None:
            return uuid in self._adopted
        return facts.factory == self._settings.factory_name

    def _press(self, uuid: str) -> None:
        """Press the machine's power button, if that is possible."""
        pressed = False
        with suppress(EngineUnavailable), self._connection.use(PRESS) as connection:
            domain = find_domain(connection, uuid)
            pressed = domain is not None and press_power_button(domain)
        if not pressed:
            self._refused.add(uuid)

    def _make(
        self, connection: libvirt.virConnect, spec: MachineSpec, hypervisor: Hypervisor, image: Path
    ) -> None:
        """Make the machine and start it; if that fails, leave nothing behind.

        Raises CreationFailed, or libvirtError if the connection fails: then it may run all the same.
        """
        names = [spec.directory / name for name in (IMAGE, OVERLAY, SPARSE)]
        try:
            root_image = open_image(image)
            disks = self._disks(spec, root_image)
            for disk in disks:
                if hypervisor.owner is not None and not disk.block:
                    os.chown(disk.path, *hypervisor.owner)
            cd_image = None if spec.machinetype.machine_model == "vm-raw" else root_image
            self._start(connection, spec, hypervisor, disks, cd_image)
        except (libvirt.libvirtError, CreationFailed, OSError) as error:
            reason = str(error)
            if isinstance(error, libvirt.libvirtError):
                if lost(error):
                    raise
                reason = explanation(error)
            elif isinstance(error, OSError):
                reason = f"{error.filename or spec.directory}: {error.strerror or error}"
            remove_names(names)
            self._volumes.discard(spec)
            raise CreationFailed(reason) from error
        remove_names(names)

    def _start(
        self,
        connection: libvirt.virConnect,
        spec: MachineSpec,
        hypervisor: Hypervisor,
        disks: Sequence[Disk],
        cd_image: Image | None,
    ) -> None:
        """Start it, without the filter only if that is impossible now: the cause may pass."""
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
            self._changes.say(FILTER, f"VMs are made without the filter {FILTER}: {reason}", logging.WARNING)

    def _disks(self, spec: MachineSpec, image: Image) -> Sequence[Disk]:
        """Make an empty disk beside the CD, or the image's overlay and, on LVM, scratch. Raises OSError,
        CreationFailed."""
        machinetype = spec.machinetype
        group = self._volumes.group(spec.settings)
        if machinetype.machine_model == "vm-raw":
            overlay = make_overlay(image, spec.directory / OVERLAY)
            disks = [Disk(overlay, machinetype.root_device, "qcow2", backing=image)]
            if group is not None:
                disks.append(Disk(self._volumes.make(group, spec), machinetype.scratch_device, block=True))
            return disks
        if group is not None:
            return [Disk(self._volumes.make(group, spec), machinetype.root_device, block=True)]
        gb = machinetype.disk_gb_per_processor or DEFAULT_GB_PER_PROCESSOR
        path = make_sparse(spec.directory / SPARSE, gb * GB * spec.processors)
        return [Disk(path, machinetype.root_device)]


open_driver = LibvirtDriver


class Samples:
    """The last listing of each machine. A domain that has ended is gone, and its usage with it: so its last sample is
    kept here until the machine is destroyed. Can be used from any thread.

    It ended when its process did, where libvirt tells the process: libvirtd may have been down or have hung then.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, Observed] = {}
        self._ends: dict[str, float | None] = {}
        """Of machines whose processes are watched."""

    def watch(self, uuid: str, name: str) -> None:
        """Watch the process of a machine that runs, unless that is done already."""
        if uuid in self._ends:
            return
        try:
            self._ends[uuid] = None
            process = int((PID_FILES / f"{name}.pid").read_text())
            call_at_end(process, lambda: self._note_end(uuid), "vm-end")
        except (OSError, ValueError):
            self._ends.pop(uuid, None)

    def _note_end(self, uuid: str) -> None:
        if uuid in self._ends:
            self._ends[uuid] = self._clock()

    def take(self, machines: Sequence[Observed]) -> None:
        """Take all present machines; those that were there before and are not among them have ended."""
        now = {machine.uuid: machine for machine in machines}
        with self._lock:
            for uuid, before in self._seen.items():
                if uuid in now:
                    ended = before.usage.ended_time if now[uuid].state is EngineState.ENDED else None
                    usage = replace(with_growing_counters(now[uuid].usage, before.usage), ended_time=ended)
                    now[uuid] = replace(now[uuid], usage=usage)
                else:
                    now[uuid] = replace(before, state=EngineState.ENDED)
            self._seen = {uuid: self._timed(machine) for uuid, machine in now.items()}

    def _timed(self, machine: Observed) -> Observed:
        """Give a machine that has ended the time of its end."""
        if machine.state is not EngineState.ENDED or machine.usage.ended_time is not None:
            return machine
        ended_time = self._ends.get(machine.uuid) or self._clock()
        return replace(machine, usage=replace(machine.usage, ended_time=ended_time))

    def note_reason(self, uuid: str, reason: str) -> None:
        """Note libvirt's reason for the end of a domain, which may be listed still."""
        with self._lock:
            known = self._seen.get(uuid)
            if known is not None:
                self._seen[uuid] = replace(known, usage=replace(known.usage, shutoff_reason=reason))

    def all(self) -> Sequence[Observed]:
        """Return machines that run, and those that have ended and not been forgotten."""
        with self._lock:
            return list(self._seen.values())

    def forget(self, uuid: str) -> None:
        """Drop a machine."""
        with self._lock:
            self._seen.pop(uuid, None)
            self._ends.pop(uuid, None)


def machine_state(statistics: Mapping[str, object]) -> EngineState:
    """Return the machine's state, given that of its domain and the reason."""
    state = statistics.get("state.state")
    if state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED):
        return EngineState.ENDED
    passing = (state, statistics.get("state.reason")) in (STARTING_UP, SHUTTING_DOWN)
    # PMSUSPENDED: the guest has put itself to sleep, and nobody here will wake it
    paused = state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED) and not passing
    return EngineState.PAUSED if paused else EngineState.RUNNING


def started_time(name: str) -> float | None:
    """Return when libvirt noted the number of the domain's process, Unix seconds; None where it doesn't."""
    with suppress(OSError):
        return (PID_FILES / f"{name}.pid").stat().st_mtime
    return None


def _details(facts: DomainFacts) -> Mapping[str, str]:
    details = {
        "image": facts.root_image,
        "addresses": facts.address,
        "mac_address": mac_address(facts.address) if facts.address else "",
        "display": facts.display,
        "domain_type": facts.domain_type,
    }
    return {name: text for name, text in details.items() if text and facts.factory}


def starting_up(statistics: Mapping[str, object]) -> bool:
    """Tell if its creation is still in progress."""
    return (statistics.get("state.state"), statistics.get("state.reason")) == STARTING_UP


def usage_of(statistics: Mapping[str, object], cpu_nanoseconds: int) -> Usage:
    """Return a domain's usage. Its memory is that of the hypervisor's process."""
    memory = statistics.get("balloon.rss")
    memory_bytes = memory * 1024 if isinstance(memory, int) else None
    return Usage(
        cpu_seconds=cpu_nanoseconds / NANO,
        memory_bytes=memory_bytes,
        peak_memory_bytes=memory_bytes,
        network_received_bytes=_cards(statistics, "rx"),
        network_sent_bytes=_cards(statistics, "tx"),
    )


def _cards(statistics: Mapping[str, object], direction: str) -> int | None:
    """Return bytes that all network cards have received (rx) or sent (tx)."""
    count = statistics.get("net.count")
    if not isinstance(count, int):
        return None
    values = (statistics.get(f"net.{card}.{direction}.bytes") for card in range(count))
    return sum(value for value in values if isinstance(value, int))
