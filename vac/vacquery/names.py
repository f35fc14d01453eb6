"""Names of factories to addresses, without ever waiting for a DNS that doesn't answer.

A few threads look names up; whoever asks takes what is known and comes back later for the rest. An address is
kept when its name can't be looked up any more.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  names need it later, when the interpreter's own files may be out of reach
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from vac.vacquery.access import plain_address

log = logging.getLogger(__name__)

Lookup = Callable[[str], "tuple[str, ...]"]
KEEP_SECONDS = 600
RETRY_SECONDS = 30
THREADS = 16
LOOPBACK = ("127.0.0.1", "::1")


class Names(Protocol):
    """Addresses by name, as far as they are known yet."""

    def request(self, hosts: Iterable[str]) -> None:
        """Look these up in the background, unless they are known. Returns at once."""

    def known(self, host: str) -> tuple[str, ...]:
        """The addresses of this host, IPv4 before IPv6; none if they are not known (yet)."""

    def looking(self, host: str) -> bool:
        """Is this name being looked up right now?"""


def lookup(host: str) -> tuple[str, ...]:
    """Ask the system's resolver: IPv4 addresses first, none if there is no such name. May take long."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in ordered))


@dataclass
class _Entry:
    addresses: tuple[str, ...] = ()
    due: float = 0.0
    asked: bool = False


class Resolver:
    """Names with a cache; its threads start with the first look-up and don't keep the process alive."""

    def __init__(
        self, own_name: str = "", find: Lookup = lookup, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """own_name: this host's factory, which is at loopback whatever the DNS says."""
        self._find = find
        self._clock = clock
        self._entries = {own_name: _Entry(LOOPBACK, due=math.inf)}
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def request(self, hosts: Iterable[str]) -> None:
        """See Names.request."""
        now = self._clock()
        with self._lock:
            for host in hosts:
                entry = self._entries.setdefault(host, _Entry())
                if plain_address(host):
                    entry.addresses = (host,)
                elif not entry.asked and now >= entry.due:
                    entry.asked = True
                    self._wanted.put(host)
                    self._start_thread()

    def known(self, host: str) -> tuple[str, ...]:
        """See Names.known."""
        with self._lock:
            entry = self._entries.get(host)
            return entry.addresses if entry else ()

    def looking(self, host: str) -> bool:
        """See Names.looking."""
        with self._lock:
            entry = self._entries.get(host)
            return entry is not None and entry.asked

    def _start_thread(self) -> None:
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._work, name="resolver", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            host = self._wanted.get()
            addresses = self._find(host)
            with self._lock:
                entry = self._entries[host]
                if addresses:
                    entry.addresses = addresses
                entry.due = self._clock() + (KEEP_SECONDS if addresses else RETRY_SECONDS)
                entry.asked = False
