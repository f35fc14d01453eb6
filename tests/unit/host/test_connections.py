"""Remote ends of connections, from tables as the kernel writes them (recorded)."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from vac.host import connections
from vac.host.connections import (
    REST,
    SHORTEST_SECONDS,
    Contact,
    Sampling,
    connected_networks,
    contacts_by_group,
    contacts_within,
    host_addresses,
    sockets,
    tracked,
)

TABLES = Path(__file__).parents[2] / "data/proc_net"
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth1\t0000000A\t010200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0
virbr1\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
ROUTES_V6 = "\n".join(
    f"{address} {length} {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 {flags} {interface:>8}"
    for address, length, flags, interface in (
        ("20010db8000000000000000000000000", "40", "00000001", "eth0"),
        ("fe800000000000000000000000000000", "40", "00000001", "eth0"),
        ("00000000000000000000000000000000", "00", "00000003", "eth0"),
        ("20010db8000100000000000000000000", "40", "00000003", "eth0"),
        ("20010db8000000000000000000000002", "80", "80200001", "eth0"),
        ("00000000000000000000000000000001", "80", "80200001", "lo"),
        ("ff000000000000000000000000000000", "08", "00000001", "eth0"),
    )
)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc whose network name space, and that of process 7, has these tables."""
    for directory in (tmp_path / "net", tmp_path / "7/net"):
        shutil.copytree(TABLES, directory)
    monkeypatch.setattr(connections, "PROC", tmp_path)
    return tmp_path


def test_remote_ends_have_the_port_of_the_service(proc: Path) -> None:
    assert list(sockets(proc / "net")) == [
        (12, Contact("tcp", "10.0.2.10", 0x9193, incoming=True)),
        (13, Contact("tcp", "192.168.0.2", 0x9193, incoming=False)),
        (0, Contact("tcp", "192.168.0.3", 443, incoming=False)),
        (15, Contact("tcp", "::1", 0x8ED9, incoming=True)),
        (16, Contact("tcp", "127.0.0.1", 0x8ED9, incoming=True)),
        (17, Contact("tcp", "2001:db8::1", 443, incoming=False)),
        (18, Contact("udp", "8.8.8.8", 53, incoming=False)),
    ]


def test_a_machines_own_loopback_is_left_out(proc: Path) -> None:
    addresses = {contact.address for contact in contacts_within(7)}
    assert addresses == {"10.0.2.10", "192.168.0.2", "192.168.0.3", "2001:db8::1", "8.8.8.8"}
    assert not contacts_within(8), "it has gone"


def test_sockets_in_a_shared_namespace_are_their_holders(proc: Path) -> None:
    holders = {7: ["socket:[12]", "/dev/null", "socket:[999]"], 9: ["socket:[17]"], 10: ["socket:[18]"]}
    for process, targets in holders.items():
        (proc / f"{process}/fd").mkdir(parents=True)
        for number, target in enumerate(targets):
            (proc / f"{process}/fd/{number}").symlink_to(target)
    found = contacts_by_group({"m0": [7, 8, 9], "m1": []})
    assert found["m1"] == frozenset()
    assert {contact.address for contact in found["m0"]} == {"10.0.2.10", "2001:db8::1"}


def test_a_machine_with_too_many_descriptors_holds_up_nobody(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_DESCRIPTORS", 3)
    for process in (7, 9):
        (proc / f"{process}/fd").mkdir(parents=True)
        for number in range(2):
            (proc / f"{process}/fd/{number}").symlink_to(f"socket:[{process}{number}]")
    everything = [(inode, Contact("tcp", "192.0.2.1", inode, incoming=False)) for inode in (70, 71, 90, 91)]
    monkeypatch.setattr(connections, "sockets", lambda net: everything)
    assert len(contacts_by_group({"m0": [7, 9]})["m0"]) == 3


def test_own_connections_are_found_for_real() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
        found = contacts_by_group({"m0": [os.getpid()]})["m0"]
    assert Contact("tcp", "127.0.0.1", port, incoming=False) in found


def test_addresses_of_the_host(proc: Path, tmp_path: Path) -> None:
    assert host_addresses(proc) == ["192.0.2.2", "fd00::2"]
    assert host_addresses(tmp_path / "absent") == []


def test_connected_networks_have_no_gateway_and_are_not_link_local(tmp_path: Path) -> None:
    assert connected_networks(tmp_path) == ()
    (tmp_path / "route").write_text(ROUTES)
    (tmp_path / "ipv6_route").write_text(ROUTES_V6)
    assert [str(network) for network in connected_networks(tmp_path)] == ["192.0.2.0/24", "2001:db8::/64"]


def test_virtual_machines_are_seen_by_connection_tracking(tmp_path: Path) -> None:
    addresses = {"u1": "169.254.169.1", "u2": "169.254.169.2"}
    assert tracked(addresses, tmp_path / "absent") == {}, "where the kernel doesn't track connections"
    assert tracked(addresses, TABLES / "nf_conntrack") == {
        "u1": {
            Contact("tcp", "10.9.0.1", 8080, incoming=False),
            Contact("udp", "8.8.8.8", 53, incoming=False),
            Contact("tcp", "192.0.2.9", 2222, incoming=True),
        },
        "u2": frozenset(),
    }


SOMEBODY = Contact("tcp", "192.0.2.1", 443, incoming=False)


def test_sampling_takes_a_small_share_of_the_time() -> None:
    now, looks = 100.0, 0
    sampling = Sampling(lambda: now)

    def look() -> dict[str, frozenset[Contact]]:
        nonlocal now, looks
        now, looks = now + 2.0, looks + 1
        return {"u": frozenset([SOMEBODY])}

    assert sampling.sample(look) == {"u": {SOMEBODY}}
    now += REST * 2.0 - 0.1
    assert sampling.sample(look) == {}
    now += 0.1
    assert sampling.sample(look)
    assert looks == 2


def test_what_cannot_be_seen_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    sampling = Sampling(lambda: now)

    def look() -> dict[str, frozenset[Contact]]:
        raise PermissionError("not allowed")

    caplog.set_level("INFO")
    assert sampling.sample(look) == sampling.sample(look) == {}
    assert [record.message for record in caplog.records] == [
        "cannot sample the connections of machines: not allowed"
    ]
    now += SHORTEST_SECONDS
    assert sampling.sample(lambda: {"u": frozenset()}) == {"u": frozenset()}
