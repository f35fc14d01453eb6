"""Polls of many factories at once, which end as soon as all have answered completely.

Each factory gets a query with its own cookie, repeated at growing intervals while its answer is incomplete. Queries
are sent in bursts whose answers fit into the receive buffer. Nothing waits for the DNS: a factory is queried once its
address is known. Reports are the answers in the terms of vac.scheduling.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  look-ups need it later, when Python's own files may be out of reach
import heapq
import secrets
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Union

from vac.background import BackgroundWork, Outcome, Rest
from vac.config.settings import Settings
from vac.scheduling.backoff import is_abort, says_no_work
from vac.scheduling.model import TypeReport
from vac.vacquery.messages import (
    ANSWER_READ,
    Dropped,
    FactoryStatus,
    Kind,
    MachinetypeStatus,
    Query,
    Reason,
    Received,
    cookie,
    decode_answer,
    encode_query,
    expected,
    part,
)
from vac.vacquery.signed_json import read_key

Address = Union[IPv4Address, IPv6Address]
Lookup = Callable[[str], "tuple[str, ...]"]
RETRY_SECONDS = (0.06, 0.1, 0.2, 0.4, 0.8)
"""Pauses after the last sign of life before a query is repeated; the sixth is the last one."""
FULL_SCALE_SECONDS = 4.0
"""Polls with a shorter timeout make proportionally shorter pauses."""
DOUBTFUL_SECONDS = 1.0
"""Time to wait for doubtful factories."""
BURST_SECONDS = 0.01
"""Longest delay of the next burst by an incompletely answered one."""
TYPICAL_ANSWERS = {Kind.MACHINETYPES: 8, Kind.MACHINES: 32, Kind.FACTORIES: 1}
LEAST_BURST, MOST_BURST = 4, 128
RESOLVE_SECONDS = 0.01
"""Interval between checks of names that aren't resolved yet."""
_SO_RCVBUFFORCE = 33
"""From asm-generic/socket.h."""
BUFFER_BYTES = 8 * 1024 * 1024
DATAGRAM_BYTES = 2304
"""Receive buffer used by a datagram of our size."""
MOST_AT_ONCE = 4096
MOST_BYTES_AT_ONCE = 4 * 1024 * 1024
ADDRESS_SECONDS = 600
"""A name is looked up again after this time, …"""
UNKNOWN_SECONDS = 30
"""… and after this time if it wasn't found."""
LOOKUPS = 16
LOOPBACK = ("127.0.0.1", "::1")


@lru_cache(4096)  # most datagrams come from the same hosts
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
    """Addresses of factories by name, without waiting for a DNS that doesn't answer.

    Names are looked up in the background; callers take what is known and return later for the rest. A known address
    stays valid when its name can't be looked up any more.
    """

    def __init__(
        self, own_name: str = "", find: Lookup = lookup, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """own_name: this host's factory, at loopback whatever the DNS says."""
        self._own_name = own_name
        self._find = find
        self._known: dict[str, tuple[str, ...]] = {own_name: LOOPBACK}
        rest = Rest(ADDRESS_SECONDS, UNKNOWN_SECONDS, UNKNOWN_SECONDS)
        self._work: BackgroundWork[tuple[str, ...]] = BackgroundWork(
            "resolver", self._note, at_once=LOOKUPS, rest=rest, clock=clock
        )

    def request(self, hosts: Iterable[str]) -> None:
        """Look these up in the background unless they are known. Returns at once."""
        for host in hosts:
            if plain_address(host):
                self._known[host] = (host,)
            elif host != self._own_name:
                self._work.start(host, lambda host=host: self._look_up(host))  # type: ignore[misc]

    def known(self, host: str) -> tuple[str, ...]:
        """Return the known addresses of this host, IPv4 before IPv6."""
        return self._known.get(host, ())

    def looking(self, host: str) -> bool:
        """Return True if this name is being looked up."""
        return self._work.busy(host)

    def _look_up(self, host: str) -> tuple[str, ...]:
        addresses = self._find(host)
        if not addresses:
            raise OSError(f"{host} is unknown")
        return addresses

    def _note(self, outcome: Outcome[tuple[str, ...]]) -> None:
        if outcome.value:
            self._known[outcome.key] = outcome.value


@dataclass(frozen=True)
class PollResult:
    """Result of a poll."""

    answers: Mapping[str, tuple[Received, ...]]
    """By factory, sorted by machinetype or machine name; incomplete ones included."""
    complete: frozenset[str]
    """Factories that answered completely."""
    missing: tuple[str, ...]
    """The others, in the order they were given."""
    unresolved: frozenset[str]
    """Missing factories without known address."""
    dropped: Mapping[Reason, int]
    """Numbers of unused datagrams."""
    seconds: float
    """Duration."""
    unusable: Mapping[str, Dropped] = field(default_factory=dict)
    """Last unused datagram by missing factory."""


@dataclass
class _Asked:
    factory: str
    query: Query
    datagram: bytes
    sent: int = 0
    active_time: float = 0.0
    """Time of the last query or answer."""
    parts: dict[str, Received] = field(default_factory=dict)
    complete: bool = False


def enlarge_buffer(receiver: socket.socket) -> int:
    """Request BUFFER_BYTES for what arrives, beyond rmem_max if permitted (root). Return the present size."""
    try:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except OSError:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class UdpTransport:
    """One socket for IPv4, and one for IPv6 when needed."""

    def __init__(self) -> None:
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._poll = select.poll()
        self.capacity = MOST_AT_ONCE
        """Number of answers that can arrive between two calls of receive()."""
        self._socket(socket.AF_INET)

    def send(self, datagram: bytes, address: str, port: int) -> None:
        """Send a datagram, which is lost without a route, IPv6 or a permission."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError):
            self._socket(family).sendto(datagram, (address, port))

    def receive(self, seconds: float) -> list[bytes]:
        """Return what has arrived, waiting for it at most this long."""
        self._poll.poll(max(0.0, seconds) * 1000)
        found: list[bytes] = []
        room = MOST_BYTES_AT_ONCE
        for each in self._sockets.values():
            with contextlib.suppress(OSError):
                while len(found) < MOST_AT_ONCE and room > 0:
                    found.append(each.recv(ANSWER_READ + 1, socket.MSG_DONTWAIT))
                    room -= len(found[-1])
        return found

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        known = self._sockets.get(family)
        if known is None:
            known = self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self.capacity = min(self.capacity, enlarge_buffer(known) // DATAGRAM_BYTES)
            self._poll.register(known, select.POLLIN)
        return known


@dataclass(frozen=True)
class Poll:
    """A query to factories of a space, which can be run any number of times."""

    kind: Kind
    factories: Sequence[str]
    space: str
    names: Resolver
    port: int
    timeout: float
    """Longest duration in seconds, reached only if a factory's answer stays incomplete."""
    key: bytes | None = None
    """Queries are signed with it, and answers must be."""
    client: str = "vacd-factory"

    @classmethod
    def configured(
        cls,
        settings: Settings,
        kind: Kind,
        names: Resolver,
        factories: Sequence[str],
        client: str = "vacd-factory",
    ) -> Poll:
        """Return the poll of these factories as configured. Raises OSError if the key can't be read."""
        key = read_key(settings.vacquery_key_file)
        port, timeout = settings.vacquery_port, settings.udp_timeout_seconds
        return cls(kind, factories, settings.vac_space, names, port, timeout, key, client)

    def run(
        self,
        doubtful: Collection[str] = (),
        transport: UdpTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> PollResult:
        """Query the factories. Doubtful ones, such as those silent in the last poll, are waited for less.

        clock and now return monotonic and Unix seconds. The transport is closed in the end.
        """
        with contextlib.closing(transport or UdpTransport()) as opened:
            return _Run(self, doubtful, opened, clock, now).run()


class _Run:
    """One run of a poll."""

    def __init__(
        self,
        poll: Poll,
        doubtful: Collection[str],
        transport: UdpTransport,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._poll = poll
        self._factories = tuple(dict.fromkeys(poll.factories))
        self._waited_for = set(self._factories).difference(doubtful)
        self._transport = transport
        self._clock = clock
        self._now = now
        self._pauses = [pause * min(1.0, poll.timeout / FULL_SCALE_SECONDS) for pause in RETRY_SECONDS]
        self._last_silent_pause = poll.timeout / 2 - sum(self._pauses[:-1])
        self._asked: dict[str, _Asked] = {}
        self._cookies: dict[str, str] = {}
        self._due: list[tuple[float, str]] = []
        self._unresolved = dict.fromkeys(self._factories)
        self._burst: set[str] = set()
        self._burst_end = 0.0
        self._resolve_time = 0.0
        self._incomplete = len(self._factories)
        self._dropped: Counter[Reason] = Counter()
        self._unusable: dict[str, Dropped] = {}

    def run(self) -> PollResult:
        start = self._clock()
        end = start + self._poll.timeout
        self._prepare(start)
        most = self._transport.capacity // TYPICAL_ANSWERS[self._poll.kind]
        most = max(LEAST_BURST, min(MOST_BURST, most))
        at = start
        while self._incomplete:
            last = end if self._waited_for else min(end, start + DOUBTFUL_SECONDS)
            if at >= last:
                break
            self._resolve(at)
            self._send(most, at)
            arrived = self._transport.receive(min(self._next_time(at), last) - at)
            at = self._clock()
            for data in arrived:
                self._take(data, at)
        return self._result(self._clock() - start)

    def _prepare(self, start: float) -> None:
        poll, salt, now = self._poll, secrets.token_hex(16), self._now()
        for factory in self._factories:
            tie = cookie(salt, factory)
            query = Query(poll.kind, poll.space, tie, poll.client)
            self._cookies[tie] = factory
            self._asked[factory] = _Asked(factory, query, encode_query(query, now, poll.key))
        poll.names.request(self._factories)
        self._resolve_time = start

    def _resolve(self, at: float) -> None:
        """Schedule queries to factories whose addresses have become known."""
        if not self._unresolved or at < self._resolve_time:
            return
        self._resolve_time = at + RESOLVE_SECONDS
        for factory in [factory for factory in self._unresolved if self._poll.names.known(factory)]:
            del self._unresolved[factory]
            heapq.heappush(self._due, (at, factory))

    def _send(self, most: int, at: float) -> None:
        """Send the queries that are due, unless the last burst is still to be answered."""
        if self._burst and at < self._burst_end:
            return
        self._burst.clear()
        while self._due and self._due[0][0] <= at and len(self._burst) < most:
            asked = self._asked[heapq.heappop(self._due)[1]]
            due = self._due_time(asked)
            if asked.complete or due is None:
                continue
            if due > at:
                heapq.heappush(self._due, (due, asked.factory))
                continue
            addresses = self._poll.names.known(asked.factory)
            if asked.sent and self._poll.key is not None:
                asked.datagram = encode_query(asked.query, self._now(), self._poll.key)
            address = addresses[asked.sent // 2 % len(addresses)]
            self._transport.send(asked.datagram, address, self._poll.port)
            asked.sent += 1
            asked.active_time = at
            self._burst.add(asked.factory)
            self._burst_end = at + BURST_SECONDS
            again = self._due_time(asked)
            if again is not None:
                heapq.heappush(self._due, (again, asked.factory))

    def _due_time(self, asked: _Asked) -> float | None:
        """Return the time of the next query to this factory if nothing arrives from it; None: no more."""
        if asked.sent == 0:
            return 0.0
        if asked.sent > len(self._pauses):
            return None
        silent_for_long = asked.sent == len(self._pauses) and not asked.parts
        pause = self._last_silent_pause if silent_for_long else self._pauses[asked.sent - 1]
        return asked.active_time + pause

    def _next_time(self, at: float) -> float:
        """Return the time at which there may be something to send."""
        times = [self._due[0][0]] if self._due else [at + self._poll.timeout]
        if self._burst:
            times = [max(times[0], self._burst_end)]
        if self._unresolved:
            times.append(self._resolve_time)
        return min(times)

    def _take(self, data: bytes, at: float) -> None:
        poll = self._poll
        received = decode_answer(data, poll.kind, poll.space, self._cookies, self._now(), poll.key)
        if not isinstance(received, Received):
            self._dropped[received.reason] += 1
            self._unusable[received.factory] = received
            return
        asked = self._asked[received.status.factory]
        if asked.complete:
            return
        asked.active_time = at
        asked.parts[part(received.status)] = received
        if len(asked.parts) >= expected(received.status):
            asked.complete = True
            self._incomplete -= 1
            self._burst.discard(asked.factory)
            self._waited_for.discard(asked.factory)

    def _result(self, seconds: float) -> PollResult:
        answers = {
            factory: tuple(asked.parts[name] for name in sorted(asked.parts))
            for factory, asked in self._asked.items()
            if asked.parts
        }
        complete = frozenset(asked.factory for asked in self._asked.values() if asked.complete)
        missing = tuple(factory for factory in self._factories if factory not in complete)
        unresolved = frozenset(self._unresolved)
        unusable = {factory: self._unusable[factory] for factory in missing if factory in self._unusable}
        return PollResult(answers, complete, missing, unresolved, dict(self._dropped), seconds, unusable)


def to_reports(
    answers: Mapping[str, Iterable[Received]], machinetypes: Collection[str]
) -> tuple[dict[str, dict[str, TypeReport]], int]:
    """Return reports by factory and configured machinetype, and the number of answers about other machinetypes."""
    reports: dict[str, dict[str, TypeReport]] = {}
    unknown = 0
    for factory, received in answers.items():
        mine = reports.setdefault(factory, {})
        for answer in received:
            status = answer.status
            if isinstance(status, MachinetypeStatus) and status.machinetype in machinetypes:
                mine[status.machinetype] = to_report(status)
            else:
                unknown += 1
    return reports, unknown


def to_report(status: MachinetypeStatus) -> TypeReport:
    """Return one factory's report about one machinetype."""
    aborted = status.shutdown_time if is_abort(status.shutdown_message) else None
    return TypeReport(
        running_machines=status.running_machines,
        running_processors=int(status.running_processors),
        running_hs06=status.running_hs06,
        before_fizzle=status.num_before_fizzle,
        abort_time=None if aborted is None else float(aborted),
        no_work=aborted is not None and says_no_work(status.shutdown_message),
    )


def capacities(answers: Mapping[str, Iterable[Received]]) -> tuple[dict[str, float], frozenset[str]]:
    """Return each factory's HS06, and the factories without configured HS06, where each processor counts as 1."""
    found = {
        factory: answer.status
        for factory, received in answers.items()
        for answer in received
        if isinstance(answer.status, FactoryStatus)
    }
    without_hs06 = frozenset(factory for factory, one in found.items() if one.max_hs06 == one.max_processors)
    return {factory: one.max_hs06 for factory, one in found.items()}, without_hs06
