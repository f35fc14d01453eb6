"""Addresses of factories, without waiting for a DNS that doesn't answer.

Names are looked up in the background; callers take what is known and return later for the rest. A known address stays
valid when its name can't be looked up any more.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  look-ups need it later, when Python's own files may be out of reach
import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol, Union

from vac.background import BackgroundWork, Outcome, Rest

Address = Union[IPv4Address, IPv6Address]
Lookup = Callable[[str], "tuple[str, ...]"]
KEEP_SECONDS = 600
RETRY_SECONDS = 30
THREADS = 16
LOOPBACK = ("127.0.0.1", "::1")


class Names(Protocol):
    """Addresses by name, as far as they are known."""

    def request(self, hosts: Iterable[str]) -> None:
        """Look these up in the background unless they are known. Returns at once."""

    def known(self, host: str) -> tuple[str, ...]:
        """Return the known addresses of this host, IPv4 before IPv6."""

    def looking(self, host: str) -> bool:
        """Return True if this name is being looked up."""


def plain_address(host: str) -> Address | None:
    """Return an address without scope, a mapped one as IPv4; None for a name."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def lookup(host: str) -> tuple[str, ...]:
    """Return a host's addresses from the system's resolver, IPv4 first, none if it is unknown. Blocks."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in ordered))


class Resolver:
    """Names with a cache."""

    def __init__(
        self, own_name: str = "", find: Lookup = lookup, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """own_name: this host's factory, at loopback whatever the DNS says."""
        self._own_name = own_name
        self._find = find
        self._known: dict[str, tuple[str, ...]] = {own_name: LOOPBACK}
        rest = Rest(KEEP_SECONDS, RETRY_SECONDS, RETRY_SECONDS)
        self._work: BackgroundWork[tuple[str, ...]] = BackgroundWork(
            "resolver", self._note, at_once=THREADS, rest=rest, clock=clock
        )

    def request(self, hosts: Iterable[str]) -> None:
        """See Names."""
        for host in hosts:
            if plain_address(host):
                self._known[host] = (host,)
            elif host != self._own_name:
                self._work.start(host, lambda host=host: self._look_up(host))  # type: ignore[misc]

    def known(self, host: str) -> tuple[str, ...]:
        """See Names."""
        return self._known.get(host, ())

    def looking(self, host: str) -> bool:
        """See Names."""
        return self._work.busy(host)

    def _look_up(self, host: str) -> tuple[str, ...]:
        addresses = self._find(host)
        if not addresses:
            raise OSError(f"{host} is unknown")
        return addresses

    def _note(self, outcome: Outcome[tuple[str, ...]]) -> None:
        if outcome.value:
            self._known[outcome.key] = outcome.value
