"""The driver of virtual machines: cernvm3, cernvm4 and vm-raw on libvirt.

A machine is a transient domain with its name and uuid, so that nothing of it stays defined when it ends. It is
this factory's if our element in the domain's metadata says so; machines that an older Vac has made bear none,
and the factory, which has them on record, names them to adopt().
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineUnavailable,
    Fetch,
    MachineSpec,
    Observed,
    Trace,
    Usage,
)
from vac.drivers.digests import version_of
from vac.drivers.images import ImageFiles
from vac.drivers.libvirt.api import (
    GONE,
    Connection,
    end_domain,
    find_domain,
    is_active,
    press_power_button,
)
from vac.drivers.libvirt.disks import remove_names
from vac.drivers.libvirt.domain_xml import FILTER, DomainFacts, domain_facts, mac_address
from vac.drivers.libvirt.events import EventReader
from vac.drivers.libvirt.listing import Samples, machine_state, may_be_ours, starting_up, usage_of
from vac.drivers.libvirt.make import IMAGE, DomainMaker
from vac.drivers.libvirt.network import NetworkKeeper
from vac.drivers.traces import ImageFacts, Sampling, merged
from vac.host.conntrack import tracked
from vac.host.nat import NatHost

GRACE_SECONDS = 30.0
"""From pressing a machine's power button to ending it by force."""
LOOK_SECONDS = 1.0
"""How often a machine that is to end by itself is looked at, should its event be lost."""
OBSERVE, ACT, PRESS = "observe", "act", "press"
"""What connections are for. A power button is pressed by the hypervisor's process, which may hang: so not by ACT."""
STATISTICS = (
    libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_INTERFACE
)
"""VIR_DOMAIN_STATS_CPU_TOTAL isn't among them: libvirt 9 asks each QEMU for it, be it told not to wait (NOWAIT), so
that one that hangs would hold up the listing."""
FLAGS = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT


class LibvirtDriver(Driver):
    """The hypervisor at libvirt_uri: see Driver for what the methods promise.

    stop() may be called for many machines at once, each call in a thread of its own.
    """

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch | None = None,
        grace_seconds: float = GRACE_SECONDS,
        nat: NatHost | None = None,
    ) -> None:
        self._settings = settings
        self._grace_seconds = grace_seconds
        self._connection = Connection(settings.libvirt_uri, settings.vm_domain_type)
        self._events = EventReader(self._connection, self._look, self._may_be_ours)
        self._images = ImageFiles(fetch, self._events.wake)
        self._network = NetworkKeeper(self._connection, self._events.wake, nat)
        self._image_facts = ImageFacts()
        self._sampling = Sampling()
        self._maker = DomainMaker()
        self._samples = Samples()
        self._looking = threading.Lock()
        self._facts: dict[str, DomainFacts] = {}
        self._adopted: Mapping[str, str] = {}
        self._closed = False

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """See Driver: network and image are what has to be there."""
        self._settings = settings
        network = self._network.prepare(settings)
        return self._images.prepare(machinetype.root_image, machinetype.image_signing_dn, files) or network

    def notices(self) -> Sequence[str]:
        """See Driver."""
        unfiltered = sum(
            not facts.filtered and self._belongs(uuid, facts) for uuid, facts in list(self._facts.items())
        )
        network = self._network.notices()
        if not unfiltered:
            return network
        return [
            *network,
            f"{unfiltered} VM(s) without libvirt's filter {FILTER}: such a VM can take another's address",
        ]

    def adopt(self, machines: Mapping[str, str]) -> None:
        """See Driver."""
        self._adopted = dict(machines)

    def list(self) -> Sequence[Observed]:
        """See Driver."""
        self._network.keep()
        self._look()
        return self._samples.all()

    def usage(self) -> Mapping[str, Usage]:
        """See Driver. It comes with the listing."""
        return {machine.uuid: machine.usage for machine in self._samples.all()}

    def create(self, spec: MachineSpec) -> None:
        """See Driver."""
        kind = spec.machinetype
        with self._connection.use(ACT) as connection:
            hypervisor = self._connection.hypervisor(connection)
            own_name = spec.directory / IMAGE
            image, name = self._images.held(kind.root_image, kind.image_signing_dn, spec.files, own_name)
            version = version_of(image)
            self._maker.make(connection, spec, hypervisor, name)
        self._image_facts.note(spec.uuid, {"image_path": str(image)}, version)

    def stop(self, name: str, uuid: str) -> None:
        """See Driver. The machine has time to shut down by itself."""
        with self._connection.use(ACT) as connection:
            domain = find_domain(connection, uuid)
            if domain is None:
                return
            refused = threading.Event()
            threading.Thread(
                target=self._press, args=(uuid, refused), name="power-button", daemon=True
            ).start()
            deadline = time.monotonic() + self._grace_seconds
            while (
                is_active(domain) and time.monotonic() < deadline and not (refused.is_set() or self._closed)
            ):
                self._samples.wait_for_end(uuid, LOOK_SECONDS)
            self._look()
            end_domain(domain)
            self._look()

    def destroy(self, name: str, uuid: str) -> None:
        """See Driver."""
        with self._connection.use(ACT) as connection:
            domain = find_domain(connection, uuid)
            if domain is not None:
                end_domain(domain)
        try:
            self._maker.remove_volume(name, uuid, self._settings)
        except CreationFailed as failure:
            raise EngineUnavailable(str(failure)) from failure
        with self._looking:
            self._samples.forget(uuid)
            self._image_facts.forget(uuid)
            self._facts.pop(uuid, None)

    def details(self, uuid: str) -> Mapping[str, str]:
        """See Driver."""
        facts = self._facts.get(uuid)
        if facts is None or not facts.factory:
            return {}
        details = {
            "image": facts.root_image,
            "addresses": facts.address,
            "mac_address": mac_address(facts.address) if facts.address else "",
            "display": facts.display,
            "domain_type": facts.domain_type,
        }
        return {name: text for name, text in details.items() if text}

    def traces(self) -> Mapping[str, Trace]:
        """See Driver."""
        addresses = {uuid: facts.address for uuid, facts in list(self._facts.items()) if facts.address}
        found = self._sampling.sample(lambda: tracked(addresses))
        return merged(self._image_facts.news(machine.uuid for machine in self._samples.all()), found)

    def events(self) -> Iterator[str]:
        """See Driver."""
        return self._events.listen()

    def close(self) -> None:
        """See Driver."""
        self._closed = True
        self._events.close()
        self._connection.close()

    def _look(self) -> None:
        """List all machines of this factory, in one call, and their usage, of which CPU takes one more for each.

        What one hypervisor process has to answer itself isn't asked for: one that hangs would hold up all. CPU by
        virDomainGetInfo is read by libvirtd from /proc.
        """
        with self._looking, self._connection.use(OBSERVE) as connection:
            found = connection.getAllDomainStats(STATISTICS, FLAGS)
            seen = [self._seen(*one) for one in found if self._may_be_ours(one[0].name())]
            self._samples.take([machine for machine in seen if machine is not None])
            present = {domain.UUIDString() for domain, _ in found}
            self._facts = {uuid: facts for uuid, facts in self._facts.items() if uuid in present}

    def _seen(self, domain: Any, statistics: Mapping[str, Any]) -> Observed | None:
        """The machine that the domain is; None if it isn't this factory's, or has just ended."""
        try:
            if not self._is_ours(domain, statistics):
                return None
            usage = usage_of(statistics, domain.info()[4])
        except libvirt.libvirtError as error:
            if error.get_error_code() in GONE:
                return None
            raise
        return Observed(domain.name(), domain.UUIDString(), machine_state(statistics), usage)

    def _may_be_ours(self, name: str) -> bool:
        return may_be_ours(name, self._settings.factory_name)

    def _is_ours(self, domain: Any, statistics: Mapping[str, Any]) -> bool:
        uuid = domain.UUIDString()
        facts = self._facts.get(uuid)
        if facts is None:
            facts = domain_facts(domain.XMLDesc())
            if not starting_up(statistics):  # it may be made once more, without the filter
                self._facts[uuid] = facts
        if not self._belongs(uuid, facts):
            return False
        if facts.own_files and not starting_up(statistics):
            # its maker may have died before it could do that
            remove_names(facts.own_files)
            self._facts[uuid] = replace(facts, own_files=())
        return True

    def _belongs(self, uuid: str, facts: DomainFacts) -> bool:
        if facts.factory is None:
            return uuid in self._adopted
        return facts.factory == self._settings.factory_name

    def _press(self, uuid: str, refused: threading.Event) -> None:
        """Press the machine's power button; if that can't be done, say so."""
        try:
            with self._connection.use(PRESS) as connection:
                domain = find_domain(connection, uuid)
                if domain is not None and press_power_button(domain):
                    return
        except EngineUnavailable:
            pass
        refused.set()


def open_driver(settings: Settings, fetch: Fetch | None = None) -> LibvirtDriver:
    """The driver of the hypervisor at libvirt_uri. Doesn't ask anything of it yet."""
    return LibvirtDriver(settings, fetch)
