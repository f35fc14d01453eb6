"""How pulls are judged: progress, stalls and reasons, from what engines send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.drivers.docker.images import image_key, loaded_image
from vac.drivers.docker.progress import PullError, PullLimits, PullProgress, pull_failure

LIMITS = PullLimits(stall_seconds=10, least_bytes=1000, total_seconds=100)


def downloading(layer: str, current: int, total: int) -> dict[str, object]:
    return {"status": "Downloading", "id": layer, "progressDetail": {"current": current, "total": total}}


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], ""),
        ([{"status": "Pulling from library/busybox", "id": "latest"}], ""),
        ([downloading("a", 50, 200)], "25 %"),
        ([downloading("a", 50, 200), downloading("b", 150, 200)], "50 %"),
        (
            [downloading("a", 50, 200), {"status": "Download complete", "id": "a", "progressDetail": {}}],
            "100 %",
        ),
        ([downloading("a", 300, 200)], "100 %"),
    ],
)
def test_progress_is_the_share_that_has_come(lines: Sequence[Mapping[str, object]], text: str) -> None:
    progress = PullProgress(LIMITS, 0)
    for line in lines:
        progress.feed(line, 1)
    assert progress.text == text


def test_a_pull_that_crawls_is_given_up_and_a_slow_one_is_not() -> None:
    crawling, slow = PullProgress(LIMITS, 0), PullProgress(LIMITS, 0)
    for second in range(1, 60):
        slow.feed(downloading("a", 101 * second, 100_000), second)
    with pytest.raises(PullError, match="no progress for 10 s at 0 %"):
        for second in range(1, 60):
            crawling.feed(downloading("a", 99 * second, 1_000_000), second)


def test_retries_of_the_engine_are_no_progress() -> None:
    progress = PullProgress(LIMITS, 0)
    with pytest.raises(PullError, match="the registry stalls"):
        for second in range(1, 60):
            progress.feed({"status": f"Retrying in {60 - second} seconds", "id": "a"}, second)


def test_unpacking_is_progress() -> None:
    progress = PullProgress(LIMITS, 0)
    for second in range(1, 60):
        detail = {"current": 1000 * second, "total": 100_000}
        progress.feed({"status": "Extracting", "id": "a", "progressDetail": detail}, second)


def test_no_pull_takes_longer_than_its_limit() -> None:
    progress = PullProgress(LIMITS, 0)
    with pytest.raises(PullError, match="not complete after 100 s, at"):
        for second in range(1, 200):
            progress.feed(downloading("a", 10_000 * second, 10_000_000), second)


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        (
            'Get "https://r/v2/": dial tcp: lookup r on 192.0.2.1:53: no such host',
            "the registry can't be reached",
        ),
        (
            'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
            "the registry can't",
        ),
        ("net/http: TLS handshake timeout", "the registry can't be reached"),
        ("x509: certificate signed by unknown authority", "the registry can't be reached"),
        (
            "manifest for busybox:9 not found: manifest unknown",
            "the registry has no such image, or not for us",
        ),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "the registry has",
        ),
        ("invalid reference format", "invalid reference format"),
        ("write /data: no space left on device", "write /data: no space left"),
    ],
)
def test_the_reason_begins_with_what_it_comes_to(said: str, begins: str) -> None:
    assert pull_failure(said).startswith(begins)
    with pytest.raises(PullError) as caught:
        PullProgress(LIMITS, 0).feed({"error": said, "errorDetail": {"message": said}}, 0)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["status", "id", "progressDetail", "current", "total", "stream"])


@given(st.lists(st.dictionaries(keys, json_values | st.dictionaries(keys, json_values)), max_size=10))
def test_no_line_of_an_engine_breaks_it(lines: list[dict[str, object]]) -> None:
    progress = PullProgress(LIMITS, 0)
    for line in lines:
        progress.feed(line, 1)
    assert progress.text == "" or progress.text.endswith(" %")


def test_pauses_grow_to_a_limit() -> None:
    limits = PullLimits(first_pause_seconds=60, longest_pause_seconds=3600)
    assert [limits.pause_seconds(failures) for failures in (1, 2, 3, 10, 1000)] == [60, 120, 240, 3600, 3600]


@pytest.mark.parametrize(
    ("root_image", "key"),
    [
        ("docker://busybox", "docker://busybox:latest"),
        ("docker://busybox:1", "docker://busybox:1"),
        ("docker://example.com:5000/a/b", "docker://example.com:5000/a/b:latest"),
        ("docker://a@sha256:00", "docker://a@sha256:00"),
        ("https://example.com/a.tar", "https://example.com/a.tar"),
        ("image.tar", "/files/image.tar"),
        ("/images/image.tar", "/images/image.tar"),
    ],
)
def test_one_image_has_one_key(root_image: str, key: str) -> None:
    assert image_key(root_image, Path("/files")) == key


def test_an_archive_of_one_image_is_asked_for() -> None:
    assert loaded_image([{"stream": "Loaded image: pilot:1\n"}]) == "pilot:1"
    assert (
        loaded_image([{"status": "Loading layer"}, {"stream": "Loaded image ID: sha256:00\n"}]) == "sha256:00"
    )
    for lines in ([], [{"stream": "Loaded image: a\n"}, {"stream": "Loaded image: b\n"}]):
        with pytest.raises(PullError, match=f"holds {len(lines)} images"):
            loaded_image(lines)
    with pytest.raises(PullError, match="no image archive: unexpected EOF"):
        loaded_image([{"error": "unexpected EOF"}])
