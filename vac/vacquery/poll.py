"""Asking many factories at once and having done as soon as all have answered in full.

Each factory gets a query with its own cookie; those whose answers are incomplete are asked again, soon at
first and then at growing intervals. Queries go out in bursts whose answers fit into the receive buffer.
Nothing waits for the DNS: a factory is asked when its address is known.
"""

from __future__ import annotations

import contextlib
import heapq
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vac.vacquery.messages import (
    Dropped,
    Kind,
    Query,
    Reason,
    Received,
    cookie,
    decode_answer,
    encode_query,
    expected,
    part,
)
from vac.vacquery.names import Names
from vac.vacquery.sockets import Transport, UdpTransport

RETRY_SECONDS = (0.06, 0.1, 0.2, 0.4, 0.8)
"""Pauses after the last sign of life before a factory is asked again: the sixth query is the last one."""
FULL_SCALE_SECONDS = 4.0
"""Polls with a shorter time limit make shorter pauses in proportion."""
DOUBTFUL_SECONDS = 1.0
"""Factories that are called doubtful are waited for this long."""
BURST_SECONDS = 0.01
"""A burst that isn't fully answered holds up the next one for so long."""
TYPICAL_ANSWERS = {Kind.MACHINETYPES: 8, Kind.MACHINES: 32, Kind.FACTORIES: 1}
LEAST_BURST, MOST_BURST = 4, 128
RESOLVE_SECONDS = 0.01
"""How often names that aren't resolved yet are asked about."""
DECODED_AT_ONCE = 64
"""Datagrams decoded before the socket is emptied again."""
MOST_BACKLOG_BYTES = 4 * 1024 * 1024
"""With more than this still to be decoded, a poll leaves what comes to the kernel, which drops what is too much."""


@dataclass(frozen=True)
class PollResult:
    """What a poll has brought."""

    answers: Mapping[str, tuple[Received, ...]]
    """By factory that answered anything, in order of machinetype or machine name."""
    complete: frozenset[str]
    """Factories that answered in full."""
    missing: tuple[str, ...]
    """The others, in the order they were given."""
    unresolved: frozenset[str]
    """Those of the missing ones whose address isn't known."""
    dropped: Mapping[Reason, int]
    """Datagrams that came and were not used."""
    seconds: float
    """How long it took."""
    unusable: Mapping[str, Dropped] = field(default_factory=dict)
    """By missing factory: why what came from it last was not used, if anything was not."""


@dataclass
class _Asked:
    factory: str
    query: bytes
    sent: int = 0
    active_time: float = 0.0
    """When it was last asked, or last answered."""
    parts: dict[str, Received] = field(default_factory=dict)
    expected: int = 1
    complete: bool = False


class Clock(Protocol):
    """Seconds that only grow."""

    def __call__(self) -> float:
        """Now."""


def poll(
    factories: Iterable[str],
    kind: Kind,
    space: str,
    *,
    names: Names,
    port: int,
    timeout: float,
    key: bytes | None = None,
    client: str = "vacd-factory",
    doubtful: Collection[str] = (),
    transport: Transport | None = None,
    clock: Clock = time.monotonic,
    now: Callable[[], float] = time.time,
) -> PollResult:
    """Ask these factories of the space.

    It takes timeout seconds at most, and that long only if a factory doesn't answer in full: one that isn't
    doubtful, as those that were silent the last time may be called. A key signs the queries and is then
    required of the answers. clock and now tell monotonic and Unix seconds.
    """
    with contextlib.ExitStack() as stack:
        if transport is None:
            transport = stack.enter_context(contextlib.closing(UdpTransport()))
        running = _Poll(tuple(dict.fromkeys(factories)), kind, space, names, port, timeout, key, client)
        running.waited_for.difference_update(doubtful)
        return running.run(transport, clock, now)


class _Poll:
    def __init__(
        self,
        factories: Sequence[str],
        kind: Kind,
        space: str,
        names: Names,
        port: int,
        timeout: float,
        key: bytes | None,
        client: str,
    ) -> None:
        self._factories = factories
        self._kind = kind
        self._space = space
        self._names = names
        self._port = port
        self._timeout = timeout
        self._key = key
        self._client = client
        self._pauses = [pause * min(1.0, timeout / FULL_SCALE_SECONDS) for pause in RETRY_SECONDS]
        self._last_silent_pause = timeout / 2 - sum(self._pauses[:-1])
        self._asked: dict[str, _Asked] = {}
        self._cookies: dict[str, str] = {}
        self._due: list[tuple[float, str]] = []
        self._unresolved: dict[str, None] = {}
        self._burst: set[str] = set()
        self._burst_end = 0.0
        self._resolve_time = 0.0
        self._incomplete = len(factories)
        self.waited_for = set(factories)
        self._dropped: Counter[Reason] = Counter()
        self._unusable: dict[str, Dropped] = {}

    def run(self, transport: Transport, clock: Clock, now: Callable[[], float]) -> PollResult:
        start = clock()
        end = start + self._timeout
        self._prepare(start, now())
        most = transport.capacity // TYPICAL_ANSWERS[self._kind]
        most = max(LEAST_BURST, min(MOST_BURST, most))
        backlog: deque[bytes] = deque()
        backlog_bytes = 0
        at = start
        while self._incomplete:
            last = end if self.waited_for else min(end, start + DOUBTFUL_SECONDS)
            if at >= last:
                break
            self._resolve(at)
            self._send(transport, most, at)
            waiting = 0.0 if backlog else max(0.0, min(self._next_time(at), last) - at)
            if backlog_bytes < MOST_BACKLOG_BYTES:
                arrived = transport.receive(waiting)
                backlog.extend(arrived)
                backlog_bytes += sum(map(sys.getsizeof, arrived))
            at = clock()
            for _ in range(min(len(backlog), DECODED_AT_ONCE)):
                data = backlog.popleft()
                backlog_bytes -= sys.getsizeof(data)
                self._take(data, at, now())
        return self._result(clock() - start)

    def _prepare(self, start: float, now: float) -> None:
        salt = secrets.token_hex(16)
        for factory in self._factories:
            tie = cookie(salt, factory)
            query = Query(self._kind, self._space, tie, self._client)
            self._cookies[tie] = factory
            self._asked[factory] = _Asked(factory, encode_query(query, now, self._key))
        self._unresolved = dict.fromkeys(self._factories)
        self._names.request(self._factories)
        self._resolve_time = start

    def _resolve(self, at: float) -> None:
        """Let those be asked whose addresses have become known."""
        if not self._unresolved or at < self._resolve_time:
            return
        self._resolve_time = at + RESOLVE_SECONDS
        for factory in [factory for factory in self._unresolved if self._names.known(factory)]:
            del self._unresolved[factory]
            heapq.heappush(self._due, (at, factory))

    def _send(self, transport: Transport, most: int, at: float) -> None:
        """Ask those that are due, as far as the burst before is answered or has had its time."""
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
            addresses = self._names.known(asked.factory)
            transport.send(asked.query, addresses[asked.sent // 2 % len(addresses)], self._port)
            asked.sent += 1
            asked.active_time = at
            self._burst.add(asked.factory)
            self._burst_end = at + BURST_SECONDS
            again = self._due_time(asked)
            if again is not None:
                heapq.heappush(self._due, (again, asked.factory))

    def _due_time(self, asked: _Asked) -> float | None:
        """When this factory is to be asked again, if no more comes from it; None: not any more."""
        if asked.sent == 0:
            return 0.0
        if asked.sent > len(self._pauses):
            return None
        silent_for_long = asked.sent == len(self._pauses) and not asked.parts
        pause = self._last_silent_pause if silent_for_long else self._pauses[asked.sent - 1]
        return asked.active_time + pause

    def _next_time(self, at: float) -> float:
        """When there may be something to send."""
        times = [self._due[0][0]] if self._due else [at + self._timeout]
        if self._burst:
            times = [max(times[0], self._burst_end)]
        if self._unresolved:
            times.append(self._resolve_time)
        return min(times)

    def _take(self, data: bytes, at: float, now: float) -> None:
        received = decode_answer(data, self._kind, self._space, self._cookies, now, self._key)
        if not isinstance(received, Received):
            self._dropped[received.reason] += 1
            self._unusable[received.factory] = received
            return
        asked = self._asked[received.status.factory]
        if asked.complete:
            return
        asked.active_time = at
        asked.parts[part(received.status)] = received
        asked.expected = expected(received.status)
        if len(asked.parts) >= asked.expected:
            asked.complete = True
            self._incomplete -= 1
            self._burst.discard(asked.factory)
            self.waited_for.discard(asked.factory)

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
