"""What is kept for incident teams costs little, and comes when it is known."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from vac.drivers.base import Trace
from vac.drivers.digests import ImageDigests, ImageVersion, version_of
from vac.drivers.traces import REST, SHORTEST_SECONDS, ImageFacts, Sampling, merged
from vac.host.connections import Contact
from vac.host.filesystems import FileStamp

SOMEBODY = Contact("tcp", "192.0.2.1", 443, incoming=False)
IMAGE = ImageVersion("/images/a.sif", FileStamp(1, 2, 3, 1_700_000_000_000_000_000))


class Reader:
    """Computes digests once it may."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[str | OSError | None] = queue.SimpleQueue()
        self.read: list[ImageVersion] = []
        self.digests = ImageDigests(self)

    def __call__(self, version: ImageVersion) -> str | None:
        self.read.append(version)
        answer = self.answers.get(timeout=60)
        if isinstance(answer, OSError):
            raise answer
        return answer


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name == "digest":
            thread.join(60)


def test_sampling_takes_little_of_the_time_however_often_it_is_asked_for() -> None:
    now, looks = 100.0, 0
    sampling = Sampling(lambda: now)

    def look() -> dict[str, frozenset[Contact]]:
        nonlocal now, looks
        now, looks = now + 2.0, looks + 1
        return {"u": frozenset([SOMEBODY])}

    assert sampling.sample(look) == {"u": {SOMEBODY}}
    now += REST * 2.0 - 0.1
    assert sampling.sample(look) == {}
    now += 0.1
    assert sampling.sample(look)
    assert looks == 2


def test_what_cannot_be_seen_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    sampling = Sampling(lambda: now)

    def look() -> dict[str, frozenset[Contact]]:
        raise PermissionError("not allowed")

    caplog.set_level("INFO")
    assert sampling.sample(look) == sampling.sample(look) == {}
    assert [record.message for record in caplog.records] == [
        "connections of machines can't be seen: not allowed"
    ]
    now += SHORTEST_SECONDS
    assert sampling.sample(lambda: {"u": frozenset()}) == {"u": frozenset()}


def test_facts_are_told_once_and_the_digest_when_it_is_known() -> None:
    reader = Reader()
    facts = ImageFacts(reader.digests)
    facts.note("u1", {"user": "nobody (65534)"}, IMAGE)
    facts.note("u2", {"user": "nobody (65534)"}, None)
    facts.note("u3", {"user": "nobody (65534)"}, IMAGE)
    assert facts.news([]) == {}, "it isn't listed yet"
    first = {"user": "nobody (65534)", "image_modified": "2023-11-14T22:13:20Z"}
    assert facts.news(["u1", "u2"]) == {"u1": first, "u2": {"user": "nobody (65534)"}}
    assert facts.news(["u1", "u2"]) == {}
    facts.forget("u3")
    reader.answers.put("abc")
    settle()
    assert facts.news(["u1", "u2", "u3"]) == {"u1": {"image_digest": "sha256:abc"}}
    assert facts.news(["u1", "u2"]) == {}
    facts.note("u4", {}, IMAGE)
    assert facts.news(["u4"])["u4"]["image_digest"] == "sha256:abc"
    assert reader.read == [IMAGE], "one version of a file is read once"


def test_an_image_that_cannot_be_read_has_no_digest(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    reader.answers.put(OSError("Input/output error"))
    assert reader.digests.of(IMAGE) is None
    settle()
    assert "/images/a.sif: its digest can't be computed: Input/output error" in caplog.text
    assert reader.digests.of(IMAGE) is None
    assert len(reader.read) == 1


def test_another_file_is_another_version(tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert version_of(image) is None
    assert version_of(tmp_path) is None
    image.write_bytes(b"1")
    before = version_of(image)
    image.write_bytes(b"22")
    assert before is not None
    assert version_of(image) != before


def test_only_machines_of_which_there_is_something_to_tell() -> None:
    facts = {"u1": {"user": "x"}}
    found = {"u1": frozenset([SOMEBODY]), "u2": frozenset([SOMEBODY]), "u3": frozenset[Contact]()}
    some = frozenset([SOMEBODY])
    assert merged(facts, found) == {"u1": Trace({"user": "x"}, some), "u2": Trace({}, some)}
