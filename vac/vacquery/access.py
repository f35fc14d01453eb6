"""Who may query: the space's factories, this host, vacquery_allow or else the directly connected networks.

A small query has answers of many kilobytes: to anyone else a responder is silent, so that it can't be used to
flood others from spoofed addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Union

from vac.host.connections import Network

Address = Union[IPv4Address, IPv6Address]
MOST_REMEMBERED = 10_000
"""Of sources whose admission is kept: spoofed floods must not fill the memory."""
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def plain_address(host: str) -> Address | None:
    """The address that a socket gives, without scope, as IPv4 if it's a mapped one; None if it is none."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks as vacquery_allow lists them; what isn't one is left out."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(networks)


class AccessList:
    """A set of addresses and networks, fast to ask about the same sources again and again."""

    def __init__(self, addresses: Iterable[str] = (), networks: Iterable[Network] = ()) -> None:
        self._addresses = frozenset(filter(None, map(plain_address, addresses)))
        self._networks = (*_LOOPBACK, *networks)
        self._known: dict[str, bool] = {}

    def allows(self, host: str) -> bool:
        """May this source address, as recvfrom gives it, have an answer?"""
        allowed = self._known.get(host)
        if allowed is None:
            allowed = self._decide(host)
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[host] = allowed
        return allowed

    def _decide(self, host: str) -> bool:
        address = plain_address(host)
        if address is None:
            return False
        return address in self._addresses or any(address in network for network in self._networks)

    def same(self, other: AccessList) -> bool:
        """Do both allow the same sources?"""
        return (self._addresses, self._networks) == (other._addresses, other._networks)
