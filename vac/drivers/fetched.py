"""Images with URLs for engines that take files: fetched in the background, so that nobody waits for a server.

A Preparing driver asks prepare() for its reason, and path() when it makes a machine.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from vac.config.values import without_password

FIRST_LOOK_SECONDS = 1.0
"""How long prepare() waits for the first answer: a copy in the cache that is up to date takes no longer."""
REFRESH_SECONDS = 3600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 600.0
"""From a failure to the next attempt; doubled with each."""

_log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """What is known of one URL. Only its thread, of which there is one at a time, changes it."""

    working: bool = False
    settled: threading.Event = field(default_factory=threading.Event)
    """Set once somebody has waited for it, or it has come."""
    path: Path | None = None
    failure: str = ""
    failures: int = 0
    next_time: float = 0.0


class FetchedImages:
    """Copies of images by URL.

    fetch gives the local path of the image with a URL, up to date, and raises OSError with a reason if it can't.
    became_ready is called, from any thread, when an image has come that was waited for.
    """

    def __init__(
        self,
        fetch: Callable[[str], Path] | None,
        became_ready: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._became_ready = became_ready
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def prepare(self, url: str) -> str | None:
        """None if there is a copy; else why not yet. Starts what is needed, also to bring a copy up to date."""
        shown = without_password(url)
        if self._fetch is None:
            return f"{shown}: images can't be downloaded here; use a path"
        with self._lock:
            entry = self._entries.setdefault(url, _Entry())
            if not entry.working and self._clock() >= entry.next_time:
                entry.working = True
                work = (url, entry, self._fetch)
                threading.Thread(target=self._work, args=work, name="image", daemon=True).start()
        entry.settled.wait(FIRST_LOOK_SECONDS)
        entry.settled.set()
        if entry.path is not None:
            return None
        if entry.working or not entry.failure:
            return f"image {shown} is being downloaded"
        seconds = max(entry.next_time - self._clock(), 0)
        return f"image {shown}: {entry.failure}; next attempt in {seconds:.0f} s"

    def path(self, url: str) -> Path | None:
        """The copy, as new as the last prepare() found it. None if there is none: the next one gets it again."""
        with self._lock:
            entry = self._entries.get(url)
            if entry is None or entry.path is None or entry.path.exists():
                return entry.path if entry else None
            del self._entries[url]
        return None

    def _work(self, url: str, entry: _Entry, fetch: Callable[[str], Path]) -> None:
        pause_seconds = LONGEST_PAUSE_SECONDS
        try:
            path = fetch(url)
            entry.failure, entry.failures = "", 0
            pause_seconds = REFRESH_SECONDS
            late = entry.path is None and entry.settled.is_set()
            entry.path = path
            entry.settled.set()
            if late:
                self._became_ready()
        except OSError as error:
            pause_seconds = min(FIRST_PAUSE_SECONDS * 2**entry.failures, LONGEST_PAUSE_SECONDS)
            entry.failures += 1
            reason = error.strerror or str(error)
            if reason != entry.failure:
                _log.warning("image %s: %s", without_password(url), reason)
            entry.failure = reason
        finally:
            with self._lock:
                entry.next_time = self._clock() + pause_seconds
                entry.working = False
            entry.settled.set()
