"""The VMs' NAT network: defined, started, watched and, where the site allows it, repaired.

Only the network of our name is ever changed. While it isn't right no VM is made, and the reason is shown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Callable

import libvirt

from vac.config.settings import Settings
from vac.drivers.base import EngineUnavailable
from vac.drivers.libvirt.api import Connection, explanation, lost
from vac.drivers.libvirt.domain_xml import NETWORK
from vac.drivers.libvirt.network_xml import (
    METADATA,
    SERVER,
    NetworkFacts,
    host_changes,
    host_xml,
    hosts_after,
    network_facts,
    network_xml,
    slot_hosts,
    taps,
    wanted_facts,
)
from vac.host import hosts_file
from vac.host.nat import NatHost, NatProblem
from vac.host.rule_match import BRIDGE
from vac.logs import OnChange

CHECK_SECONDS = 60.0
"""How long an answer of `right` holds …"""
RETRY_SECONDS = 10.0
"""… and one of `not right`."""
MOCK = "test:"
"""Beginning of the URIs of libvirt's mock, whose machines have no network."""
NETWORK_PURPOSE = "network"
"""Which of the connections it uses: its own, as nobody waits for it."""

_log = logging.getLogger(__name__)


class NetworkProblem(Exception):
    """The network can't be used; the text says why, and what a site can do."""


def ensure_network(connection: Any, settings: Settings, host: NatHost) -> list[str]:
    """Make the network right. What is wrong all the same, in words; nothing: VMs can be made.

    connection is a virConnect. With fix_networking off only what is missing is made: nothing that there is, but for
    the DHCP entries of slots, is changed. Raises libvirtError if the connection fails.
    """
    try:
        _write_hosts_file(settings, host)
        _ensure(connection, settings, host)
    except (NetworkProblem, NatProblem) as problem:
        return [str(problem)]
    except libvirt.libvirtError as error:
        if lost(error):
            raise
        return [f"network {NETWORK}: {explanation(error)}{_hint(explanation(error))}"]
    return []


def _hint(text: str) -> str:
    if "already in use by interface" in text:
        return f"; take the route of {SERVER.rsplit('.', 2)[0]}.0.0/16 away from it (EL9: NOZEROCONF=yes)"
    if "bridge name" in text or "File exists" in text:
        return f"; {BRIDGE} is somebody else's: give that another name"
    return ""


def _ensure(connection: Any, settings: Settings, host: NatHost) -> None:
    wanted = wanted_facts(settings)
    network = _find(connection)
    if network is None:
        _refuse_if_taken(host)
        network = connection.networkDefineXML(network_xml(wanted))
        _log.info("network %s is defined", NETWORK)
        network.setAutostart(True)
        network.create()
    else:
        network = _repaired(connection, network, wanted, settings, host)
        if not network.autostart():
            network.setAutostart(True)
    _change_hosts(network, settings)
    _check_bridge(connection, network, settings, host)


def _find(connection: Any) -> Any:
    try:
        return connection.networkLookupByName(NETWORK)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
            return None
        raise


def _refuse_if_taken(host: NatHost) -> None:
    if host.addresses() is not None:
        raise NetworkProblem(
            f"interface {BRIDGE} is there, but not of network {NETWORK}: give whatever has made it another name"
        )


def _same(one: NetworkFacts, other: NetworkFacts, *, all_addresses: bool = True) -> bool:
    count = None if all_addresses else 1
    mine = (one.bridge, one.forward, one.addresses[:count])
    return mine == (other.bridge, other.forward, other.addresses[:count])


def _repaired(connection: Any, network: Any, wanted: NetworkFacts, settings: Settings, host: NatHost) -> Any:
    """The network, defined as it should be, and active so."""
    defined = network_facts(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
    if not _same(defined, wanted):
        hosts = hosts_after(defined.hosts, wanted.hosts, settings.factory_name)
        _may_fix(settings, f"network {NETWORK} isn't what Vac needs: virsh net-undefine {NETWORK}")
        network = connection.networkDefineXML(network_xml(replace(wanted, hosts=hosts), network.UUIDString()))
        _log.warning("network %s was defined otherwise: defined anew", NETWORK)
    if not network.isActive():
        _may_fix(settings, f"network {NETWORK} isn't active: virsh net-start {NETWORK}")
        _refuse_if_taken(host)
        _log.warning("network %s was not active: starting it", NETWORK)
        _start(connection, network, host)
    elif not _same(network_facts(network.XMLDesc(0)), wanted, all_addresses=False):
        _restart(connection, network, host, "it runs with an older definition")
    return network


def _may_fix(settings: Settings, problem: str) -> None:
    if not settings.fix_networking:
        raise NetworkProblem(f"{problem}, or allow it with fix_networking")


def _start(connection: Any, network: Any, host: NatHost) -> None:
    """Start it, and connect what VMs were left unconnected by its end."""
    network.create()
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            for tap in taps(domain.XMLDesc(0)):
                host.attach(tap)
        except (libvirt.libvirtError, NatProblem) as error:
            _log.warning("%s isn't connected to %s again: %s", domain.name(), BRIDGE, error)


def _restart(connection: Any, network: Any, host: NatHost, why: str) -> None:
    _log.warning("network %s is started again: %s", NETWORK, why)
    network.destroy()
    _start(connection, network, host)


def _change_hosts(network: Any, settings: Settings) -> None:
    """Let DHCP know all slots, now and when the network is next started, without disturbing VMs."""
    for described, affected in (
        (0, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE),
        (libvirt.VIR_NETWORK_XML_INACTIVE, libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG),
    ):
        present = network_facts(network.XMLDesc(described)).hosts
        remove, add = host_changes(present, slot_hosts(settings), settings.factory_name)
        for command, hosts in (
            (libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, remove),
            (libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, add),
        ):
            for one in hosts:
                section = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST
                network.update(command, section, -1, host_xml(one), affected)
        if remove or add:
            _log.info("network %s: %d DHCP entries removed, %d added", NETWORK, len(remove), len(add))


def _check_bridge(connection: Any, network: Any, settings: Settings, host: NatHost) -> None:
    """Has the kernel what libvirt believes it has?"""
    addresses = host.addresses()
    if addresses is None or SERVER not in addresses or not host.serves_names(SERVER):
        missing = f"interface {BRIDGE} with {SERVER} and a name server"
        _may_fix(settings, f"{missing} isn't there: virsh net-destroy {NETWORK}; virsh net-start {NETWORK}")
        _restart(connection, network, host, f"{missing} wasn't there")
        addresses = host.addresses() or []
    if METADATA not in addresses:
        _may_fix(settings, f"{BRIDGE} hasn't {METADATA}: ip address add {METADATA}/32 dev {BRIDGE}")
        _log.warning("%s is given %s again", BRIDGE, METADATA)
        host.add_address(METADATA)


def _write_hosts_file(settings: Settings, host: NatHost) -> None:
    """Names are a convenience: without them VMs work."""
    lines = [hosts_file.line(one.address, one.name) for one in slot_hosts(settings)]
    try:
        hosts_file.update(lines, host.hosts_file)
    except OSError as error:
        _log.warning("%s doesn't get the VMs' names: %s", host.hosts_file, error.strerror)


class NetworkKeeper:
    """Keeps the network right in the background, and knows whether it is. For any thread."""

    def __init__(self, connection: Connection, wake: Callable[[], None], host: NatHost | None = None) -> None:
        """wake is called when the network has become right."""
        self._connection = connection
        self._wake = wake
        self._host = host or NatHost()
        self._lock = threading.Lock()
        self._problem: str | None = "its network is being looked at"
        self._next_time = 0.0
        self._busy = False
        self._settings: Settings | None = None
        self._notices: list[str] = []
        self._changes = OnChange(_log)

    def prepare(self, settings: Settings) -> str | None:
        """None if VMs can be made; else why not. Answers from memory; looks again if it is time to."""
        if self._connection.uri.startswith(MOCK):
            return None
        with self._lock:
            changed = self._settings is not None and _relevant(settings) != _relevant(self._settings)
            if not self._busy and (changed or time.monotonic() >= self._next_time):
                self._busy = True
                self._settings = settings
                threading.Thread(target=self._look, args=(settings,), name="network", daemon=True).start()
            return self._problem

    def notices(self) -> Sequence[str]:
        """What probably keeps VMs from the network, though it is there."""
        return self._notices

    def keep(self) -> None:
        """Look again if it is time to, with the settings of the last prepare()."""
        if self._settings is not None:
            self.prepare(self._settings)

    def _look(self, settings: Settings) -> None:
        problems: Sequence[str] = ["looking at its network failed"]
        try:
            with self._connection.use(NETWORK_PURPOSE) as connection:
                problems = ensure_network(connection, settings, self._host)
            self._notices = [f"VMs' network: {one}" for one in self._host.missing()]
            self._changes.only({one: one for one in self._notices}, logging.WARNING)
        except EngineUnavailable as error:
            problems = [str(error)]
        finally:
            self._done("; ".join(problems) or None)

    def _done(self, problem: str | None) -> None:
        with self._lock:
            news = problem is None and self._problem is not None
            self._problem = problem
            self._next_time = time.monotonic() + (RETRY_SECONDS if problem else CHECK_SECONDS)
            self._busy = False
        if news:
            self._wake()


def _relevant(settings: Settings) -> tuple[object, ...]:
    return settings.factory_name, settings.host_processors, settings.forward_dev, settings.fix_networking
