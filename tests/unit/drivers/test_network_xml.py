"""The VMs' network as libvirt is told of it, and what is read back. VAC_REGENERATE=1 writes the golden file anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vac.config.settings import Settings
from vac.drivers.libvirt.network_xml import (
    Host,
    host_changes,
    host_xml,
    hosts_after,
    network_facts,
    network_xml,
    slot_hosts,
    taps,
    wanted_facts,
)

GOLDEN = Path(__file__).parents[2] / "data" / "network" / "vac_169.254.0.0.xml"
FACTORY = "node1.example.org"
UUID = "553d8237-f5f8-48b5-8adf-ca94838d3d43"
AS_LIBVIRT_TELLS = """
<network connections='1'>
  <name>vac_169.254.0.0</name>
  <uuid>553d8237-f5f8-48b5-8adf-ca94838d3d43</uuid>
  <forward dev='eth0' mode='nat'>
    <nat><port start='1024' end='65535'/></nat>
    <interface dev='eth0' connections='1'/>
  </forward>
  <bridge name='virbr1' stp='off' delay='0'/>
  <mac address='52:54:00:3a:76:28'/>
  <ip address='169.254.169.253' netmask='255.255.0.0'>
    <dhcp>
      <host mac='56:4d:a9:fe:a9:00' name='node1-00.example.org' ip='169.254.169.0'/>
      <host mac='56:4D:A9:FE:A9:01' name='node1-01.example.org' ip='169.254.169.1'/>
    </dhcp>
  </ip>
  <ip address='169.254.169.254' netmask='255.255.255.255'/>
</network>
"""


def settings(slots: int, forward_dev: str | None = None, factory: str = FACTORY) -> Settings:
    return Settings(factory_name=factory, host_processors=slots, forward_dev=forward_dev)


def test_the_network_is_what_the_golden_file_says() -> None:
    xml = network_xml(wanted_facts(settings(2, "eth0")), UUID)
    if os.environ.get("VAC_REGENERATE"):
        GOLDEN.write_text(xml)
    assert xml == GOLDEN.read_text()


@pytest.mark.parametrize("forward_dev", [None, "eth0"])
def test_what_is_written_is_read_back(forward_dev: str | None) -> None:
    facts = wanted_facts(settings(255, forward_dev))
    read = network_facts(network_xml(facts))
    assert read.hosts == facts.hosts
    assert (read.bridge, read.addresses) == (facts.bridge, facts.addresses)


def test_what_libvirt_tells_of_it_is_recognised() -> None:
    assert network_facts(AS_LIBVIRT_TELLS) == wanted_facts(settings(2, "eth0"))


def test_every_slot_has_an_entry_and_none_has_the_factorys_own_addresses() -> None:
    hosts = slot_hosts(settings(255))
    assert hosts[0] == Host("56:4D:A9:FE:A9:00", "node1-00.example.org", "169.254.169.0")
    assert hosts[254] == Host("56:4D:A9:FE:AA:01", "node1-254.example.org", "169.254.170.1")
    assert not {"169.254.169.253", "169.254.169.254"} & {host.address for host in hosts}
    assert len({host.mac for host in hosts}) == 255


def test_names_are_escaped_by_the_library() -> None:
    assert 'name="&lt;&quot;"' in host_xml(Host("m", '<"', "a"))


STRANGER = Host("52:54:00:00:00:01", "other.example.org", "169.254.1.1")
TAKEN = Host("56:4D:A9:FE:A9:01", "old-01.example.org", "169.254.169.1")


@pytest.mark.parametrize(
    ("present", "slots", "removed", "added"),
    [
        ([], 2, [], slot_hosts(settings(2))),
        (slot_hosts(settings(2)), 2, [], []),
        (slot_hosts(settings(2)), 3, [], slot_hosts(settings(3))[2:]),
        (slot_hosts(settings(3)), 2, [], []),
        ([STRANGER], 1, [STRANGER], slot_hosts(settings(1))),
        ([TAKEN], 2, [TAKEN], slot_hosts(settings(2))),
    ],
    ids=["new", "same", "more slots", "fewer slots", "a stranger's", "another factory's"],
)
def test_entries_change_with_the_slots(
    present: list[Host], slots: int, removed: list[Host], added: list[Host]
) -> None:
    wanted = slot_hosts(settings(slots))
    assert host_changes(present, wanted, FACTORY) == (removed, added)
    after = hosts_after(present, wanted, FACTORY)
    assert set(wanted) <= set(after)
    assert host_changes(after, wanted, FACTORY) == ([], [])


def test_only_interfaces_in_our_network_are_connected_again() -> None:
    xml = """<domain><devices>
    <interface type='network'><source network='vac_169.254.0.0'/><target dev='vnet3'/></interface>
    <interface type='network'><source network='default'/><target dev='vnet4'/></interface>
    <interface type='bridge'><source bridge='br0'/><target dev='vnet5'/></interface>
    <interface type='network'><source network='vac_169.254.0.0'/></interface>
    </devices></domain>"""
    assert taps(xml) == ["vnet3"]
