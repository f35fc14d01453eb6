"""Polls: completeness, retries, hostile answers; and look-ups of names."""

from __future__ import annotations

import contextlib
import heapq
import json
import random
import socket
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.vacquery.messages import Kind, MachinetypeStatus, Reason, Received, message_of
from vac.vacquery.poll import (
    ADDRESS_SECONDS,
    LOOKUPS,
    UNKNOWN_SECONDS,
    Poll,
    PollResult,
    Resolver,
    UdpTransport,
    lookup,
)
from vac.vacquery.signed_json import canonical, signature

SPACE = "space.example.org"
START = 1_800_000_000.0
LATENCY = 0.002
KEY = b"a secret of the space"
Changes = Callable[[dict[str, object]], Iterable[bytes]]


def factories(count: int) -> list[str]:
    return [f"factory-{number}.example.org" for number in range(count)]


def unchanged(message: dict[str, object]) -> Iterable[bytes]:
    yield canonical(message)


class World(Resolver, UdpTransport):
    """A network in virtual time: it has a clock, names, and a transport that loses datagrams."""

    capacity = 4096

    def __init__(
        self, loss: float = 0.0, types: int = 10, answers: Changes = unchanged, seed: int = 1
    ) -> None:
        self.seconds = 0.0
        self.loss = loss
        self.types = types
        self.answers = answers
        self.rng = random.Random(seed)
        self.queries: Counter[str] = Counter()
        self.sent: list[tuple[float, str]] = []
        self.dead: set[str] = set()
        self.unknown_until: dict[str, float] = {}
        self.two_addresses: set[str] = set()
        self._flying: list[tuple[float, int, bytes]] = []

    def __call__(self) -> float:
        self.seconds += 1e-6
        return self.seconds

    def now(self) -> float:
        return START + self.seconds

    def request(self, hosts: Iterable[str]) -> None:
        pass

    def looking(self, host: str) -> bool:
        return False

    def known(self, host: str) -> tuple[str, ...]:
        if self.seconds < self.unknown_until.get(host, 0.0):
            return ()
        return (f"4 {host}", f"6 {host}") if host in self.two_addresses else (f"4 {host}",)

    def send(self, datagram: bytes, address: str, port: int) -> None:
        self.sent.append((self.seconds, address))
        factory = address[2:]
        self.queries[factory] += 1
        if factory in self.dead or self.rng.random() < self.loss:
            return
        query = json.loads(datagram)
        for number in range(self.types):
            status = MachinetypeStatus(
                space=SPACE,
                site="example.org",
                factory=factory,
                machinetype=f"type-{number}",
                num_machinetypes=self.types,
                running_machines=1,
                running_processors=1.0,
                running_hs06=10.0,
            )
            message = {**message_of(status), "cookie": query["cookie"], "time_sent": int(self.now())}
            for data in self.answers(message):
                if self.rng.random() >= self.loss:
                    self.put(data, LATENCY)

    def put(self, data: bytes, after: float) -> None:
        heapq.heappush(
            self._flying, (self.seconds + after, len(self._flying) + self.rng.getrandbits(40), data)
        )

    def receive(self, seconds: float) -> list[bytes]:
        end = self.seconds + max(0.0, seconds)
        if self._flying:
            end = min(end, max(self._flying[0][0], self.seconds))
        self.seconds = end + 1e-6
        arrived = []
        while self._flying and self._flying[0][0] <= self.seconds:
            arrived.append(heapq.heappop(self._flying)[2])
        return arrived

    def close(self) -> None:
        pass

    def poll(
        self, count: int, timeout: float = 10.0, key: bytes | None = None, doubtful: Iterable[str] = ()
    ) -> PollResult:
        poll = Poll(Kind.MACHINETYPES, factories(count), SPACE, self, 995, timeout, key)
        return poll.run(frozenset(doubtful), self, self, self.now)


@pytest.mark.parametrize("count", [1, 100, 1000])
def test_it_has_done_when_all_have_answered(count: int) -> None:
    world = World()
    result = world.poll(count)
    assert (len(result.complete), result.missing) == (count, ())
    assert all(len(answers) == 10 for answers in result.answers.values())
    assert result.seconds < 0.005 + count * 0.0002
    assert set(world.queries.values()) == {1}


def test_nobody_to_ask_is_answered_at_once() -> None:
    result = World().poll(0)
    assert (result.answers, result.missing) == ({}, ())
    assert result.seconds < 0.001


@pytest.mark.parametrize("seed", range(5))
def test_lost_datagrams_cost_a_retry_of_those_concerned_only(seed: int) -> None:
    world = World(loss=0.05, seed=seed)
    result = world.poll(100)
    assert result.missing == ()
    assert result.seconds < 2.0
    assert 1 in set(world.queries.values())
    assert max(world.queries.values()) <= 6


def test_a_silent_factory_is_asked_six_times() -> None:
    world = World()
    world.dead = {factories(3)[1]}
    result = world.poll(3)
    assert result.missing == (factories(3)[1],)
    assert len(result.complete) == 2
    assert 10.0 <= result.seconds < 10.01
    assert sorted(world.queries.values()) == [1, 1, 6]
    times = [seconds for seconds, address in world.sent if address.endswith(factories(3)[1])]
    assert times[1] < 0.1
    assert 4.0 < times[-1] < 6.0


@pytest.mark.parametrize("timeout", [0.1, 1.0, 60.0])
def test_the_time_limit_holds_whatever_happens(timeout: float) -> None:
    world = World()
    world.dead = set(factories(1000))
    result = world.poll(1000, timeout)
    assert timeout <= result.seconds < timeout * 1.1 + 0.01
    assert max(world.queries.values()) <= 6


def test_a_doubtful_factory_is_asked_but_not_waited_for() -> None:
    world = World()
    world.dead = {factories(3)[1]}
    result = world.poll(3, doubtful=[factories(3)[1]])
    assert result.missing == (factories(3)[1],)
    assert result.seconds < 1.01
    world = World()
    assert world.poll(3, doubtful=factories(3)).missing == ()
    assert world.seconds < 0.01


def test_what_has_arrived_of_an_incomplete_answer_is_kept() -> None:
    def no_type_three(message: dict[str, object]) -> Iterable[bytes]:
        if message["machinetype"] != "type-3":
            yield canonical(message)

    world = World(answers=no_type_three)
    result = world.poll(1, timeout=5)
    assert result.missing == tuple(factories(1))
    assert len(result.answers[factories(1)[0]]) == 9
    assert world.queries[factories(1)[0]] == 6


def test_a_name_that_is_slow_to_resolve_holds_up_nobody_else() -> None:
    world = World()
    slow, never = factories(10)[4], factories(10)[5]
    world.unknown_until = {slow: 3.0, never: 1e9}
    result = world.poll(10)
    assert result.missing == (never,)
    assert result.unresolved == {never}
    times = {address[2:]: seconds for seconds, address in world.sent}
    assert max(seconds for factory, seconds in times.items() if factory != slow) < 0.1
    assert 3.0 <= times[slow] < 3.1


def test_ipv4_is_tried_before_ipv6() -> None:
    world = World()
    world.dead = set(factories(1))
    world.two_addresses = set(factories(1))
    world.poll(1)
    assert [address[0] for _, address in world.sent] == ["4", "4", "6", "6", "4", "4"]


def test_types_added_or_removed_change_completeness() -> None:
    world = World(types=3)

    def shrinking(message: dict[str, object]) -> Iterable[bytes]:
        yield canonical({**message, "num_machinetypes": 10 if message["machinetype"] == "type-0" else 3})

    world.answers = shrinking
    assert world.poll(1).missing == ()


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"cookie": "0" * 64}, Reason.COOKIE),
        ({"factory": "factory-0.example.org"}, Reason.FACTORY),
        ({"space": "other.example.org"}, Reason.SPACE),
        ({"running_processors": -1}, Reason.FIELD),
        ({"running_hs06": 1e9}, Reason.FIELD),
        ({"message_type": "factory_status"}, Reason.KIND),
    ],
)
def test_a_liar_is_counted_and_costs_its_own_answer_only(lie: dict[str, object], reason: Reason) -> None:
    def lying(message: dict[str, object]) -> Iterable[bytes]:
        yield canonical({**message, **lie} if message["factory"] == factories(3)[2] else message)

    result = World(answers=lying, types=4).poll(3, timeout=2)
    assert result.missing == (factories(3)[2],)
    assert set(result.answers) == set(factories(2))
    assert set(result.dropped) == {reason}
    told = {name: why.reason for name, why in result.unusable.items()}
    assert told == ({} if reason is Reason.COOKIE else {factories(3)[2]: reason})


def test_with_a_key_only_signed_answers_count() -> None:
    def signing(message: dict[str, object]) -> Iterable[bytes]:
        signed = {**message, "hmac": signature(canonical(message), KEY)}
        yield canonical(signed if message["factory"] == factories(2)[0] else message)

    result = World(answers=signing).poll(2, timeout=2, key=KEY)
    assert result.complete == set(factories(2)[:1])
    assert set(result.dropped) == {Reason.SIGNATURE}
    assert {name: str(why) for name, why in result.unusable.items()} == {
        factories(2)[1]: "wrong or no signature"
    }


def test_the_memory_of_a_flooded_poll_is_bounded() -> None:
    class Flooded(World):
        def receive(self, seconds: float) -> list[bytes]:
            return [bytes([number]) * 9001 for number in range(256)]

    tracemalloc.start()
    result = Flooded().poll(1, timeout=0.0005)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.dropped[Reason.LONG] > 5000
    assert peak < 16_000_000


def test_no_more_than_so_many_bytes_are_received_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vac.vacquery.poll.MOST_BYTES_AT_ONCE", 10_000)
    with contextlib.closing(UdpTransport()) as transport:
        receiver = transport._socket(socket.AF_INET)
        receiver.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(8):
                sender.sendto(b"x" * 4000, receiver.getsockname())
        assert [len(transport.receive(60)) for _ in range(3)] == [3, 3, 2]


@given(st.lists(st.binary(max_size=200), max_size=40), st.integers(0, 2**32))
def test_garbage_from_anywhere_changes_nothing(garbage: list[bytes], seed: int) -> None:
    world = World(seed=seed)
    for data in garbage:
        world.put(data, world.rng.random() * LATENCY)
    result = world.poll(5)
    assert result.missing == ()
    assert all(len(answers) == 10 for answers in result.answers.values())


@given(st.data())
def test_mutated_answers_never_raise_or_give_wrong_numbers(data: st.DataObject) -> None:
    def mutating(message: dict[str, object]) -> Iterable[bytes]:
        text = bytearray(canonical(message))
        for _ in range(data.draw(st.integers(0, 2))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        yield bytes(text[: data.draw(st.integers(0, len(text)))])

    result = World(types=2, answers=mutating).poll(2, timeout=1)
    for answers in result.answers.values():
        assert all(isinstance(answer, Received) for answer in answers)


def test_a_poll_over_real_sockets_gets_every_answer(udp_factory: Callable[[], int]) -> None:
    port = udp_factory()
    result = Poll(Kind.MACHINETYPES, ["localhost.example.org"], SPACE, Loopback(), port, 60).run()
    assert result.missing == ()
    assert result.seconds < 5


class Loopback(Resolver):
    """Every factory is here."""

    def request(self, hosts: Iterable[str]) -> None:
        pass

    def known(self, host: str) -> tuple[str, ...]:
        return ("127.0.0.1",)

    def looking(self, host: str) -> bool:
        return False


@pytest.fixture
def udp_factory(request: pytest.FixtureRequest) -> Callable[[], int]:
    """Starts a real factory of one type on loopback; its first answer to a query is lost."""

    def start() -> int:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)

        def serve() -> None:
            server.recvfrom(1024)
            query, source = server.recvfrom(1024)
            status = MachinetypeStatus(
                space=SPACE,
                site="",
                factory="localhost.example.org",
                machinetype="t",
                num_machinetypes=1,
            )
            message = {**message_of(status), "cookie": json.loads(query)["cookie"]}
            server.sendto(canonical(message), source)

        thread = threading.Thread(target=serve)
        thread.start()
        request.addfinalizer(server.close)
        request.addfinalizer(thread.join)
        return int(server.getsockname()[1])

    return start


class Dns:
    """A resolver that can be made to hang or to know nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.addresses: tuple[str, ...] = ("192.0.2.1",)
        self.answers = threading.Event()
        self.answers.set()
        self.now = 0.0

    def __call__(self, host: str) -> tuple[str, ...]:
        self.calls.append(host)
        self.answers.wait(60)
        return self.addresses

    def clock(self) -> float:
        return self.now


def settled(resolver: Resolver, host: str) -> tuple[str, ...]:
    """Return the addresses after the look-up."""
    end = time.monotonic() + 60
    while resolver.looking(host) and time.monotonic() < end:
        time.sleep(0.001)
    return resolver.known(host)


def test_a_name_is_looked_up_once_while_it_is_fresh() -> None:
    dns = Dns()
    resolver = Resolver(find=dns, clock=dns.clock)
    assert resolver.known("a") == ()
    for _ in range(3):
        resolver.request(["a"])
        assert settled(resolver, "a") == ("192.0.2.1",)
    assert dns.calls == ["a"]
    dns.now = ADDRESS_SECONDS
    resolver.request(["a"])
    settled(resolver, "a")
    assert dns.calls == ["a", "a"]


def test_an_address_is_kept_when_the_name_is_not_found_any_more() -> None:
    dns = Dns()
    resolver = Resolver(find=dns, clock=dns.clock)
    resolver.request(["a"])
    settled(resolver, "a")
    dns.addresses = ()
    dns.now = ADDRESS_SECONDS
    resolver.request(["a"])
    assert settled(resolver, "a") == ("192.0.2.1",)


def test_a_name_that_is_not_found_is_tried_again_after_a_while() -> None:
    dns = Dns()
    dns.addresses = ()
    resolver = Resolver(find=dns, clock=dns.clock)
    for dns.now in (0.0, UNKNOWN_SECONDS - 1, UNKNOWN_SECONDS):
        resolver.request(["a"])
        settled(resolver, "a")
    assert dns.calls == ["a", "a"]


def test_a_dns_that_hangs_holds_up_nobody() -> None:
    dns = Dns()
    dns.answers.clear()
    resolver = Resolver("me.example.org", find=dns, clock=dns.clock)
    before = time.monotonic()
    resolver.request([f"host-{number}" for number in range(1000)])
    resolver.request(["me.example.org", "192.0.2.5", "2001:db8::1"])
    assert time.monotonic() - before < 50
    assert resolver.known("host-0") == ()
    assert resolver.known("me.example.org") == ("127.0.0.1", "::1")
    assert resolver.known("192.0.2.5") == ("192.0.2.5",)
    assert resolver.known("2001:db8::1") == ("2001:db8::1",)
    assert len(dns.calls) <= LOOKUPS
    dns.answers.set()
    assert settled(resolver, "host-999") == ("192.0.2.1",)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300, "\udcff"])
def test_a_bad_name_has_no_addresses(host: str) -> None:
    assert lookup(host) == ()


def test_the_systems_resolver_gives_ipv4_first() -> None:
    assert lookup("localhost")[0] == "127.0.0.1"
