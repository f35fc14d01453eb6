"""Background work: one thread per key, so many together, deadlines, back-off, and a message when it is done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from vac.background import BackgroundWork, Outcome, Rest

PATIENCE = 60


class Gate:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.begun: queue.Queue[str] = queue.Queue()
        self.go = threading.Event()

    def work(self, key: str) -> str:
        self.begun.put(key)
        assert self.go.wait(PATIENCE)
        return key.upper()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def told(outcomes: queue.Queue[Outcome[str]], number: int = 1) -> list[Outcome[str]]:
    return [outcomes.get(timeout=PATIENCE) for _ in range(number)]


def fail() -> str:
    raise OSError(5, "no such thing")


def test_work_of_one_key_is_done_once_at_a_time(gate: Gate) -> None:
    outcomes: queue.Queue[Outcome[str]] = queue.Queue()
    work: BackgroundWork[str] = BackgroundWork("test", outcomes.put)
    assert work.start("a", lambda: gate.work("a"))
    assert not work.start("a", lambda: gate.work("a"))
    assert work.busy("a")
    gate.go.set()
    assert told(outcomes) == [Outcome("a", "A")]
    assert work.start("a", lambda: gate.work("a"))
    assert told(outcomes) == [Outcome("a", "A")]
    assert gate.begun.qsize() == 2


def test_so_many_pieces_are_done_together_the_others_in_order(gate: Gate) -> None:
    outcomes: queue.Queue[Outcome[str]] = queue.Queue()
    work: BackgroundWork[str] = BackgroundWork("test", outcomes.put, at_once=2)
    for key in "abcd":
        work.start(key, lambda key=key: gate.work(key))  # type: ignore[misc]
    assert {gate.begun.get(timeout=PATIENCE) for _ in range(2)} == {"a", "b"}
    assert gate.begun.empty()
    gate.go.set()
    assert {outcome.value for outcome in told(outcomes, 4)} == {"A", "B", "C", "D"}


def test_late_work_is_told_and_makes_room_but_not_without_end(gate: Gate) -> None:
    outcomes: queue.Queue[Outcome[str]] = queue.Queue()
    work: BackgroundWork[str] = BackgroundWork("test", outcomes.put, deadline_seconds=0.05, most_late=2)
    for key in "abc":
        work.start(key, lambda key=key: gate.work(key))  # type: ignore[misc]
    late = [Outcome[str](key, failure="isn't done within 0.05 s", late=True) for key in "ab"]
    assert told(outcomes, 2) == late
    assert not work.start("a", lambda: gate.work("a"))
    assert [gate.begun.get(timeout=PATIENCE) for _ in range(2)] == ["a", "b"]
    assert gate.begun.empty()
    gate.go.set()
    assert {outcome.value for outcome in told(outcomes, 3)} == {"A", "B", "C"}


def test_a_failed_key_rests_longer_each_time() -> None:
    now = [0.0]
    outcomes: queue.Queue[Outcome[str]] = queue.Queue()
    rest = Rest(success_seconds=100, first_failure_seconds=10, longest_seconds=35)
    work: BackgroundWork[str] = BackgroundWork("test", outcomes.put, rest=rest, clock=lambda: now[0])
    for seconds in (10, 20, 35, 35):
        assert work.start("a", fail)
        assert told(outcomes) == [Outcome("a", failure="no such thing")]
        assert work.rest_seconds("a") == seconds
        assert not work.start("a", fail)
        now[0] += seconds
    assert work.start("a", lambda: "fine")
    assert told(outcomes) == [Outcome("a", "fine")]
    assert work.rest_seconds("a") == 100
    assert work.wait("a", PATIENCE)
    work.wake("a")
    assert work.start("a", fail)
    told(outcomes)
    assert work.rest_seconds("a") == 10


def test_who_waits_goes_on_after_the_message(gate: Gate) -> None:
    kept: list[Outcome[str]] = []
    work: BackgroundWork[str] = BackgroundWork("test", kept.append)
    work.start("a", lambda: gate.work("a"))
    assert not work.wait("a", 0.01)
    gate.go.set()
    assert work.wait("a", PATIENCE)
    assert kept == [Outcome("a", "A")]
    assert work.wait("never started", 0)


def test_a_bug_is_logged_and_is_a_failure_too(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: queue.Queue[Outcome[str]] = queue.Queue()
    work: BackgroundWork[str] = BackgroundWork("test", outcomes.put)
    nothing: dict[str, str] = {}
    work.start("a", lambda: nothing["x"])
    assert told(outcomes) == [Outcome("a", failure="unexpected KeyError (see the log)")]
    assert "KeyError" in caplog.text


def test_an_error_where_the_end_is_told_stops_no_other_work(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: queue.Queue[Outcome[str]] = queue.Queue()

    def tell(outcome: Outcome[str]) -> None:
        outcomes.put(outcome)
        raise KeyError(outcome.key)

    work: BackgroundWork[str] = BackgroundWork("test", tell)
    for key in "ab":
        work.start(key, lambda: "x")
        assert told(outcomes) == [Outcome(key, "x")]
        assert work.wait(key, PATIENCE)
    assert "KeyError" in caplog.text


def test_a_thread_that_can_not_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    kept: list[Outcome[str]] = []
    work: BackgroundWork[str] = BackgroundWork("test", kept.append)
    for _ in range(2):
        work.start("a", lambda: "x")
    assert kept == 2 * [Outcome("a", failure="can't start new thread")]
