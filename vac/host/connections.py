"""Networks of this host, and remote ends of its processes' and VMs' connections, as the kernel lists them now.

The tables are proc_net(5)'s tcp, tcp6, udp, udp6, route and ipv6_route, and for VMs behind NAT connection tracking's
nf_conntrack (the kernel's net/netfilter/nf_conntrack_standalone.c: protocol, timeout, state, then source and
destination as the first packet had them, then as replies have them). Packets of a socket that isn't connected (most
UDP) and connections that came and went between two looks are not in them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Callable, NamedTuple, Union

from vac.host.cgroups import CgroupError

Network = Union[IPv4Network, IPv6Network]
PROC = Path("/proc")
MOST_DESCRIPTORS = 20_000
"""Read per machine: one that has more must not hold up the others."""
SHORTEST_SECONDS = 10.0
"""Shortest time from one sample of connections to the next."""
REST = 20
"""A sample is followed by a pause of at least so many times its duration."""
_TABLES = ("tcp", "tcp6", "udp", "udp6")
_LISTENING = "0A"
_FIELDS = 10
_NOBODY = frozenset(["0.0.0.0", "::"])
_ROUTE_UP, _ROUTE_GATEWAY, _ROUTE_REJECT = 0x1, 0x2, 0x200
_TRACKED = re.compile(r"ipv[46] +\d+ (tcp|udp) .*?src=(\S+) dst=(\S+) sport=\d+ dport=(\d+) .*?src=(\S+) ")

_log = logging.getLogger(__name__)


class Contact(NamedTuple):
    """Remote end of connections of a machine."""

    protocol: str
    """tcp or udp."""
    address: str
    port: int
    """The remote port; of incoming connections the machine's own, to which they were made."""
    incoming: bool


class _Socket(NamedTuple):
    local_port: int
    address: str
    port: int
    state: str
    inode: int


class Sampling:
    """Limits the sampling of connections to a small share of the time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_time = clock()

    def sample(
        self, look: Callable[[], Mapping[str, frozenset[Contact]]]
    ) -> Mapping[str, frozenset[Contact]]:
        """Return what look returns if a sample is due, else nothing. Its failures are only logged."""
        begun_time = self._clock()
        if begun_time < self._next_time:
            return {}
        try:
            return look()
        except (OSError, CgroupError) as error:
            _log.info("cannot sample the connections of machines: %s", error)
            return {}
        finally:
            now = self._clock()
            self._next_time = now + max(SHORTEST_SECONDS, REST * (now - begun_time))


def sockets(net: Path) -> Iterator[tuple[int, Contact]]:
    """Yield inode (0 if no process holds it any more) and contact of all connected sockets of one network name space.

    net: the directory of the tables; one that isn't there counts as empty. Raises OSError if one can't be read.
    """
    for table in _TABLES:
        try:
            lines = (net / table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        found = [_parse(fields) for fields in map(str.split, lines) if len(fields) >= _FIELDS]
        served = {each.local_port for each in found if each.state == _LISTENING}
        for each in found:
            if each.state != _LISTENING and each.port and each.address not in _NOBODY:
                incoming = each.local_port in served
                port = each.local_port if incoming else each.port
                yield each.inode, Contact(table.rstrip("6"), each.address, port, incoming)


def contacts_within(pid: int) -> frozenset[Contact]:
    """Return the contacts in the network name space of this process, but for its own loopback. Raises OSError."""
    found = (contact for _, contact in sockets(PROC / str(pid) / "net"))
    return frozenset(contact for contact in found if not ip_address(contact.address).is_loopback)


def contacts_by_group(groups: Mapping[str, Iterable[int]]) -> Mapping[str, frozenset[Contact]]:
    """Return contacts, by key, of groups of processes in the host's own network name space. Raises OSError."""
    by_inode = dict(sockets(PROC / "net"))
    found = {}
    for key, processes in groups.items():
        opened = (target for process in processes for _, target in open_files(process))
        targets = (each for each in itertools.islice(opened, MOST_DESCRIPTORS) if each.startswith("socket:["))
        inodes = {int(target[8:-1]) for target in targets}
        found[key] = frozenset(by_inode[inode] for inode in inodes & by_inode.keys())
    return found


def tracked(
    addresses: Mapping[str, str], table: Path = PROC / "net/nf_conntrack"
) -> dict[str, frozenset[Contact]]:
    """Return contacts of the VMs with these addresses, by the same keys; none where the kernel has no such table.

    Raises OSError if it can't be read.
    """
    found: dict[str, set[Contact]] = {address: set() for address in addresses.values()}
    try:
        lines = table.read_text().splitlines()
    except FileNotFoundError:
        return {}
    for match in filter(None, map(_TRACKED.match, lines)):
        protocol, source, destination, port, answering = match.groups()
        if source in found:
            found[source].add(Contact(protocol, destination, int(port), incoming=False))
        if answering in found:
            found[answering].add(Contact(protocol, source, int(port), incoming=True))
    return {key: frozenset(found[address]) for key, address in addresses.items()}


def host_addresses(proc: Path = PROC) -> list[str]:
    """Return this host's own addresses, but for loopback and link-local ones; from net/fib_trie and net/if_inet6."""
    found, last = [], ""
    with contextlib.suppress(OSError):
        for line in (proc / "net/fib_trie").read_text().splitlines():
            words = line.split()
            if words[-2:] == ["host", "LOCAL"]:
                found.append(last)
            last = words[-1] if words else ""
    with contextlib.suppress(OSError):
        for line in (proc / "net/if_inet6").read_text().splitlines():
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])))
    addresses = map(ip_address, dict.fromkeys(found))
    return [str(each) for each in addresses if not each.is_loopback and not each.is_link_local]


def connected_networks(net: Path = Path("/proc/net")) -> tuple[Network, ...]:
    """Return networks that this host reaches without a gateway, but for link-local ones (also the VMs' own)."""
    networks = [*_networks_v4(_table(net / "route")), *_networks_v6(_table(net / "ipv6_route"))]
    return tuple(dict.fromkeys(network for network in networks if not network.is_link_local))


def open_files(process: int) -> Iterator[tuple[str, str]]:
    """Yield the paths in /proc of the process's first descriptors (MOST_DESCRIPTORS), and what they link to."""
    with contextlib.suppress(OSError), os.scandir(PROC / str(process) / "fd") as entries:
        for entry, _ in zip(entries, range(MOST_DESCRIPTORS)):
            target = ""
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)  # noqa: PTH115  twice as fast
            yield entry.path, target


def _parse(fields: list[str]) -> _Socket:
    address, port = fields[2].split(":")
    return _Socket(
        int(fields[1].split(":")[1], 16), _address(address), int(port, 16), fields[3], int(fields[9])
    )


def _address(words: str) -> str:
    """Return an address from the kernel's 32-bit words in hex, each in the host's byte order."""
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    mapped = packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed
    return socket.inet_ntop(socket.AF_INET if len(mapped) == 4 else socket.AF_INET6, mapped)


def _networks_v4(routes: str) -> list[Network]:
    found: list[Network] = []
    for line in routes.splitlines()[1:]:
        columns = line.split()
        flags = int(columns[3], 16)
        address, mask = (socket.ntohl(int(columns[index], 16)) for index in (1, 7))
        if flags & _ROUTE_UP and not flags & (_ROUTE_GATEWAY | _ROUTE_REJECT) and mask:
            found.append(IPv4Network((IPv4Address(address & mask), f"{mask:b}".count("1"))))
    return found


def _networks_v6(routes: str) -> list[Network]:
    found: list[Network] = []
    for line in routes.splitlines():
        columns = line.split()
        address, length, flags = (
            IPv6Address(bytes.fromhex(columns[0])),
            int(columns[1], 16),
            int(columns[8], 16),
        )
        usable = flags & _ROUTE_UP and not flags & (_ROUTE_GATEWAY | _ROUTE_REJECT)
        if usable and 0 < length < 128 and columns[9] != "lo" and not address.is_multicast:
            found.append(IPv6Network((address, length), strict=False))
    return found


def _table(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
