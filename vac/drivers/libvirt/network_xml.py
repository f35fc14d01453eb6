"""The VMs' NAT network as libvirt describes it. The form is https://libvirt.org/formatnetwork.html; needs no libvirt.

Both addresses of the factory are the bridge's own, so no `dummy` interface is needed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vac.config.settings import Settings, slot_address, slot_name, slot_number
from vac.drivers.libvirt.domain_xml import NETWORK, mac_address
from vac.host.rule_match import BRIDGE

SERVER = "169.254.169.253"
"""Gateway, DHCP and name server, Machine/Job Features."""
METADATA = "169.254.169.254"
NETMASK = "255.255.0.0"
_ONE_ADDRESS = "255.255.255.255"
_BROADCAST = "169.254.255.255"
"""DHCP option 28, in so many words: dnsmasq would tell guests METADATA, which they then couldn't reach."""
_DNSMASQ = "http://libvirt.org/schemas/network/dnsmasq/1.0"

ET.register_namespace("dnsmasq", _DNSMASQ)


class Host(NamedTuple):
    """What DHCP gives to one VM."""

    mac: str
    name: str
    address: str


@dataclass(frozen=True)
class NetworkFacts:
    """What a network's XML says that matters to Vac."""

    bridge: str | None
    forward: tuple[str | None, str | None]
    """How packets are forwarded, and by which interface only."""
    addresses: tuple[tuple[str, str], ...]
    """With netmasks."""
    hosts: tuple[Host, ...]


def slot_hosts(settings: Settings) -> list[Host]:
    """The entries of all slots of this factory."""
    return [
        Host(
            mac_address(slot_address(number)), slot_name(settings.factory_name, number), slot_address(number)
        )
        for number in range(settings.host_processors)
    ]


def wanted_facts(settings: Settings) -> NetworkFacts:
    """What the network has to be."""
    addresses = ((SERVER, NETMASK), (METADATA, _ONE_ADDRESS))
    return NetworkFacts(BRIDGE, ("nat", settings.forward_dev), addresses, tuple(slot_hosts(settings)))


def network_xml(facts: NetworkFacts, uuid: str | None = None) -> str:
    """The network. uuid is that of the one it replaces."""
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
            dhcp = ET.SubElement(ip, "dhcp")
            dhcp.extend(_host(host) for host in facts.hosts)
    options = ET.SubElement(network, f"{{{_DNSMASQ}}}options")
    ET.SubElement(options, f"{{{_DNSMASQ}}}option", value=f"dhcp-option=28,{_BROADCAST}")
    ET.indent(network)
    return ET.tostring(network, encoding="unicode") + "\n"


def host_xml(host: Host) -> str:
    """One DHCP entry, as a change of a network in use takes it."""
    return ET.tostring(_host(host), encoding="unicode")


def _host(host: Host) -> ET.Element:
    return ET.Element("host", mac=host.mac, name=host.name, ip=host.address)


def network_facts(xml: str) -> NetworkFacts:
    """What the XML of a network says."""
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
    """Entries to remove and to add.

    Entries of this factory's slots beyond the present ones stay: their VMs may run still.
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


def hosts_after(present: Iterable[Host], wanted: Sequence[Host], factory_name: str) -> tuple[Host, ...]:
    """All entries once these changes are made."""
    present = list(present)
    remove, add = host_changes(present, wanted, factory_name)
    return (*(host for host in present if host not in remove), *add)


def taps(xml: str) -> list[str]:
    """The host's ends of a running domain's interfaces in the network."""
    found = []
    for interface in ET.fromstring(xml).iterfind("devices/interface"):
        source, target = interface.find("source"), interface.find("target")
        if source is not None and source.get("network") == NETWORK and target is not None:
            found.append(target.get("dev", ""))
    return [tap for tap in found if tap]
