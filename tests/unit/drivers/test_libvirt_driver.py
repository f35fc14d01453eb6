"""The VMs' network and what libvirt tells of domains. VAC_REGENERATE=1 writes the golden file anew."""

from __future__ import annotations

import errno
import os
import queue
import threading
from dataclasses import replace
from pathlib import Path
from typing import Callable, cast

import libvirt
import pytest

from vac.config.settings import Settings, slot_number
from vac.drivers.base import EngineState, EngineUnavailable, Observed, Usage
from vac.drivers.libvirt import libvirt_api, libvirt_driver
from vac.drivers.libvirt.libvirt_api import Connection, EventReader
from vac.drivers.libvirt.libvirt_domain import NETWORK, SERVER
from vac.drivers.libvirt.libvirt_driver import Samples, machine_state, started_time, starting_up, usage_of
from vac.drivers.libvirt.libvirt_network import (
    Host,
    NetworkFacts,
    NetworkKeeper,
    host_changes,
    network_facts,
    network_xml,
    slot_hosts,
    taps,
    wanted_facts,
)
from vac.host.nat import NatHost

GOLDEN = Path(__file__).parents[2] / "data" / "network" / "vac_169.254.0.0.xml"
TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
"""Of the domain that libvirt's mock begins with."""
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


def settings_of(slots: int, forward_dev: str | None = None, factory: str = FACTORY) -> Settings:
    return Settings(factory_name=factory, host_processors=slots, forward_dev=forward_dev)


def test_the_network_is_what_the_golden_file_says() -> None:
    xml = network_xml(wanted_facts(settings_of(2, "eth0")), UUID)
    if os.environ.get("VAC_REGENERATE"):
        GOLDEN.write_text(xml)
    assert xml == GOLDEN.read_text()


@pytest.mark.parametrize("forward_dev", [None, "eth0"])
def test_what_is_written_is_read_back(forward_dev: str | None) -> None:
    facts = wanted_facts(settings_of(255, forward_dev))
    read = network_facts(network_xml(facts))
    assert read.hosts == facts.hosts
    assert (read.bridge, read.addresses) == (facts.bridge, facts.addresses)


def test_what_libvirt_tells_of_it_is_recognised() -> None:
    assert network_facts(AS_LIBVIRT_TELLS) == wanted_facts(settings_of(2, "eth0"))


def test_every_slot_has_a_dhcp_entry_of_its_own() -> None:
    hosts = slot_hosts(settings_of(255))
    assert hosts[0] == Host("56:4D:A9:FE:A9:00", "node1-00.example.org", "169.254.169.0")
    assert hosts[254] == Host("56:4D:A9:FE:AA:01", "node1-254.example.org", "169.254.170.1")
    assert not {"169.254.169.253", "169.254.169.254"} & {host.address for host in hosts}
    assert len({host.mac for host in hosts}) == 255


def test_names_are_escaped_by_the_library() -> None:
    assert 'name="&lt;&quot;"' in network_xml(
        NetworkFacts(None, (None, None), ((SERVER, ""),), (Host("m", '<"', "a"),))
    )


STRANGER = Host("52:54:00:00:00:01", "other.example.org", "169.254.1.1")
TAKEN = Host("56:4D:A9:FE:A9:01", "old-01.example.org", "169.254.169.1")


@pytest.mark.parametrize(
    ("present", "slots", "removed", "added"),
    [
        ([], 2, [], slot_hosts(settings_of(2))),
        (slot_hosts(settings_of(2)), 2, [], []),
        (slot_hosts(settings_of(2)), 3, [], slot_hosts(settings_of(3))[2:]),
        (slot_hosts(settings_of(3)), 2, [], []),
        ([STRANGER], 1, [STRANGER], slot_hosts(settings_of(1))),
        ([TAKEN], 2, [TAKEN], slot_hosts(settings_of(2))),
    ],
    ids=["new", "same", "more slots", "fewer slots", "a stranger's", "another factory's"],
)
def test_entries_change_with_the_slots(
    present: list[Host], slots: int, removed: list[Host], added: list[Host]
) -> None:
    wanted = slot_hosts(settings_of(slots))
    assert host_changes(present, wanted, FACTORY) == (removed, added)
    after = [*(host for host in present if host not in removed), *added]
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


RECORDED = {
    "state.state": 1,
    "state.reason": 1,
    "balloon.current": 98304,
    "balloon.maximum": 98304,
    "balloon.rss": 198120,
    "net.count": 2,
    "net.0.name": "vnet1",
    "net.0.rx.bytes": 180,
    "net.0.tx.bytes": 7,
    "net.1.name": "vnet2",
    "net.1.rx.bytes": 20,
}


def test_usage_is_in_seconds_and_bytes() -> None:
    assert usage_of(RECORDED, 5_124_730_000) == Usage(5.12473, 198120 * 1024, 198120 * 1024, 200, 7)


def test_a_start_is_when_libvirt_noted_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_driver, "PID_FILES", tmp_path)
    (tmp_path / "node1-00.example.org.pid").write_text("7")
    os.utime(tmp_path / "node1-00.example.org.pid", (1795189401.5, 1795189401.5))
    assert started_time("node1-00.example.org") == 1795189401.5
    assert started_time("node1-01.example.org") is None


def test_what_the_hypervisor_does_not_tell_stays_unknown() -> None:
    assert usage_of({"state.state": 1}, 0) == Usage(cpu_seconds=0.0)


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (1, 1, EngineState.RUNNING),
        (2, 0, EngineState.RUNNING),
        (3, 1, EngineState.PAUSED),
        (3, 5, EngineState.PAUSED),
        (3, 11, EngineState.RUNNING),
        (3, 8, EngineState.RUNNING),
        (4, 0, EngineState.RUNNING),
        (5, 2, EngineState.ENDED),
        (6, 1, EngineState.ENDED),
        (7, 0, EngineState.PAUSED),
    ],
)
def test_states(state: int, reason: int, expected: EngineState) -> None:
    figures = {"state.state": state, "state.reason": reason}
    assert machine_state(figures) is expected
    assert starting_up(figures) is ((state, reason) == (3, 11))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("factory1-00.example.com", True),
        ("factory1-117.example.com", True),
        ("factory1-0.example.com", False),
        ("factory1-00xexample.com", False),
        ("factory11-00.example.com", False),
        ("factory1-00.example.com.org", False),
        ("x-factory1-00.example.com", False),
    ],
)
def test_names_of_this_factorys_slots(name: str, ours: bool) -> None:
    assert (slot_number("factory1.example.com", name) is not None) is ours


def seen(uuid: str, cpu_seconds: float, memory_bytes: int | None = None) -> Observed:
    usage = Usage(cpu_seconds, memory_bytes, memory_bytes)
    return Observed(f"name-{uuid}", uuid, EngineState.RUNNING, usage)


def test_a_vanished_machine_has_ended_with_its_last_usage() -> None:
    now = 1000.0
    samples = Samples(lambda: now)
    samples.take([seen("a", 1.0, 500), seen("b", 1.0)])
    samples.take([seen("a", 2.0, 300), seen("b", 2.0)])
    samples.take([seen("b", 3.0)])
    now = 2000.0
    samples.take([seen("b", 3.0)])
    listed = {machine.uuid: machine for machine in samples.all()}
    assert listed["a"].state is EngineState.ENDED
    assert listed["a"].usage.ended_time == 1000.0
    assert listed["b"].usage.ended_time is None
    assert listed["a"].usage == Usage(2.0, 300, 500, ended_time=1000.0)
    assert listed["b"].state is EngineState.RUNNING
    samples.forget("a")
    assert [machine.uuid for machine in samples.all()] == ["b"]


def test_a_machine_listed_as_ended_ended_when_that_was_seen_first() -> None:
    now = 1000.0
    samples = Samples(lambda: now)
    samples.take([seen("a", 1.0)])
    for now in (1100.0, 1200.0):  # noqa: B007  the clock's
        samples.take([replace(seen("a", 1.0), state=EngineState.ENDED)])
    assert [machine.usage.ended_time for machine in samples.all()] == [1100.0]


def test_a_machine_that_is_listed_again_has_not_ended() -> None:
    now = 1000.0
    samples = Samples(lambda: now)
    for machines in ([seen("a", 1.0)], [], [seen("a", 2.0)]):
        samples.take(machines)
    assert [(each.state, each.usage.ended_time) for each in samples.all()] == [(EngineState.RUNNING, None)]
    now = 2000.0
    samples.take([])
    assert [machine.usage.ended_time for machine in samples.all()] == [2000.0]


def test_figures_of_a_dying_process_do_not_go_back() -> None:
    samples = Samples()
    samples.take([seen("a", 7.0, 500)])
    samples.take([seen("a", 0.0)])
    assert samples.all()[0].usage == Usage(7.0, None, 500)


def test_a_machine_whose_process_could_not_be_watched_is_watched_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name-a.pid").write_text(f"{os.getpid()}")
    watched: list[tuple[int, Callable[[], object]]] = []

    def call_at_end(pid: int, call: Callable[[], object], name: str) -> None:
        watched.append((pid, call))
        if len(watched) == 1:
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(libvirt_driver, "PID_FILES", tmp_path)
    monkeypatch.setattr(libvirt_driver, "call_at_end", call_at_end)
    now = 1000.0
    samples = Samples(lambda: now)
    samples.take([seen("a", 1.0)])
    for _ in range(3):
        samples.watch("a", "name-a")
    assert [pid for pid, _ in watched] == [os.getpid()] * 2
    watched[-1][1]()
    now = 2000.0
    samples.take([])
    assert [machine.usage.ended_time for machine in samples.all()] == [1000.0]


def test_without_libvirtd_nothing_is_said_of_rules_that_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        uri = "qemu:///system"

        def use(self, purpose: str) -> libvirt.virConnect:
            raise EngineUnavailable("libvirtd doesn't answer")

    monkeypatch.setattr(NatHost, "missing", lambda host: ["no rule masquerades"])
    keeper = NetworkKeeper(cast(Connection, Away()), lambda: None)
    keeper.prepare(settings_of(1))
    assert keeper._work.wait(NETWORK, 60)
    assert keeper.prepare(settings_of(1)) == "libvirtd doesn't answer"
    assert keeper.notices() == []


@pytest.mark.parametrize(("way", "reason"), [("destroy", "destroyed"), ("shutdown", "shutdown")])
def test_libvirts_reason_stays_with_the_machine(way: str, reason: str) -> None:
    connection, samples = Connection("test:///default", "test"), Samples()
    samples.take([seen(TEST_UUID, 1.0)])
    reader = EventReader(connection, lambda: samples.take([]), lambda name: True, samples.note_reason)
    events = reader.listen()
    assert next(events) == ""
    with connection.use("act") as opened:
        domain = opened.lookupByName("test")
        getattr(domain, way)()
        assert next(events) == "test"
        domain.create()
    events.close()  # type: ignore[attr-defined]
    (machine,) = samples.all()
    assert (machine.state, machine.usage.shutoff_reason) == (EngineState.ENDED, reason)
    connection.close()


def test_calls_at_once_share_one_connection_that_is_being_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opener, asked, go = libvirt.open, queue.SimpleQueue[str](), threading.Event()

    def slow(uri: str) -> libvirt.virConnect:
        asked.put(uri)
        assert go.wait(60)
        return opener(uri)

    monkeypatch.setattr(libvirt, "open", slow)
    monkeypatch.setattr(libvirt_api, "OPEN_SECONDS", 0.01)
    connection = Connection("test:///default", "test")
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="libvirtd doesn't answer"), connection.use("act"):
            pass
    monkeypatch.setattr(libvirt_api, "OPEN_SECONDS", 60.0)
    found: list[libvirt.virConnect] = []

    def call() -> None:
        with connection.use("act") as opened:
            found.append(opened)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    go.set()
    for caller in callers:
        caller.join(60)
    assert len(found) == 3
    assert len(set(map(id, found))) == 1
    assert asked.qsize() == 1
    connection.close()
