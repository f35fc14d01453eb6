"""A hundred thousand malformed datagrams while a real poll runs: it is right, and nothing grows."""

from __future__ import annotations

import itertools
import json
import random
import socket
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vacquery.recorded import FACTORY, SPACE, datagrams, make_state, messages
from tests.unit.vacquery.test_poll import Loopback
from tests.unit.vacquery.test_responder import make_responder, serving
from vac.vacquery.messages import Kind, Reason
from vac.vacquery.poll import Poll, UdpTransport
from vac.vacquery.signed_json import canonical

DATAGRAMS = 100_000
DIFFERENT = 10_000
POLLS = 10
TRACED = 3
"""The last polls, in which memory is traced, which takes four times as long."""
COOKIE = b"COOKIE"
LIES = {
    '{"factory": "vac-86.example.org"}': Reason.FACTORY,
    '{"space": "other.example.org"}': Reason.SPACE,
    '{"message_type": "factory_status"}': Reason.KIND,
    '{"num_machines": -1}': Reason.FIELD,
    '{"cpu_seconds": 1e300}': Reason.FIELD,
}
"""Forged answers and the reasons for dropping them."""


def malformed(rng: random.Random) -> Iterator[bytes]:
    """Recorded datagrams with bytes, fields or lengths changed, and sheer noise."""
    good = [data for kind in Kind for way in ("query", "response") for data in datagrams(kind, way)]
    values: list[Any] = [None, -1, 1e308, 10**300, "x" * 3000, [], {}, True, "", "\ud800", [[[[1]]]]]
    while True:
        data = bytearray(rng.choice(good))
        choice = rng.randrange(5)
        if choice == 0:
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif choice == 1:
            del data[rng.randrange(len(data)) :]
        elif choice == 2:
            data += rng.randbytes(rng.randrange(12000))
        elif choice == 3:
            message = json.loads(bytes(data))
            message[rng.choice(sorted(message))] = rng.choice(values)
            data = bytearray(json.dumps(message).encode())
        else:
            data = bytearray(rng.randbytes(rng.randrange(1200)))
        yield bytes(data)


def forgeries(rng: random.Random) -> Iterator[bytes]:
    """Recorded answers, each with a lie, and a place for a query's cookie."""
    good = messages(Kind.MACHINES)
    lies = [json.loads(lie) for lie in LIES]
    while True:
        yield canonical({**rng.choice(good), "cookie": COOKIE.decode(), **rng.choice(lies)})


class Flooded(UdpTransport):
    """A poll's transport: noise comes whenever it receives, and a query leaves when so much of that was read.

    So the noise is taken while the poll waits. Some goes to the responder, too.
    """

    def __init__(self, noise: Iterator[bytes], forged: Iterator[bytes], responder: int, least: int) -> None:
        super().__init__()
        receiver = self._socket(socket.AF_INET)
        receiver.bind(("127.0.0.1", 0))
        self.host = receiver.getsockname()
        self.responder = "127.0.0.1", responder
        self.noise, self.forged = noise, forged
        self.least = least
        self.read = 0
        self.query = b""

    def send(self, datagram: bytes, address: str, port: int) -> None:
        self.query = datagram
        if self.read >= self.least:
            super().send(datagram, address, port)

    def receive(self, seconds: float) -> list[bytes]:
        cookie = json.loads(self.query)["cookie"].encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in itertools.islice(self.noise, 24):
                sender.sendto(data, self.host)
            for data in itertools.islice(self.forged, 8):
                sender.sendto(data.replace(COOKIE, cookie), self.host)
            for data in itertools.islice(self.noise, 4):
                sender.sendto(data, self.responder)
        waiting, found = self.read < self.least, super().receive(seconds)
        self.read += len(found)
        if waiting and self.read >= self.least:
            super().send(self.query, *self.responder)
        return found


@pytest.mark.timeout(600)
def test_a_hundred_thousand_malformed_datagrams_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(20261121)
    noise = itertools.cycle(list(itertools.islice(malformed(rng), DIFFERENT)))
    forged = itertools.cycle(list(itertools.islice(forgeries(rng), DIFFERENT // 5)))
    responder = make_responder(make_state(tmp_path))
    dropped: Counter[Reason] = Counter()
    peaks = []
    with serving(responder) as port:
        for number in range(POLLS):
            if number == POLLS - TRACED:
                tracemalloc.start()
            transport = Flooded(noise, forged, port, DATAGRAMS // POLLS)
            found = Poll(Kind.MACHINES, [FACTORY], SPACE, Loopback(), port, 120).run(transport=transport)
            if tracemalloc.is_tracing():
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.reset_peak()
            assert found.missing == ()
            said = [(answer.message["machine"], answer.message["state"]) for answer in found.answers[FACTORY]]
            assert said == [(message["machine"], message["state"]) for message in messages(Kind.MACHINES)]
            dropped.update(found.dropped)
        tracemalloc.stop()
    assert sum(dropped.values()) >= DATAGRAMS
    assert min(dropped[reason] for reason in (*LIES.values(), Reason.LONG, Reason.JSON)) > 1000
    assert sum(count for name, count in responder.counts.items() if name.startswith("dropped")) > 1000
    assert max(peaks) < 8_000_000
    assert max(peaks[1:]) < peaks[0] + 300_000, "some bytes of each datagram are kept"
