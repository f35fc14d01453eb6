"""The virtual machines' network on a real libvirtd: made, repaired, left alone, and used by guests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.web_fixture import FACTORY, SHORT, WebSite
from tests.waiting import wait_for
from vac.config.settings import Settings
from vac.drivers.libvirt.libvirt_api import Connection
from vac.drivers.libvirt.libvirt_network import (
    NetworkKeeper,
    ensure_network,
    network_facts,
    slot_hosts,
    wanted_facts,
)
from vac.host.nat import NatHost, NatProblem

pytestmark = pytest.mark.engine
NETWORK = "vac_169.254.0.0"
BOTH = ["169.254.169.253", "169.254.169.254"]
CLASSIC = f"""<network><name>{NETWORK}</name><forward mode="nat"/><bridge name="virbr1"/>
<ip address="169.254.169.253" netmask="255.255.0.0"><dhcp>
<host mac="56:4D:A9:FE:A9:00" name="node1-00.example.org" ip="169.254.169.0"/></dhcp></ip></network>"""
OTHERS = """<network><name>others</name><bridge name="virbr1"/>
<ip address="10.9.9.1" netmask="255.255.255.0"/></network>"""


@dataclass
class Site:
    """A libvirtd, the host that it runs on, and a factory's settings."""

    engine: PrivateLibvirt
    host: NatHost
    settings: Settings

    def ensure(self, **changes: object) -> list[str]:
        with self.engine.connection() as connection:
            try:
                ensure_network(connection, replace(self.settings, **changes), self.host)  # type: ignore[arg-type]
            except NatProblem as problem:
                return [str(problem)]
        return []

    def xml(self, *words: str) -> str:
        return self.engine.virsh("net-dumpxml", *words, NETWORK)

    def bridge_index(self) -> str:
        """Another one when the bridge has been made anew."""
        return self.output("ip", "-o", "link", "show", "virbr1").partition(":")[0]

    def output(self, *command: str) -> str:
        done = subprocess.run(
            [*self.engine.enter, *command], capture_output=True, text=True, check=True, timeout=300
        )
        return done.stdout


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateLibvirt]:
    require_tool("iptables-save")
    with closing(PrivateLibvirt()) as engine:
        yield engine


@pytest.fixture
def site(engine: PrivateLibvirt, tmp_path: Path) -> Iterator[Site]:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    host = NatHost(tuple(engine.enter), hosts)
    settings = Settings(
        vac_space="vac01.example.org", factory_name=FACTORY, host_processors=2, libvirt_uri=engine.uri
    )
    yield Site(engine, host, settings)
    with engine.connection() as connection:
        for network in connection.listAllNetworks():
            if network.isActive():
                network.destroy()
            network.undefine()


def kill_name_server(site: Site) -> None:
    for pid in site.engine.processes("dnsmasq"):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not site.host.serves_names(BOTH[0]), "the name server has gone")


def test_it_is_defined_once_and_known_to_the_host(site: Site) -> None:
    assert site.ensure() == []
    information = site.engine.virsh("net-info", NETWORK)
    for name in ("Active", "Persistent", "Autostart"):
        assert re.search(rf"^{name}: +yes$", information, re.MULTILINE)
    assert network_facts(site.xml()) == wanted_facts(site.settings)
    assert site.host.addresses() == BOTH
    assert "ip_forward" not in "".join(site.host.missing())
    assert (
        f"169.254.169.1 {SHORT}-01 {SHORT}-01.example.org # added by Vac" in site.host.hosts_file.read_text()
    )
    before = (site.xml(), site.xml("--inactive"), site.bridge_index())
    assert site.ensure() == []
    assert (site.xml(), site.xml("--inactive"), site.bridge_index()) == before


DAMAGES = {
    "stopped": lambda site: site.engine.virsh("net-destroy", NETWORK),
    "bridge deleted": lambda site: site.engine.run("ip", "link", "delete", "virbr1"),
    "address deleted": lambda site: site.engine.run("ip", "addr", "del", f"{BOTH[1]}/32", "dev", "virbr1"),
    "name server killed": kill_name_server,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_repaired_if_allowed_and_named_if_not(site: Site, damage: str) -> None:
    assert site.ensure() == []
    DAMAGES[damage](site)
    (problem,) = site.ensure(fix_networking=False)
    assert "fix_networking" in problem
    assert site.ensure(fix_networking=False) == [problem]
    assert site.ensure() == []
    assert site.host.addresses() == BOTH
    assert site.host.serves_names(BOTH[0])
    assert site.ensure(fix_networking=False) == []


def test_changed_slots_change_entries_without_disturbing_anybody(site: Site) -> None:
    site.ensure()
    before = site.bridge_index()
    assert site.ensure(host_processors=3) == []
    assert network_facts(site.xml()).hosts == tuple(slot_hosts(replace(site.settings, host_processors=3)))
    assert network_facts(site.xml("--inactive")).hosts == network_facts(site.xml()).hosts
    assert site.ensure(host_processors=2) == []
    assert len(network_facts(site.xml()).hosts) == 3
    assert site.ensure(factory_name="node2.example.org", fix_networking=False) == []
    assert {host.name for host in network_facts(site.xml()).hosts} == {
        "node2-00.example.org",
        "node2-01.example.org",
    }
    assert site.bridge_index() == before


def test_a_classic_network_is_taken_over_under_its_machines(site: Site) -> None:
    site.engine.define_network(CLASSIC)
    before = site.bridge_index()
    (problem,) = site.ensure(fix_networking=False)
    assert "isn't what Vac needs" in problem
    assert site.ensure() == []
    assert site.bridge_index() == before
    assert site.host.addresses() == BOTH
    assert network_facts(site.xml("--inactive")) == wanted_facts(site.settings)


def test_the_outgoing_interface_is_the_sites_choice(site: Site) -> None:
    site.engine.run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    try:
        assert site.ensure() == []
        assert site.ensure(forward_dev="out0") == []
        assert "-o out0" in site.output("iptables-save", "-t", "nat")
        assert site.ensure() == []
        assert "-o out0" not in site.output("iptables-save", "-t", "nat")
    finally:
        site.engine.run("ip", "link", "delete", "out0")


def test_networks_of_others_are_left_alone(site: Site) -> None:
    site.engine.define_network(OTHERS)
    before = site.engine.virsh("net-dumpxml", "others")
    (problem,) = site.ensure()
    assert "virbr1" in problem
    assert site.engine.virsh("net-dumpxml", "others") == before
    assert NETWORK not in site.engine.virsh("net-list", "--all")


def test_an_interface_of_others_is_left_alone(site: Site) -> None:
    site.engine.run("ip", "link", "add", "virbr1", "type", "bridge")
    try:
        (problem,) = site.ensure()
        assert "virbr1 exists, but isn't that of network" in problem
    finally:
        site.engine.run("ip", "link", "delete", "virbr1")
    assert site.ensure() == []


def test_a_route_that_collides_is_explained(site: Site) -> None:
    site.engine.run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    try:
        site.engine.run("ip", "link", "set", "out0", "up")
        site.engine.run("ip", "route", "add", "169.254.0.0/16", "dev", "out0")
        (problem,) = site.ensure()
        assert "out0" in problem
        assert "NOZEROCONF" in problem
    finally:
        site.engine.run("ip", "link", "delete", "out0")
    assert site.ensure() == []


def test_packet_filter_rules_that_are_missing_are_named(site: Site) -> None:
    assert site.ensure() == []
    assert site.host.missing() == []
    site.engine.run("iptables", "-P", "INPUT", "DROP")
    try:
        (problem,) = site.host.missing()
        assert problem.startswith("tcp port 80 isn't accepted from virbr1")
        site.engine.run(
            "iptables", "-I", "INPUT", "-i", "virbr1", "-p", "tcp", "--dport", "80", "-j", "ACCEPT"
        )
        assert site.host.missing() == []
    finally:
        site.engine.run("iptables", "-P", "INPUT", "ACCEPT")
    site.engine.run("iptables", "-t", "nat", "-F")
    assert [problem.split(":")[0] for problem in site.host.missing()] == [
        "no rule masquerades 169.254.0.0/16"
    ]


def test_creation_waits_with_a_reason_until_the_network_is_right(site: Site) -> None:
    connection = Connection(site.settings.libvirt_uri, "qemu")
    woken: list[bool] = []
    keeper = NetworkKeeper(connection, lambda: woken.append(True), site.host)
    with closing(connection):
        assert keeper.prepare(site.settings) is not None
        wait_for(lambda: woken, "the network is right")
        assert keeper.prepare(site.settings) is None
        site.engine.virsh("net-destroy", NETWORK)
        changed = replace(site.settings, fix_networking=False)
        keeper.prepare(changed)
        wait_for(lambda: keeper.prepare(changed), "the problem is told")
        assert "isn't active" in (keeper.prepare(changed) or "")
        keeper.prepare(site.settings)
        wait_for(lambda: len(woken) == 2, "the network is right again")


UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface && ip route add default via $router
echo "$ip $mask $router $dns $hostname" >"$ANSWER"
"""


class Guest:
    """Something on the bridge that asks for an address as a VM with this MAC does."""

    def __init__(self, site: Site, directory: Path, number: int, mac: str) -> None:
        self.site, self.answer = site, directory / f"answer{number}"
        self.script = directory / "udhcpc"
        self.script.write_text(UDHCPC)
        self.script.chmod(0o755)
        self.tap = f"guest{number}"
        self.process = subprocess.Popen([*site.engine.enter, "unshare", "--net", "sleep", "infinity"])
        own = Path(f"/proc/{self.process.pid}/ns/net")
        others = [(place / "ns/net").readlink() for place in (site.engine.proc, Path("/proc/self"))]
        wait_for(lambda: own.readlink() not in others, "it is apart")
        run = site.engine.run
        run(
            "ip",
            "link",
            "add",
            self.tap,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self.process.pid),
        )
        run("ip", "link", "set", self.tap, "master", "virbr1", "up")
        self.run("ip", "link", "set", "eth0", "address", mac, "up")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.process.pid}", "--net"]
        environment = {**os.environ, "ANSWER": str(self.answer)}
        return subprocess.run(
            [*enter, *command], capture_output=True, text=True, timeout=300, env=environment, check=False
        )

    def dhcp(self) -> list[str]:
        """The answer's words; none if there is no answer."""
        busybox = require_tool("busybox")
        self.run(busybox, "udhcpc", "-i", "eth0", "-n", "-q", "-t", "10", "-T", "1", "-s", str(self.script))
        return self.answer.read_text().split() if self.answer.exists() else []

    def get(self, url: str) -> str:
        return self.run("timeout", "20", "busybox", "wget", "-q", "-O", "-", url).stdout

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def test_guests_get_address_name_and_their_own_pages(site: Site) -> None:
    with tempfile.TemporaryDirectory(prefix="vac-nat-") as name:  # pytest's are for root alone
        directory = Path(name)
        directory.chmod(0o755)
        web = WebSite(directory, site.engine.enter, [b"secret of 0", b"secret of 1"])
        with closing(web):
            for role in ("metadata", "mjf"):
                web.start(role)
            assert site.ensure() == []
            with closing(Guest(site, directory, 1, "56:4d:a9:fe:a9:01")) as guest:
                assert guest.dhcp() == ["169.254.169.1", "16", BOTH[0], BOTH[0], f"{SHORT}-01"]
                assert guest.get("http://169.254.169.254/latest/user-data") == "secret of 1"
                assert guest.get("http://169.254.169.253/jobfeatures/allocated_cpu") == "1"
                site.engine.virsh("net-destroy", NETWORK)
                assert site.ensure() == []
                site.host.attach(guest.tap)
                assert guest.get("http://169.254.169.254/latest/user-data") == "secret of 1"
            with closing(Guest(site, directory, 2, "52:54:00:00:00:01")) as stranger:
                assert stranger.dhcp() == []
