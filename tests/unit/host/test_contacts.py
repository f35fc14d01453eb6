"""Remote ends of connections, from tables as the kernel writes them (recorded)."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from vac.host import contacts
from vac.host.contacts import Contact, contacts_of, contacts_within, host_addresses, sockets, tracked

TABLES = Path(__file__).parents[2] / "data/proc_net"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc whose network name space, and that of process 7, has these tables."""
    for directory in (tmp_path / "net", tmp_path / "7/net"):
        shutil.copytree(TABLES, directory)
    monkeypatch.setattr(contacts, "PROC", tmp_path)
    return tmp_path


def test_remote_ends_are_told_with_the_port_that_says_which_service(proc: Path) -> None:
    assert list(sockets(proc / "net")) == [
        (12, Contact("tcp", "10.0.2.10", 0x9193, incoming=True)),
        (13, Contact("tcp", "192.168.0.2", 0x9193, incoming=False)),
        (0, Contact("tcp", "192.168.0.3", 443, incoming=False)),
        (15, Contact("tcp", "::1", 0x8ED9, incoming=True)),
        (16, Contact("tcp", "127.0.0.1", 0x8ED9, incoming=True)),
        (17, Contact("tcp", "2001:db8::1", 443, incoming=False)),
        (18, Contact("udp", "8.8.8.8", 53, incoming=False)),
    ]


def test_in_a_name_space_of_its_own_what_a_machine_says_to_itself_is_left_out(proc: Path) -> None:
    addresses = {contact.address for contact in contacts_within(7)}
    assert addresses == {"10.0.2.10", "192.168.0.2", "192.168.0.3", "2001:db8::1", "8.8.8.8"}
    assert not contacts_within(8), "it has gone"


def test_in_a_shared_name_space_sockets_are_told_apart_by_who_holds_them(proc: Path) -> None:
    holders = {7: ["socket:[12]", "/dev/null", "socket:[999]"], 9: ["socket:[17]"], 10: ["socket:[18]"]}
    for process, targets in holders.items():
        (proc / f"{process}/fd").mkdir(parents=True)
        for number, target in enumerate(targets):
            (proc / f"{process}/fd/{number}").symlink_to(target)
    by_inode = dict(sockets(proc / "net"))
    found = contacts_of([7, 8, 9], by_inode)
    assert {contact.address for contact in found} == {"10.0.2.10", "2001:db8::1"}


def test_a_machine_with_too_many_descriptors_holds_up_nobody(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contacts, "MOST_DESCRIPTORS", 3)
    for process in (7, 9):
        (proc / f"{process}/fd").mkdir(parents=True)
        for number in range(2):
            (proc / f"{process}/fd/{number}").symlink_to(f"socket:[{process}{number}]")
    everything = {inode: Contact("tcp", "192.0.2.1", inode, incoming=False) for inode in (70, 71, 90, 91)}
    assert len(contacts_of([7, 9], everything)) == 3


def test_own_connections_are_found_for_real() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
        found = contacts_of([os.getpid()], dict(sockets()))
    assert Contact("tcp", "127.0.0.1", port, incoming=False) in found


def test_addresses_of_the_host(proc: Path, tmp_path: Path) -> None:
    assert host_addresses(proc) == ["192.0.2.2", "fd00::2"]
    assert host_addresses(tmp_path / "absent") == []


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
