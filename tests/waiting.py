"""Waiting for what no event tells."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Callable

import pytest

PATIENCE_SECONDS = 300.0
LEAST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 2.0


def wait_for(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    seconds: float = PATIENCE_SECONDS,
) -> float:
    """Look until the condition holds, and return how long that took, seconds; fail the test if it takes too long.

    Pauses are four times as long as a look takes: a condition that runs commands leaves the host to what it waits for.
    """
    begun = time.monotonic()
    while True:
        asked = time.monotonic()
        if condition():
            return time.monotonic() - begun
        now = time.monotonic()
        if now - begun > seconds:
            pytest.fail(f"not so after {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(min(max(LEAST_PAUSE_SECONDS, 4 * (now - asked)), LONGEST_PAUSE_SECONDS))


def wait_until_stopped(pid: int) -> None:
    """Wait until SIGSTOP has stopped all threads of a process; some may have been about to end."""

    def stopped(task: Path) -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
        return True

    tasks = Path(f"/proc/{pid}/task")
    wait_for(lambda: all(stopped(task) for task in tasks.iterdir()), f"all of process {pid} has stopped")
