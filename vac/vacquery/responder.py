"""vacd-responder: answers VacQuery queries as an unprivileged process, whatever the factory is doing.

One thread answers from prepared datagrams, so that no query waits for a disk; another one renews them from state_dir
within a second when the factory has reported, else each five seconds. The factories, this host and vacquery_allow (by
default the directly connected networks) may query. A small query has answers of many kilobytes: anybody else gets none,
or spoofed queries could flood others.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

from vac.config.load import ConfigurationError, load
from vac.config.settings import Settings
from vac.host import facts
from vac.host.connections import Network, connected_networks
from vac.host.filesystems import stamp_if_there
from vac.host.privileges import drop_privileges, unprivileged_user
from vac.logs import OnChange
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.status import Status, configured, prepare_role
from vac.roles import RoleOptions
from vac.vacquery.messages import QUERY_LIMIT, Dropped, Reason, decode_query
from vac.vacquery.poll import Resolver, enlarge_buffer, plain_address
from vac.vacquery.signed_json import SIGNATURE_SECONDS, canonical, read_key
from vac.vacquery.snapshot import Answers, Snapshot, SnapshotBuilder

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
BATCH = 64
"""Queries taken in a row."""
MOST_LOGGED = 1000
"""Refused sources with a log line, within a day."""
DAY_SECONDS = 86400
NOT_ALLOWED = (
    "not a factory of this space, and in no network of vacquery_allow (default: the directly connected ones)"
)
MOST_BYTES_PER_SECOND = 256 * 1024
"""Answers to one source, except this host; a query below this limit is answered completely."""
MOST_REMEMBERED = 10_000
"""Signatures of each of two generations."""
SEND_LIMIT = struct.pack("ll", 1, 0)
"""One second, as the kernel's timeval."""
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_LOOPBACK_PREFIXES = ("127.", "::ffff:127.", "::1")
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


class AccessList:
    """Addresses and networks that may query."""

    def __init__(self, addresses: Iterable[str] = (), networks: Iterable[Network] = ()) -> None:
        self._addresses = frozenset(filter(None, map(plain_address, addresses)))
        self._networks = (*_LOOPBACK, *networks)

    def allows(self, host: str) -> bool:
        """Return True if this source address, as recvfrom returns it, may query."""
        address = plain_address(host)
        if address is None:
            return False
        return address in self._addresses or any(address in network for network in self._networks)


class SeenSignatures:
    """Signatures of accepted queries, kept for at least as long as they are valid."""

    def __init__(self) -> None:
        self._present: set[str] = set()
        self._past: set[str] = set()
        self._begin = -math.inf

    def add(self, signature: str, now: float) -> bool:
        """Remember a signature; False if it has been seen before."""
        if not 0 <= now - self._begin < 2 * SIGNATURE_SECONDS or len(self._present) >= MOST_REMEMBERED:
            self._past, self._present, self._begin = self._present, set(), now
        if signature in self._present or signature in self._past:
            return False
        self._present.add(signature)
        return True


class Responder:
    """Answers to queries, and counters; without sockets."""

    def __init__(self, key: bytes | None = None) -> None:
        self.answers: Answers | None = None
        self.access = AccessList()
        self.access_is_complete = False
        """False while addresses of factories may still be unknown: refusals aren't logged then."""
        self.counts: Counter[str] = Counter()
        self._key = key
        self._warned: set[tuple[str, str]] = set()
        self._warned_begin = -math.inf
        self._signatures = SeenSignatures()
        self._second = 0
        self._sent_bytes: Counter[str] = Counter()
        """By source, in this second."""

    def handle(self, data: bytes, host: str, now: float) -> Sequence[bytes]:
        """Return the datagrams that answer a datagram from this source address."""
        if not self.access.allows(host):
            if self.access_is_complete:
                self._warn(host, NOT_ALLOWED, now)
            return self.drop(Reason.SOURCE)
        answers = self.answers
        if answers is None:
            return self.drop(Reason.NO_ANSWER)
        query = decode_query(data, answers.snapshot.status.space, now, self._key)
        if isinstance(query, Dropped):
            if query.reason in (Reason.SIGNATURE, Reason.STALE):
                self._warn(host, f"{query.reason.value}: keys in vacquery_key_file, or clocks, differ", now)
            return self.drop(query.reason)
        if self._key is not None and not self._signatures.add(query.signature, now):
            return self.drop(Reason.REPLAY)
        if int(now) != self._second:
            self._second = int(now)
            self._sent_bytes.clear()
        if self._sent_bytes[host] > MOST_BYTES_PER_SECOND:
            return self.drop(Reason.LIMIT)
        datagrams = answers.datagrams(query.kind, canonical_cookie(query.cookie), now)
        if not datagrams:
            return self.drop(Reason.NO_ANSWER)
        if not host.startswith(_LOOPBACK_PREFIXES):
            self._sent_bytes[host] += sum(map(len, datagrams))
        self.counts[query.kind.value] += 1
        self.counts["answers"] += len(datagrams)
        return datagrams

    def drop(self, reason: Reason) -> tuple[bytes, ...]:
        """Count a datagram that isn't answered."""
        self.counts[dropped_as(reason)] += 1
        return ()

    def _warn(self, host: str, reason: str, now: float) -> None:
        """Log at most once a day for each source and reason."""
        if not 0 <= now - self._warned_begin < DAY_SECONDS:
            self._warned, self._warned_begin = set(), now
        if len(self._warned) < MOST_LOGGED and (host, reason) not in self._warned:
            self._warned.add((host, reason))
            log.warning("query from %s not answered: %s", host, reason)


def canonical_cookie(cookie: object) -> bytes:
    """Return the JSON text of a client's cookie, which may be any value."""
    return canonical({"": cookie})[len('{"":') : -1]


class Refresher:
    """Renewal of a Responder's answers, access list, heartbeat and counters file."""

    def __init__(
        self,
        responder: Responder,
        state: StateDir,
        names: Resolver,
        key: bytes | None = None,
        configured: Status | None = None,
    ) -> None:
        """configured: see SnapshotBuilder."""
        self._responder = responder
        self._state = state
        self._builder = SnapshotBuilder(state, configured=configured)
        self._names = names
        self._key = key
        self._heartbeat_time = 0.0
        self._reported: object = None
        self._written: dict[str, int] = {}
        self._changes = OnChange(log)
        self._allowed: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def refresh(self, now: float) -> None:
        """Renew the answers, and do what else is due, if the factory has reported or it is time to."""
        due = not 0 <= now - self._heartbeat_time < HEARTBEAT_SECONDS
        before, self._reported = self._reported, stamp_if_there(self._state.status)
        if not due and self._reported == before and self._responder.access_is_complete:
            return
        snapshot = self._build(now)
        if snapshot is not None:
            self._responder.answers = Answers(snapshot, self._key)
            allowed = (snapshot.status.factories, snapshot.status.vacquery_allow)
            if due or allowed != self._allowed or not self._responder.access_is_complete:
                self._allowed = allowed
                self._refresh_access(snapshot.status)
        if due:
            self._heartbeat_time = now
            self._tell_alive()

    def _build(self, now: float) -> Snapshot | None:
        problem, snapshot = "", None
        try:
            snapshot = self._builder.build(now)
        except OSError as error:
            problem = f"state can't be read, old answers remain: {error}"
        self._changes.tell("state", problem, logging.ERROR)
        return snapshot

    def _refresh_access(self, status: Status) -> None:
        self._names.request(status.factories)
        addresses = [address for factory in status.factories for address in self._names.known(factory)]
        networks = tuple(map(ip_network, status.vacquery_allow)) or connected_networks()
        self._responder.access = AccessList(addresses, networks)
        looking = any(self._names.looking(factory) for factory in status.factories)
        self._responder.access_is_complete = not looking

    def _tell_alive(self) -> None:
        """Touch responder-heartbeat; write changed counters."""
        counts, problem = dict(self._responder.counts), ""
        try:
            os.utime(self._state.heartbeat("responder"))
            if counts != self._written:
                write_counters(counters_file(self._state), counts)
                self._written = counts
        except OSError as error:
            problem = f"heartbeat and counters can't be written: {error}"
        self._changes.tell("files", problem, logging.ERROR)


def dropped_as(reason: Reason) -> str:
    """Return the counter of datagrams dropped for this reason."""
    return "dropped: " + reason.value


def counters_file(state: StateDir) -> Path:
    """Return the file with the responder's counters since its start."""
    return state.root / "responder" / "counters.json"


def read_counters(state: StateDir) -> dict[str, int]:
    """Return the responder's counters, none if there are no readable ones. The file is untrusted."""
    try:
        content = files.read_untrusted(counters_file(state).parent, counters_file(state).name, 65536)
        found = json.loads(content.decode())
    except (OSError, ValueError, RecursionError, files.Unreadable):
        return {}
    counts = found.items() if isinstance(found, dict) else ()
    return {name: count for name, count in counts if type(count) is int}


def write_counters(path: Path, counts: Mapping[str, int]) -> None:
    """Write the counters atomically."""
    files.write_atomic(
        path, (json.dumps(counts, sort_keys=True) + "\n").encode(), tmp=path.parent, sync=False
    )


def serve(responder: Responder, receiver: socket.socket, stops: Sequence[socket.socket]) -> None:
    """Answer at this socket until one of stops becomes readable or loses its other end."""
    with selectors.DefaultSelector() as selector:
        for each in (receiver, *stops):
            selector.register(each, selectors.EVENT_READ)
        while not any(ready.fileobj in stops for ready, _ in selector.select()):
            _answer(responder, receiver)


def _answer(responder: Responder, receiver: socket.socket) -> None:
    """Answer a batch of queries."""
    for _ in range(BATCH):
        try:
            data, source = receiver.recvfrom(QUERY_LIMIT + 1, socket.MSG_DONTWAIT)
        except OSError:
            return
        for datagram in responder.handle(data, source[0], time.time()):
            try:
                receiver.sendto(datagram, source)
            except OSError:
                responder.drop(Reason.SENDING)


def listen(port: int) -> socket.socket:
    """Return a bound socket for IPv6 and IPv4, or for IPv4 where there is no IPv6. OSError if the port is taken."""
    try:
        return _bound(socket.AF_INET6, "::", port)
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise
    return _bound(socket.AF_INET, "0.0.0.0", port)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_LIMIT)
        enlarge_buffer(bound)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def main(options: RoleOptions) -> int:
    """Run the role `responder`: 0 when told to end, 1 if it can't work as configured."""
    status: Status | None = None
    settings: Settings | None
    try:
        configuration = load(options.configs or None, facts.read())
        settings, status = configuration.settings, configured(configuration)
    except ConfigurationError as error:
        log.error("the configuration is broken: %s", error)
        settings = error.settings
    if settings is None:
        return 1
    try:
        key = read_key(settings.vacquery_key_file)
        receiver = listen(settings.vacquery_port)
    except OSError as error:
        log.error("can't start: %s (UDP port %d)", error, settings.vacquery_port)
        return 1
    ending, stop = socket.socketpair()
    options.listen(ending.close, lambda: None)
    options.uses(settings.state_dir)
    state = StateDir(settings.state_dir)
    return run(state, receiver, stop, key=key, configured=status, ready=options.ready)


def run(
    state: StateDir,
    receiver: socket.socket,
    stop: socket.socket,
    *,
    key: bytes | None = None,
    configured: Status | None = None,
    names: Resolver | None = None,
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Answer at a bound socket until stop becomes readable or closed.

    Root's privileges are dropped first. Return the exit status.
    """
    user = unprivileged_user()
    prepare_role(state, "responder", user, counters_file(state).parent)
    drop_privileges(user)
    responder = Responder(key)
    refresher = Refresher(responder, state, names or Resolver(), key, configured)
    refresher.refresh(time.time())
    ended, failed = threading.Event(), socket.socketpair()

    def keep_fresh() -> None:
        with failed[0]:
            while not ended.wait(REFRESH_SECONDS):
                refresher.refresh(time.time())

    thread = threading.Thread(target=keep_fresh, name="refresher", daemon=True)
    thread.start()
    ready()
    with stop, failed[1]:
        serve(responder, receiver, (stop, failed[1]))
    alive = thread.is_alive()
    ended.set()
    thread.join(REFRESH_SECONDS)
    return 0 if alive else 1
