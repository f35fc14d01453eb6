"""The site's own health check of a node, run in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TIME_LIMIT_SECONDS = 60.0
END_SECONDS = 1.0
"""How long a killed check is waited for."""
MOST_CHARACTERS = 200
_MOST_BYTES = 4096


@dataclass(frozen=True)
class HealthChecked:
    """What health_command has said."""

    problem: str | None
    """First line of its output, or what else was wrong with it; None: all is well."""


class HealthCheck:
    """Runs a program in a thread of its own, one at a time; post takes each HealthChecked."""

    def __init__(
        self, post: Callable[[HealthChecked], object], time_limit_seconds: float = TIME_LIMIT_SECONDS
    ) -> None:
        self._post = post
        self._time_limit_seconds = time_limit_seconds
        self._busy = threading.Lock()

    def start(self, command: Path) -> None:
        """Run it, unless it still runs."""
        if self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, args=(command,), name="health", daemon=True).start()

    def _run(self, command: Path) -> None:
        try:
            problem = _check(command, self._time_limit_seconds)
        finally:
            self._busy.release()
        self._post(HealthChecked(problem))


def _check(command: Path, time_limit_seconds: float) -> str | None:
    try:
        process = subprocess.Popen(
            [str(command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"{command} can't be run: {error.strerror}"
    try:
        output, _ = process.communicate(timeout=time_limit_seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _let_go(process)
        return f"{command} took longer than {time_limit_seconds:g} s"
    if process.returncode == 0:
        return None
    lines = output[:_MOST_BYTES].decode("utf-8", "replace").strip().splitlines()
    return (
        lines[0][:MOST_CHARACTERS] if lines else f"{command} failed ({process.returncode}) and said nothing"
    )


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Don't wait for ever: a daemon that the check has started may keep its output open."""
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_SECONDS)
