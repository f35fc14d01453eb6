"""Names are looked up in the background, kept, and never waited for."""

from __future__ import annotations

import threading
import time

import pytest

from vac.vacquery.resolver import KEEP_SECONDS, RETRY_SECONDS, THREADS, Resolver, lookup


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
    """What is known once the look-up is over."""
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
    dns.now = KEEP_SECONDS
    resolver.request(["a"])
    settled(resolver, "a")
    assert dns.calls == ["a", "a"]


def test_an_address_is_kept_when_the_name_is_not_found_any_more() -> None:
    dns = Dns()
    resolver = Resolver(find=dns, clock=dns.clock)
    resolver.request(["a"])
    settled(resolver, "a")
    dns.addresses = ()
    dns.now = KEEP_SECONDS
    resolver.request(["a"])
    assert settled(resolver, "a") == ("192.0.2.1",)


def test_a_name_that_is_not_found_is_tried_again_after_a_while() -> None:
    dns = Dns()
    dns.addresses = ()
    resolver = Resolver(find=dns, clock=dns.clock)
    for dns.now in (0.0, RETRY_SECONDS - 1, RETRY_SECONDS):
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
    assert len(dns.calls) <= THREADS
    dns.answers.set()
    assert settled(resolver, "host-999") == ("192.0.2.1",)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300, "\udcff"])
def test_a_bad_name_has_no_addresses(host: str) -> None:
    assert lookup(host) == ()


def test_the_systems_resolver_gives_ipv4_first() -> None:
    assert lookup("localhost")[0] == "127.0.0.1"
