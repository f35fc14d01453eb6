"""Text for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac import text


@pytest.mark.parametrize(
    ("given_text", "masked"),
    [
        ("https://user:hunter2@example.org/x", "https://***@example.org/x"),
        ("https://token@example.org/x", "https://***@example.org/x"),
        ("https://example.org/x?sig=hunter2&n=1", "https://example.org/x?…"),
        ("https://example.org/x#hunter2", "https://example.org/x?…"),
        ("fetch 'https://a.example/?t=hunter2' failed", "fetch 'https://a.example/?…' failed"),
        ("s3+http://a:hunter2@b/c?hunter2 http://c/d?hunter2", "s3+http://***@b/c?… http://c/d?…"),
        ("docker://library/busybox:1", "docker://library/busybox:1"),
        ("docker://busybox@sha256:0a", "docker://busybox@sha256:0a"),
        ("why? a/b@c #1", "why? a/b@c #1"),
    ],
)
def test_no_secret_of_a_url_stays_in_a_text(given_text: str, masked: str) -> None:
    assert text.without_url_secrets(given_text) == masked


def test_quoted_values_are_masked_and_cut() -> None:
    assert text.quoted("http://u:hunter2@h/x\n") == "'http://***@h/x\\n'"
    assert len(text.quoted("x" * 200)) == 82


@given(st.text())
def test_any_text_becomes_one_printable_line(anything: str) -> None:
    assert text.printable(anything).isprintable()
    assert text.escaped(anything).isprintable()
    assert len(text.printable(anything)) == len(anything)
    short = text.untrusted(anything, 20)
    assert short.isprintable()
    assert len(short) <= 20


def test_escapes_show_what_was_there() -> None:
    assert text.escaped("a\n\x1b[1mb\u202e") == "a\\n\\x1b[1mb\\u202e"
    assert text.printable("a\n\x1b[1mb") == "a??[1mb"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (-5, "0 s"), (42.1, "43 s"), (119, "119 s"), (121, "3 min"), (7200, "2 h 00 min")],
)
def test_durations_are_rounded_up(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@given(st.floats(allow_nan=False))
def test_any_number_of_seconds_has_words(seconds: float) -> None:
    for words in (text.duration(seconds), text.utc_time(seconds), text.local_time(seconds)):
        assert words.isprintable()


def test_times_and_counts() -> None:
    assert text.utc_time(0) == "1970-01-01 00:00:00 UTC"
    assert text.utc_time(1e300) == "@1e+300"
    assert [text.count(number, "slot") for number in (0, 1, 2)] == ["0 slots", "1 slot", "2 slots"]
