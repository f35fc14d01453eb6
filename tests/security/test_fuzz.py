"""Datagrams and documents from anybody, in the numbers that docs/security.md names."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile_pipes import CORPUS, GOOD
from tests.unit.vacquery.recorded import NOW, make_state
from tests.unit.vacquery.test_flood import malformed
from tests.unit.vacquery.test_responder import make_responder
from vac.config.pipe_document import parse_pipe
from vac.decoding import BadJson
from vac.vacquery.responder import MOST_BYTES_PER_SECOND

pytestmark = pytest.mark.slow

DATAGRAMS = 110_000
"""To the responder, half of them to one with a key; another 100,000 go to polls (tests/unit/vacquery/test_flood.py)."""
DOCUMENTS = 20_000
LARGEST_ANSWER = 65_507


@pytest.mark.parametrize("key", [None, b"secret of the space"], ids=["open", "signed"])
def test_any_datagram_is_answered_within_bounds_or_dropped(tmp_path: Path, key: bytes | None) -> None:
    rng = random.Random(20261130)
    responder = make_responder(make_state(tmp_path), key)
    sent: dict[tuple[str, int], int] = {}
    noise = malformed(rng)
    tracemalloc.start()
    for number, data in enumerate(itertools.islice(noise, DATAGRAMS // 2)):
        host, now = rng.choice(["127.0.0.1", "192.0.2.1", "::1", "not an address"]), NOW + number / 1000
        answers = responder.handle(data, host, now)
        assert all(len(answer) <= LARGEST_ANSWER for answer in answers)
        if host != "127.0.0.1":
            sent[host, int(now)] = sent.get((host, int(now)), 0) + sum(map(len, answers))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    counted = responder.counts
    assert sum(number for name, number in counted.items() if name != "answers") == DATAGRAMS // 2
    assert max(sent.values(), default=0) <= MOST_BYTES_PER_SECOND + 64 * LARGEST_ANSWER
    assert grown < 8_000_000
    if key is not None:
        assert not counted["answers"], "nothing of it was signed with the key"


def mutated(rng: random.Random) -> Iterator[bytes]:
    """Documents, hostile ones too, with bytes, values, keys or lengths changed."""
    good = json.dumps({"machinetypes": [GOOD], "cache_seconds": 600}).encode()
    bases = [good, *(hostile.content for hostile in CORPUS.values() if len(hostile.content) < 5000)]
    values: tuple[object, ...] = (
        None,
        -1,
        1e308,
        10**400,
        "x" * 5000,
        "../../etc/shadow",
        [],
        {},
        True,
        "\ud800",
        "a\nb",
        "\x1b[2J",
    )
    while True:
        data = bytearray(rng.choice(bases) or b"{}")
        choice = rng.randrange(4)
        if choice == 0:
            for _ in range(rng.randrange(1, 10)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif choice == 1:
            del data[rng.randrange(len(data)) :]
        elif choice == 2:
            place = rng.randrange(len(data))
            data[place:place] = data[: rng.randrange(len(data))]
        else:
            entry = {
                **GOOD,
                rng.choice([*GOOD, "tmp_binds", "heartbeat_file", "container_user"]): rng.choice(values),
            }
            data = bytearray(json.dumps({"machinetypes": [GOOD, entry]}).encode())
        yield bytes(data)


def test_any_document_is_parsed_or_refused_in_printable_words() -> None:
    refused = 0
    for content in itertools.islice(mutated(random.Random(20261130)), DOCUMENTS):
        try:
            document = parse_pipe(content)
        except BadJson as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert len(document.entries) <= 100
            assert all(str(flaw).isprintable() for flaw in document.flaws)
    assert DOCUMENTS * 0.1 < refused < DOCUMENTS * 0.95
