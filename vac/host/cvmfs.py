"""Whether CernVM-FS repositories answer: a child process looks at each, since looking may take for ever.

Looking is also what keeps a repository mounted where an automounter would let go of it (autofs(5)).
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

CVMFS = Path("/cvmfs")
ANSWER_SECONDS = 15.0
"""A repository that takes longer counts as one that doesn't answer, until it does."""
_LOOK = """
import os, sys
try:
    with os.scandir(sys.argv[1]) as entries:
        print("" if next(entries, None) else "is empty, so it isn't mounted")
except OSError as error:
    print(f"can't be read: {error.strerror}")
"""


@dataclass(frozen=True)
class RepositorySeen:
    """What has come of looking at a repository."""

    repository: str
    problem: str | None
    """In words that follow its name; None: it answers."""


class RepositoryWatch:
    """Looks at repositories, each in a thread and a child process of its own; post takes each RepositorySeen."""

    def __init__(
        self, post: Callable[[RepositorySeen], object], answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._post = post
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._looking: set[str] = set()

    def look(self, repositories: Iterable[str]) -> None:
        """Look at these, but not twice at one at a time: a child that hangs can't even be killed."""
        with self._lock:
            new = set(repositories) - self._looking
            self._looking |= new
        for each in sorted(new):
            threading.Thread(target=self._look, args=(each,), name="cvmfs", daemon=True).start()

    def _look(self, repository: str) -> None:
        try:
            problem = self._wait_for_answer(repository)
        finally:
            with self._lock:
                self._looking.discard(repository)
        self._post(RepositorySeen(repository, problem))

    def _wait_for_answer(self, repository: str) -> str | None:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LOOK, str(CVMFS / repository)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                text=True,
            )
        except OSError as error:
            return f"can't be looked at: {error.strerror}"
        try:
            said, _ = child.communicate(timeout=self._answer_seconds)
        except subprocess.TimeoutExpired:
            late = f"doesn't answer within {self._answer_seconds:.0f} s"
            self._post(RepositorySeen(repository, late))
            said, _ = child.communicate()
        if child.returncode != 0:
            return f"can't be looked at: its child process ended with {child.returncode}"
        return said.strip() or None
