"""The VMs' NAT network: defined, started, watched and, where the site allows it, repaired.

Only the network of our name is ever changed. While it isn't right no VM is made, and the reason is shown. The XML is
that of https://libvirt.org/formatnetwork.html. Both addresses of the factory are the bridge's own, so no `dummy`
interface is needed.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple

import libvirt

from vac.background import BackgroundWork, Outcome, Rest
from vac.config.settings import Settings, slot_address, slot_name, slot_number
from vac.drivers.base import EngineUnavailable
from vac.drivers.libvirt.libvirt_api import Connection, explanation, lost
from vac.drivers.libvirt.libvirt_domain import METADATA, NETWORK, SERVER, mac_address
from vac.host.nat import BRIDGE, NatHost, NatProblem, hosts_line, update_hosts
from vac.logs import OnChange

CHECK_SECONDS, RETRY_SECONDS = 60.0, 10.0
"""Age up to which the result that it is right, or wrong, is used."""
MOCK = "test:"
"""Prefix of the URIs of libvirt's mock, whose machines have no network."""
NETWORK_PURPOSE = "network"
"""A connection of its own, as nobody waits for it."""
_ONE_ADDRESS = "255.255.255.255"
_NETMASK = "255.255.0.0"
_BROADCAST = "169.254.255.255"
"""DHCP option 28, in so many words: dnsmasq would tell guests METADATA, which they then couldn't reach."""
_DNSMASQ = "http://libvirt.org/schemas/network/dnsmasq/1.0"

ET.register_namespace("dnsmasq", _DNSMASQ)
_log = logging.getLogger(__name__)


class Host(NamedTuple):
    """A DHCP entry for one VM."""

    mac: str
    name: str
    address: str

    def xml(self) -> ET.Element:
        """Return the entry as an element."""
        return ET.Element("host", mac=self.mac, name=self.name, ip=self.address)


@dataclass(frozen=True)
class NetworkFacts:
    """The parts of a network's XML that matter to Vac."""

    bridge: str | None
    forward: tuple[str | None, str | None]
    """Mode of forwarding, and the only interface that it uses."""
    addresses: tuple[tuple[str, str], ...]
    """With netmasks."""
    hosts: tuple[Host, ...]


def slot_hosts(settings: Settings) -> list[Host]:
    """Return the DHCP entries of all slots of this factory."""
    slots = [
        (slot_address(number), slot_name(settings.factory_name, number))
        for number in range(settings.host_processors)
    ]
    return [Host(mac_address(address), name, address) for address, name in slots]


def wanted_facts(settings: Settings) -> NetworkFacts:
    """Return the network as it has to be."""
    addresses = ((SERVER, _NETMASK), (METADATA, _ONE_ADDRESS))
    return NetworkFacts(BRIDGE, ("nat", settings.forward_dev), addresses, tuple(slot_hosts(settings)))


def network_xml(facts: NetworkFacts, uuid: str | None = None) -> str:
    """Return the network's XML. uuid is that of the one it replaces."""
    network = ET.Element("network")
    ET.SubElement(network, "name").text = NETWORK
    if uuid is not None:
        ET.SubElement(network, "uuid").text = uuid
    mode, device = facts.forward
    forward = ET.SubElement(network, "forward", mode=mode or "nat")
    if device is not None:
        ET.SubElement(forward, "interface", dev=device)
    ET.SubElement(network, "bridge", name=facts.bridge or BRIDGE, stp="off", delay="0")
    for address, netmask in facts.addresses:
        ip = ET.SubElement(network, "ip", address=address, netmask=netmask)
        if address == SERVER:
            ET.SubElement(ip, "dhcp").extend(host.xml() for host in facts.hosts)
    options = ET.SubElement(network, f"{{{_DNSMASQ}}}options")
    ET.SubElement(options, f"{{{_DNSMASQ}}}option", value=f"dhcp-option=28,{_BROADCAST}")
    ET.indent(network)
    return ET.tostring(network, encoding="unicode") + "\n"


def network_facts(xml: str) -> NetworkFacts:
    """Return the facts of a network's XML."""
    network = ET.fromstring(xml)
    bridge, forward = network.find("bridge"), network.find("forward")
    return NetworkFacts(
        bridge=None if bridge is None else bridge.get("name"),
        forward=(forward.get("mode", "nat"), forward.get("dev")) if forward is not None else (None, None),
        addresses=tuple((ip.get("address", ""), ip.get("netmask", "")) for ip in network.iterfind("ip")),
        hosts=tuple(
            Host(host.get("mac", "").upper(), host.get("name", ""), host.get("ip", ""))
            for host in network.iterfind("ip/dhcp/host")
        ),
    )


def host_changes(
    present: Iterable[Host], wanted: Sequence[Host], factory_name: str
) -> tuple[list[Host], list[Host]]:
    """Return entries to remove and to add.

    Entries of this factory's slots beyond the present ones stay: their VMs may still run.
    """
    taken = {value for host in wanted for value in (host.mac, host.address)}
    present = list(present)
    remove = [
        host
        for host in present
        if host not in wanted
        and (slot_number(factory_name, host.name) is None or taken & {host.mac, host.address})
    ]
    return remove, [host for host in wanted if host not in present]


def taps(xml: str) -> list[str]:
    """Return the host's ends of a running domain's interfaces in the network."""
    interfaces = ET.fromstring(xml).iterfind(f"devices/interface/source[@network='{NETWORK}']/..")
    return [tap for each in interfaces for target in each.iterfind("target") if (tap := target.get("dev"))]


def ensure_network(connection: Any, settings: Settings, host: NatHost) -> None:
    """Make the network right. Raises NatProblem if no VM can be made, libvirtError if the connection fails.

    connection is a virConnect. With fix_networking off only what is missing is made: nothing existing is changed except
    the DHCP entries of slots.
    """
    try:
        _write_hosts_file(settings, host)
        _Repair(connection, settings, host).run()
    except libvirt.libvirtError as error:
        if lost(error):
            raise
        text, hint = explanation(error), ""
        if "already in use by interface" in text:
            hint = f"; remove the route of {SERVER.rsplit('.', 2)[0]}.0.0/16 from it (EL9: NOZEROCONF=yes)"
        elif "bridge name" in text or "File exists" in text:
            hint = f"; {BRIDGE} belongs to something else: give that another name"
        raise NatProblem(f"network {NETWORK}: {text}{hint}") from error


class _Repair:
    """One pass over the network."""

    def __init__(self, connection: Any, settings: Settings, host: NatHost) -> None:
        self._connection = connection
        self._settings = settings
        self._host = host

    def run(self) -> None:
        """Make the network, or repair it. Raises NatProblem, libvirtError."""
        network, wanted = self._find(), wanted_facts(self._settings)
        if network is None:
            self._refuse_taken_bridge()
            network = self._connection.networkDefineXML(network_xml(wanted))
            _log.info("network %s is defined", NETWORK)
            network.setAutostart(True)
            network.create()
        else:
            network = self._redefine(network, wanted)
            if not network.isActive():
                self._may_fix(f"network {NETWORK} isn't active: virsh net-start {NETWORK}")
                self._refuse_taken_bridge()
                _log.warning("network %s was not active: starting it", NETWORK)
                self._start(network)
            elif not _same(network_facts(network.XMLDesc(0)), wanted, addresses=1):
                self._restart(network, "it runs with an older definition")
            if not network.autostart():
                network.setAutostart(True)
        self._change_hosts(network)
        self._check_bridge(network)

    def _find(self) -> Any:
        try:
            return self._connection.networkLookupByName(NETWORK)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                return None
            raise

    def _refuse_taken_bridge(self) -> None:
        if self._host.addresses() is not None:
            raise NatProblem(
                f"interface {BRIDGE} exists, but isn't that of network {NETWORK}: give its owner's another name"
            )

    def _may_fix(self, problem: str) -> None:
        if not self._settings.fix_networking:
            raise NatProblem(f"{problem}, or allow it with fix_networking")

    def _redefine(self, network: Any, wanted: NetworkFacts) -> Any:
        """Define it as it should be, with the DHCP entries of VMs that may still run."""
        defined = network_facts(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
        if _same(defined, wanted):
            return network
        self._may_fix(f"network {NETWORK} isn't what Vac needs: virsh net-undefine {NETWORK}")
        remove, add = host_changes(defined.hosts, wanted.hosts, self._settings.factory_name)
        hosts = (*(host for host in defined.hosts if host not in remove), *add)
        _log.warning("network %s was defined otherwise: defining it again", NETWORK)
        return self._connection.networkDefineXML(
            network_xml(replace(wanted, hosts=hosts), network.UUIDString())
        )

    def _start(self, network: Any) -> None:
        """Start it, and connect VMs that its end has left unconnected."""
        network.create()
        for domain in self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                for tap in taps(domain.XMLDesc(0)):
                    self._host.attach(tap)
            except (libvirt.libvirtError, NatProblem) as error:
                _log.warning("cannot connect %s to %s again: %s", domain.name(), BRIDGE, error)

    def _restart(self, network: Any, why: str) -> None:
        _log.warning("restarting network %s: %s", NETWORK, why)
        network.destroy()
        self._start(network)

    def _change_hosts(self, network: Any) -> None:
        """Tell DHCP all slots, now and for the network's next start, without disturbing VMs."""
        wanted, name = slot_hosts(self._settings), self._settings.factory_name
        for described, affected in (
            (0, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE),
            (libvirt.VIR_NETWORK_XML_INACTIVE, libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG),
        ):
            remove, add = host_changes(network_facts(network.XMLDesc(described)).hosts, wanted, name)
            for command, hosts in (
                (libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, remove),
                (libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, add),
            ):
                for one in hosts:
                    section, xml = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, ET.tostring(one.xml(), "unicode")
                    network.update(command, section, -1, xml, affected)
            if remove or add:
                _log.info("network %s: %d DHCP entries removed, %d added", NETWORK, len(remove), len(add))

    def _check_bridge(self, network: Any) -> None:
        """Compare the kernel's state with what libvirt takes for granted."""
        addresses = self._host.addresses()
        if addresses is None or SERVER not in addresses or not self._host.serves_names(SERVER):
            lacking = f"interface {BRIDGE} with {SERVER} and a name server"
            self._may_fix(f"{lacking} is missing: virsh net-destroy {NETWORK}; virsh net-start {NETWORK}")
            self._restart(network, f"{lacking} was missing")
            addresses = self._host.addresses() or []
        if METADATA not in addresses:
            self._may_fix(f"{BRIDGE} lacks {METADATA}: ip address add {METADATA}/32 dev {BRIDGE}")
            _log.warning("giving %s the address %s again", BRIDGE, METADATA)
            self._host.add_address(METADATA)


def _same(one: NetworkFacts, other: NetworkFacts, addresses: int | None = None) -> bool:
    """Compare all but the DHCP entries, and so many addresses."""
    mine = (one.bridge, one.forward, one.addresses[:addresses])
    return mine == (other.bridge, other.forward, other.addresses[:addresses])


def _write_hosts_file(settings: Settings, host: NatHost) -> None:
    """Write the VMs' names; a failure is only logged, since VMs work without."""
    lines = [hosts_line(one.address, one.name) for one in slot_hosts(settings)]
    try:
        update_hosts(lines, host.hosts_file)
    except OSError as error:
        _log.warning("cannot write the VMs' names to %s: %s", host.hosts_file, error.strerror)


class NetworkKeeper:
    """Keeps the network right in the background, and knows if it is. For any thread. wake is called when it has become
    right."""

    def __init__(
        self, connection: Connection, wake: Callable[[], object], host: NatHost | None = None
    ) -> None:
        self._connection = connection
        self._wake = wake
        self._host = host or NatHost()
        self._problem: str | None = "its network is being checked"
        self._settings: Settings | None = None
        """Of the last check."""
        self._notices: list[str] = []
        self._changes = OnChange(_log)
        rest = Rest(CHECK_SECONDS, RETRY_SECONDS, RETRY_SECONDS)
        self._work: BackgroundWork[None] = BackgroundWork("network", self._done, rest=rest)

    def prepare(self, settings: Settings) -> str | None:
        """Return None if VMs can be made, else the reason, from memory; start another check if it is due."""
        if self._connection.uri.startswith(MOCK):
            return None
        if self._settings not in (None, settings):
            self._work.wake(NETWORK)
        if self._work.start(NETWORK, lambda: self._check(settings)):
            self._settings = settings
        return self._problem

    def notices(self) -> Sequence[str]:
        """Return what probably keeps VMs from the network, though it exists."""
        return self._notices

    def keep(self) -> None:
        """Check again if that is due, with the settings of the last check."""
        if self._settings is not None:
            self.prepare(self._settings)

    def _check(self, settings: Settings) -> None:
        problem = None
        try:
            with self._connection.use(NETWORK_PURPOSE) as connection:
                ensure_network(connection, settings, self._host)
        except EngineUnavailable as error:  # nothing is said of what libvirtd would make
            raise NatProblem(str(error)) from error
        except NatProblem as error:
            problem = error
        self._notices = [f"VMs' network: {one}" for one in self._host.missing()]
        self._changes.only({one: one for one in self._notices}, logging.WARNING)
        if problem is not None:
            raise problem

    def _done(self, outcome: Outcome[None]) -> None:
        before, self._problem = self._problem, outcome.failure or None
        if self._problem is None and before is not None:
            self._wake()
