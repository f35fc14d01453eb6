"""The site's own health check."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from vac.host.health import HealthCheck, HealthChecked

pytestmark = pytest.mark.allow_subprocess


def check(path: Path, script: str, seconds: float = 10.0) -> str | None:
    command = path / "check"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    told: queue.SimpleQueue[HealthChecked] = queue.SimpleQueue()
    HealthCheck(told.put, seconds).start(command)
    return told.get(timeout=60).problem


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo fine", None),
        ("echo no space on /scratch; echo more; exit 1", "no space on /scratch"),
        ("echo broken >&2; exit 3", "broken"),
        ("printf '\\377\\n'; exit 1", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_first_line_of_a_failing_check_is_the_reason(
    tmp_path: Path, script: str, problem: str | None
) -> None:
    assert check(tmp_path, script) == problem


def test_a_check_that_fails_silently_is_named(tmp_path: Path) -> None:
    assert "failed (7) and said nothing" in (check(tmp_path, "exit 7") or "")


def test_a_check_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    assert "took longer" in (check(tmp_path, "sleep 1000 & sleep 1000", 0.2) or "")


def test_a_daemon_that_a_check_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    assert "took longer" in (check(tmp_path, "setsid sleep 30 & sleep 1000", 0.2) or "")


def test_a_check_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    told: queue.SimpleQueue[HealthChecked] = queue.SimpleQueue()
    HealthCheck(told.put).start(tmp_path / "none")
    assert "can't be run" in (told.get(timeout=60).problem or "")
