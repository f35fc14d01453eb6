"""How many repositories are looked at together, and what comes of those that can't be."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from vac.host import cvmfs
from vac.host.cvmfs import AT_ONCE, RepositorySeen, RepositoryWatch

PATIENCE = 60
MANY = [f"r{number:03d}" for number in range(2 * AT_ONCE)]


class Child:
    """Hangs until it is let go; late ones first say that their time is over."""

    returncode = 0
    late = False
    started: queue.Queue[str] = queue.Queue()
    go = threading.Event()

    def __init__(self, argv: list[str], **_: Any) -> None:
        self.started.put(argv[-1].rpartition("/")[2])

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if self.late and timeout is not None:
            raise subprocess.TimeoutExpired("child", timeout)
        assert self.go.wait(PATIENCE)
        return "", ""


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Child]]:
    class Own(Child):
        started: queue.Queue[str] = queue.Queue()
        go = threading.Event()

    monkeypatch.setattr(subprocess, "Popen", Own)
    yield Own
    Own.go.set()


def started(child: type[Child], number: int) -> list[str]:
    return sorted(child.started.get(timeout=PATIENCE) for _ in range(number))


def test_only_so_many_are_looked_at_together_and_the_others_next(child: type[Child]) -> None:
    seen: queue.Queue[RepositorySeen] = queue.Queue()
    watch = RepositoryWatch(seen.put)
    watch.look(MANY)
    watch.look(MANY)
    assert started(child, AT_ONCE) == MANY[:AT_ONCE]
    assert child.started.empty()
    child.go.set()
    answers = [seen.get(timeout=PATIENCE) for _ in range(AT_ONCE)]
    assert {each.problem for each in answers} == {None}
    watch.look(MANY)
    assert started(child, AT_ONCE) == MANY[AT_ONCE:]


def test_those_that_hang_make_room_but_not_without_end(
    child: type[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cvmfs, "MOST_HANGING", len(MANY))
    child.late = True
    seen: queue.Queue[RepositorySeen] = queue.Queue()
    watch = RepositoryWatch(seen.put)
    for part in (MANY[:AT_ONCE], MANY[AT_ONCE:]):
        watch.look(MANY)
        assert started(child, AT_ONCE) == part
        problems = [seen.get(timeout=PATIENCE).problem for _ in part]
        assert problems == AT_ONCE * ["doesn't answer within 15 s"]
    watch.look([*MANY, "another"])
    assert child.started.empty()


def test_a_thread_that_can_not_be_started_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    seen: list[RepositorySeen] = []
    watch = RepositoryWatch(seen.append)
    for _ in range(2):
        watch.look(["a.b"])
    assert seen == 2 * [RepositorySeen("a.b", "can't be looked at: can't start new thread")]
