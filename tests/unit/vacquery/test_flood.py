"""A hundred thousand malformed datagrams while a real poll runs: it is right, and nothing grows."""

from __future__ import annotations

import json
import random
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vacquery.recorded import FACTORY, SPACE, datagrams, make_state, messages
from tests.unit.vacquery.test_poll import Loopback
from tests.unit.vacquery.test_responder import make_responder, serving
from vac.vacquery.messages import Kind, part
from vac.vacquery.poll import poll
from vac.vacquery.sockets import UdpTransport

DATAGRAMS = 100_000
POLLS = 20


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
            data += rng.randbytes(rng.randrange(8000))
        elif choice == 3:
            message = json.loads(bytes(data))
            message[rng.choice(sorted(message))] = rng.choice(values)
            data = bytearray(json.dumps(message).encode())
        else:
            data = bytearray(rng.randbytes(rng.randrange(1200)))
        yield bytes(data)


class Flooded(UdpTransport):
    """A poll's transport that tells where it receives."""

    def __init__(self, flood: list[tuple[str, int]]) -> None:
        super().__init__()
        receiver = self._socket(socket.AF_INET)
        receiver.bind(("127.0.0.1", 0))
        flood.append(receiver.getsockname())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_malformed_datagrams_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(20261121)
    responder = make_responder(make_state(tmp_path))
    noise = malformed(rng)
    with serving(responder) as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        targets = [("127.0.0.1", port)]
        flooding = threading.Event()
        flooding.set()
        sent = 0

        def flood() -> None:
            nonlocal sent
            while flooding.is_set() or sent < DATAGRAMS:
                sender.sendto(next(noise)[:60000], targets[-1] if sent % 2 else targets[0])
                sent += 1

        thread = threading.Thread(target=flood)
        thread.start()
        sizes = []
        tracemalloc.start()
        for number in range(POLLS):
            while sent < DATAGRAMS * number // POLLS:
                threading.Event().wait(0.01)
            transport = Flooded(targets)
            found = poll(
                [FACTORY],
                Kind.MACHINES,
                SPACE,
                names=Loopback(),
                port=port,
                timeout=30,
                transport=transport,
            )
            targets.pop()
            transport.close()
            assert found.missing == ()
            names = [part(answer.status) for answer in found.answers[FACTORY]]
            assert names == [message["machine"] for message in messages(Kind.MACHINES)]
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        flooding.clear()
        thread.join()
    dropped = sum(count for name, count in responder.counts.items() if name.startswith("dropped"))
    assert sent >= DATAGRAMS
    assert dropped > DATAGRAMS // 10
    assert max(sizes[10:]) < max(sizes[:10]) + 1_000_000
