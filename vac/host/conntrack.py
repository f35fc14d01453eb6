"""Whom virtual machines behind this host's NAT talk to, by the kernel's connection tracking.

The form of /proc/net/nf_conntrack is that of the kernel's net/netfilter/nf_conntrack_standalone.c: protocol, timeout,
state, then source and destination as the first packet had them, then as replies have them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vac.host.connections import Contact

TABLE = Path("/proc/net/nf_conntrack")
_LINE = re.compile(r"ipv[46] +\d+ (tcp|udp) .*?src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+) .*?src=(\S+) ")


def tracked(addresses: Mapping[str, str], table: Path = TABLE) -> dict[str, frozenset[Contact]]:
    """Contacts of the machines with these addresses, by the same keys; none where the kernel has no such table.

    Raises OSError if it can't be read.
    """
    found: dict[str, set[Contact]] = {address: set() for address in addresses.values()}
    try:
        lines = table.read_text().splitlines()
    except FileNotFoundError:
        return {}
    for protocol, source, destination, _, port, answering in filter(None, map(_fields, lines)):
        if source in found:
            found[source].add(Contact(protocol, destination, int(port), incoming=False))
        if answering in found:
            found[answering].add(Contact(protocol, source, int(port), incoming=True))
    return {key: frozenset(found[address]) for key, address in addresses.items()}


def _fields(line: str) -> tuple[str, ...]:
    match = _LINE.match(line)
    return match.groups() if match else ()
