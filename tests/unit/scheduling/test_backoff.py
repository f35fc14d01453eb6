"""Aborts, and how long a factory's own ones hold a type back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.scheduling.backoff import History, TypeHistory, is_abort, message_code, reported_message
from vac.scheduling.model import MachineEnd

FIZZLE = 600.0


def ended(
    end: float, message: str | None, lifetime: float = 100.0, created: float | None = None, name: str = "a"
) -> MachineEnd:
    start = end - lifetime
    return MachineEnd(name, start if created is None else created, start, end, message)


def history(*outcomes: MachineEnd) -> TypeHistory:
    return History.of(outcomes, {"a": FIZZLE}).get("a")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("200 Success", 200),
        ("300", 300),
        ("100\tShutdown", 100),
        ("3000 things", None),
        ("Success 200", None),
        ("20", None),
        ("", None),
        (None, None),
        ("٣٠٠ digits of others", None),
    ],
)
def test_a_message_begins_with_a_three_digit_code(message: str | None, code: int | None) -> None:
    assert message_code(message) == code
    assert is_abort(message) == (code is not None and code >= 300)


@pytest.mark.parametrize(
    ("message", "lived", "reported"),
    [
        ("200 Success\nmore", 10, "200 Success"),
        ("300 No work", 10, "300 No work"),
        (None, 12, "300 No shutdown message: fizzle after 12 seconds"),
        ("gave up", 599, "300 No shutdown message: fizzle after 599 seconds"),
        ("gave up", 600, "gave up"),
        (None, 600, None),
        ("  \n", 600, None),
        (None, -5, "300 No shutdown message: fizzle after 0 seconds"),
    ],
)
def test_a_short_life_without_a_code_is_reported_as_fizzle(
    message: str | None, lived: float, reported: str | None
) -> None:
    assert reported_message(message, 1000, 1000 + lived, FIZZLE) == reported


@given(st.none() | st.text(), st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_is_reported_is_one_line(message: str | None, lived: float, fizzle_seconds: float) -> None:
    reported = reported_message(message, 0, lived, fizzle_seconds)
    assert reported is None or len(reported.splitlines()) == 1
    assert reported_message(reported, 0, lived, fizzle_seconds) == reported


@pytest.mark.parametrize(
    ("outcomes", "in_a_row"),
    [
        ([ended(1000, "300 No work")], 1),
        ([ended(1000, "200 Success")], 0),
        ([ended(1000, "200 Success", lifetime=59)], 1),
        ([ended(1000, None, lifetime=700)], 0),
        ([ended(1000, "300 x"), ended(2000, "500 x"), ended(3000, "700 x")], 3),
        ([ended(1000, "300 x"), ended(2000, "200 x", lifetime=599)], 1),
        ([ended(1000, "300 x"), ended(2000, "200 x", lifetime=600)], 0),
        ([ended(1000, "300 x"), ended(2000, "300 x", lifetime=600)], 2),
        ([ended(1000, "300 x"), ended(1001, "300 x"), ended(1002, "300 x")], 1),
        ([ended(1000, "300 x"), MachineEnd("a", 1500, None, 1501, None)], 1),
        ([MachineEnd("a", 1500, None, 1501, None)], 0),
    ],
)
def test_tries_that_fail_in_a_row_are_counted(outcomes: list[MachineEnd], in_a_row: int) -> None:
    assert history(*outcomes).aborts == in_a_row
    assert history(*reversed(outcomes)).aborts == in_a_row


@pytest.mark.parametrize(
    ("aborts", "backoff_seconds", "hold"),
    [
        (0, 60, 0),
        (1, 60, 60),
        (2, 60, 120),
        (4, 60, 480),
        (7, 60, 3600),
        (10**6, 60, 3600),
        (1, 7200, 7200),
        (3, 7200, 7200),
        (3, 0, 4),
    ],
)
def test_the_hold_doubles_up_to_an_hour_or_the_backoff(
    aborts: int, backoff_seconds: int, hold: float
) -> None:
    assert TypeHistory(aborts=aborts).hold_seconds(backoff_seconds) == hold


@pytest.mark.parametrize(("failures", "pause"), [(0, 0), (1, 10), (2, 20), (3, 40), (7, 600), (10**6, 600)])
def test_creation_failures_pause_ten_seconds_doubling_to_ten_minutes(failures: int, pause: float) -> None:
    assert TypeHistory(failures=failures).failure_pause_seconds() == pause


def test_creations_that_fail_together_count_once() -> None:
    together = [MachineEnd("a", 1000, None, 1001 + number, None) for number in range(8)]
    assert history(*together).failures == 1
    assert history(*together, MachineEnd("a", 1500, None, 1501, None)).failures == 2
    assert history(*together, ended(3000, "200 Success", 700)).failures == 0


@pytest.mark.parametrize(
    ("outcomes", "abort_time"),
    [
        ([ended(1000, "300 x")], 1000),
        ([ended(1000, "300 x", created=900), ended(2000, "200 x", created=800)], 1000),
        ([ended(1000, "300 x", created=900), ended(2000, "200 x", created=950)], None),
        ([ended(1000, "300 x"), MachineEnd("a", 1500, None, 1501, None)], 1000),
        ([ended(1000, "200 x", lifetime=10)], None),
    ],
)
def test_the_abort_time_is_that_of_the_most_recently_created_one(
    outcomes: list[MachineEnd], abort_time: float | None
) -> None:
    assert history(*outcomes).abort_time == abort_time


@pytest.mark.parametrize(
    ("message", "no_work"),
    [
        ("300 No work available", True),
        ("399 No work", True),
        ("400 Banned", False),
        ("300 No shutdown message: fizzle after 5 seconds", False),
    ],
)
def test_no_work_is_told_from_trouble(message: str, no_work: bool) -> None:
    assert history(ended(1000, message)).no_work == no_work


def test_types_that_are_not_configured_have_no_history() -> None:
    assert History.of([ended(1000, "300 x", name="gone")], {"a": FIZZLE}) == History()
