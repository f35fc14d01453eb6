"""Whether CernVM-FS repositories and images in them answer: a child process looks, since looking may take for ever.

Looking at a repository is also what keeps it mounted where an automounter would let go of it (autofs(5)).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

CVMFS = Path("/cvmfs")
ANSWER_SECONDS = 15.0
"""A repository that takes longer counts as one that doesn't answer, until it does."""
KILL_SECONDS = 1.0
"""How long a child that was killed is waited for: one in the kernel's hands may stay."""
AT_ONCE = 32
"""So many are looked at together; one that doesn't answer in time makes room for another."""
MOST_HANGING = 256
"""No more are looked at while so many children hang: each keeps a thread and an open file."""
_LOOK = """
import os, sys
try:
    if os.path.isdir(sys.argv[1]):
        with os.scandir(sys.argv[1]) as entries:
            print("" if next(entries, None) else "is empty, so it isn't mounted")
    else:
        with open(sys.argv[1], "rb") as file:
            file.read(1)
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
        self._late: set[str] = set()
        self._round = 0
        self._last: dict[str, int] = {}
        """The round in which each was last looked at."""

    def look(self, repositories: Iterable[str]) -> None:
        """Look at these, but not twice at one at a time: a child that hangs can't even be killed.

        If there are too many, those that have waited longest come first, and the others in later calls.
        """
        wanted = set(repositories)
        self._round += 1
        self._last = {each: when for each, when in self._last.items() if each in wanted}
        with self._lock:
            in_time = self._looking - self._late
            room = max(0, AT_ONCE - len(in_time)) if len(self._late) < MOST_HANGING else 0
            waiting = sorted(wanted - self._looking, key=lambda each: (self._last.get(each, 0), each))
            new = waiting[:room]
            self._looking.update(new)
        for each in new:
            self._last[each] = self._round
            try:
                threading.Thread(target=self._look, args=(each,), name="cvmfs", daemon=True).start()
            except (RuntimeError, OSError) as error:
                self._forget(each)
                self._post(RepositorySeen(each, f"can't be looked at: {error}"))

    def _look(self, repository: str) -> None:
        try:
            problem = self._wait_for_answer(repository)
        finally:
            self._forget(repository)
        self._post(RepositorySeen(repository, problem))

    def _forget(self, repository: str) -> None:
        with self._lock:
            self._looking.discard(repository)
            self._late.discard(repository)

    def _wait_for_answer(self, repository: str) -> str | None:
        try:
            child = _start(CVMFS / repository)
        except OSError as error:
            return f"can't be looked at: {error.strerror}"
        try:
            said, _ = child.communicate(timeout=self._answer_seconds)
        except subprocess.TimeoutExpired:
            with self._lock:
                self._late.add(repository)
            self._post(RepositorySeen(repository, _late(self._answer_seconds)))
            said, _ = child.communicate()
        return _verdict(child, said)


def problem_of(path: str, answer_seconds: float | None = None) -> str | None:
    """What keeps this file or directory from being used, in words that follow its path; None: it answers.

    Only paths below /cvmfs are looked at; it takes answer_seconds (ANSWER_SECONDS) and a little at most.
    """
    if not f"{os.path.normpath(path)}/".startswith(f"{CVMFS}/"):
        return None
    seconds = ANSWER_SECONDS if answer_seconds is None else answer_seconds
    try:
        child = _start(path)
    except OSError as error:
        return f"can't be looked at: {error.strerror}"
    try:
        return _verdict(child, child.communicate(timeout=seconds)[0])
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=KILL_SECONDS)
        return _late(seconds)


def _start(path: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LOOK, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        text=True,
    )


def _verdict(child: subprocess.Popen[str], said: str) -> str | None:
    if child.returncode != 0:
        return f"can't be looked at: its child process ended with {child.returncode}"
    return said.strip() or None


def _late(seconds: float) -> str:
    return f"doesn't answer within {seconds:.0f} s"
