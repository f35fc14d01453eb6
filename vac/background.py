"""Background work: a key, the work, a deadline, a back-off, and a message when it is done.

    look = BackgroundWork("images", post, at_once=4, rest=Rest(first_failure_seconds=10))
    look.start(url, lambda: download(url))     # returns at once; later, in a thread, post(Outcome(url, value=…))

A key is worked on by one thread at a time. Threads come with work and go when there is none; none keeps the process
alive. Threads that listen for ever are not what this is for.

With post, outcomes are handled where post runs what it is given: a factory's loop has them done in its own thread.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vac.text import without_url_secrets

_T = TypeVar("_T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome(Generic[_T]):
    """Result of a piece of work, or its missed deadline."""

    key: str
    value: _T | None = field(default=None, repr=False)
    failure: str = ""
    """Reason why there is no value."""
    late: bool = False
    """True: the deadline has passed, and the work goes on. A second outcome follows if it ever ends."""


@dataclass(frozen=True)
class Rest:
    """Pauses until a key is worked on again."""

    success_seconds: float = 0.0
    first_failure_seconds: float = 0.0
    """Doubled with each further failure."""
    longest_seconds: float = 900.0

    def seconds(self, failures: int) -> float:
        """Return the rest after so many failures in a row."""
        if not failures:
            return self.success_seconds
        return min(self.first_failure_seconds * 2.0 ** min(failures - 1, 30), self.longest_seconds)


def in_thread(work: Callable[[], None], name: str) -> None:
    """Run the work in a daemon thread of this name. Raises RuntimeError if the process can have no more."""
    threading.Thread(target=work, name=name, daemon=True).start()


class _Job(Generic[_T]):
    """A key's present or last work."""

    def __init__(self) -> None:
        self.work: Callable[[], _T] | None = None
        self.late = False
        self.rest = Rest()
        self.failures = 0
        self.next_time = float("-inf")
        self.settled = threading.Event()


class BackgroundWork(Generic[_T]):
    """Work in threads, at most at_once pieces together; the others wait in order. For any thread. None: no limit.

    done is called from the work's thread with each Outcome, when start() would do something for the key again, but for
    its rest. Work fails by raising an OSError or ValueError with a reason; any other exception is logged as a bug, and
    is a failure, too. Work that is late gives up its place among at_once; once most_late pieces are, no other is begun.
    """

    def __init__(
        self,
        name: str,
        done: Callable[[Outcome[_T]], object] = lambda outcome: None,
        *,
        at_once: int | None = 1,
        deadline_seconds: float | None = None,
        rest: Rest | None = None,
        most_late: int = 16,
        clock: Callable[[], float] = time.monotonic,
        post: Callable[[Callable[[], object]], object] = lambda call: call(),
        spawn: Callable[[Callable[[], None], str], object] = in_thread,
    ) -> None:
        """name: of the threads. post: has done called, at once unless told otherwise."""
        self._name = name
        self._done = done
        self._at_once = sys.maxsize if at_once is None else at_once
        self._deadline_seconds = deadline_seconds
        self._rest = rest or Rest()
        self._most_late = most_late
        self._clock = clock
        self._post = post
        self._spawn = spawn
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job[_T]] = {}
        self._waiting: collections.deque[str] = collections.deque()
        self._threads = 0
        """Those that hold a place."""
        self._late = 0

    def start(self, key: str, work: Callable[[], _T], rest: Rest | None = None) -> bool:
        """Have this done, unless the key is being worked on or rests. Never blocks; False if nothing was begun.

        rest: of this key afterwards, instead of the common one.
        """
        with self._lock:
            job = self._jobs.setdefault(key, _Job())
            begins = job.work is None and self._clock() >= job.next_time
            if begins:
                job.work, job.rest = work, rest or self._rest
                job.settled.clear()
                self._waiting.append(key)
        if begins:
            self._start_worker()
        return begins

    def busy(self, key: str) -> bool:
        """Return True while the key's work waits or goes on, be it late."""
        with self._lock:
            return key in self._jobs and self._jobs[key].work is not None

    def rest_seconds(self, key: str) -> float:
        """Return how long start() will do nothing for this key."""
        with self._lock:
            return max(0.0, self._jobs[key].next_time - self._clock()) if key in self._jobs else 0.0

    def wait(self, key: str, seconds: float) -> bool:
        """Wait at most this long until the key's work has ended and done has returned; False if it hasn't."""
        with self._lock:
            job = self._jobs.get(key)
        return job is None or job.settled.wait(seconds)

    def wake(self, key: str) -> None:
        """End the key's rest."""
        with self._lock:
            if key in self._jobs:
                self._jobs[key].next_time = float("-inf")

    def forget(self, key: str) -> None:
        """Drop what is known of a key that isn't being worked on."""
        with self._lock:
            if key in self._jobs and self._jobs[key].work is None:
                del self._jobs[key]

    def _start_worker(self) -> None:
        """Start a thread if there is work and a place for it."""
        with self._lock:
            if not self._waiting or self._threads >= self._at_once or self._late >= self._most_late:
                return
            self._threads += 1
        try:
            self._spawn(self._keep_working, self._name)
        except RuntimeError as error:  # no more threads
            with self._lock:
                self._threads -= 1
                key = self._waiting.popleft() if self._waiting and not self._threads else None
                job = self._jobs.get(key or "")
            if key is not None and job is not None:
                self._finish(key, job, Outcome(key, failure=str(error)))

    def _keep_working(self) -> None:
        """Do what waits. A thread whose work was late has given up its place, and ends."""
        was_late = False
        while not was_late:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                key = self._waiting.popleft()
            job = self._jobs[key]
            timer = threading.Timer(self._deadline_seconds or 0.0, self._mark_late, [key, job])
            timer.daemon = True
            if self._deadline_seconds is not None:
                with contextlib.suppress(RuntimeError):  # no more threads: then without a deadline
                    timer.start()
            outcome = self._outcome(key, job)
            with self._lock:
                was_late, job.late = job.late, False
                self._late -= was_late
            timer.cancel()
            self._finish(key, job, outcome)
        self._start_worker()

    def _outcome(self, key: str, job: _Job[_T]) -> Outcome[_T]:
        work = job.work
        try:
            return Outcome(key, work() if work is not None else None)
        except (OSError, ValueError) as error:
            return Outcome(key, failure=(isinstance(error, OSError) and error.strerror) or str(error))
        except Exception as error:
            shown = without_url_secrets(key)
            log.exception("%s: unexpected error in background work for %s", self._name, shown)
            return Outcome(key, failure=f"unexpected {type(error).__name__} (see the log)")

    def _finish(self, key: str, job: _Job[_T], outcome: Outcome[_T]) -> None:
        with self._lock:
            job.failures = job.failures + 1 if outcome.failure else 0
            rest_seconds = job.rest.seconds(job.failures)
            job.next_time = self._clock() + rest_seconds if rest_seconds else float("-inf")
            job.work = None
        try:
            self._post(lambda: self._done(outcome))
        except Exception:
            shown = without_url_secrets(key)
            log.exception("%s: unexpected error while the end of work for %s was told", self._name, shown)
        finally:
            with self._lock:
                if job.work is None:
                    job.settled.set()
                    if job.next_time == float("-inf") and self._jobs.get(key) is job:
                        del self._jobs[key]

    def _mark_late(self, key: str, job: _Job[_T]) -> None:
        with self._lock:
            if job.work is None or job.late:
                return
            job.late = True
            self._late += 1
            self._threads -= 1
        late: Outcome[_T] = Outcome(key, failure=f"isn't done within {self._deadline_seconds:g} s", late=True)
        self._post(lambda: self._done(late))
        self._start_worker()
