"""Images that a driver boots from as files: downloaded and checked in the background, so that nobody waits.

Each image has one thread while something is being done for it. Whoever wants to create a machine asks
prepare(), which answers from memory.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, NamedTuple

from vac.config.values import without_password
from vac.drivers.base import CreationFailed, Fetch
from vac.host.probes import problem_of

FIRST_LOOK_SECONDS = 1.0
"""How long prepare() waits for an image that may be there already."""
REFRESH_SECONDS = 600.0
"""How often the server is asked whether there is a newer one."""
FIRST_PAUSE_SECONDS = 30.0
"""After a failure; doubled with each further one."""
LONGEST_PAUSE_SECONDS = 1800.0

_log = logging.getLogger(__name__)


class _Key(NamedTuple):
    source: str
    signing_dn: str | None

    @property
    def shown(self) -> str:
        return without_password(self.source)


class _Ready(NamedTuple):
    path: Path
    stamp: tuple[int, ...]
    """Of the very file that was checked."""


@dataclass
class _Entry:
    """What is known of one image. Only its thread, of which there is one at a time, changes it."""

    working: bool = False
    settled: threading.Event = field(default_factory=threading.Event)
    """Set once it is known whether the image is there."""
    ready: _Ready | None = None
    failure: str = ""
    failures: int = 0
    next_time: float = 0.0


class ImageFiles:
    """The images that machinetypes name.

    fetch None: URLs, and images that have to be signed, are refused. news is called, from any thread, when
    an image has come that was waited for, or something else than before keeps it from coming.
    """

    def __init__(
        self,
        fetch: Fetch | None,
        news: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._fetch = fetch
        self._news = news
        self._clock = clock
        self._first_pause_seconds = first_pause_seconds
        self._lock = threading.Lock()
        self._entries: dict[_Key, _Entry] = {}

    def prepare(self, root_image: str | None, signing_dn: str | None, files: Path) -> str | None:
        """None if a machine can boot from this image now, else why not yet. Starts what is needed.

        A relative root_image is in files. A file that needs no signature isn't looked at here: path() does.
        """
        if not root_image:
            return "no root_image is configured; a URL or a path would be right"
        key = _key(root_image, signing_dn, files)
        if not _needs_work(key):
            return None
        if self._fetch is None:
            return f"{key.shown}: images can't be downloaded or checked here; use a path without a signature"
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            if not entry.working and self._clock() >= entry.next_time:
                entry.working = True
                work = (self._fetch, key, entry)
                threading.Thread(target=self._work, args=work, name="image", daemon=True).start()
        entry.settled.wait(FIRST_LOOK_SECONDS)
        entry.settled.set()
        return self._reason(key, entry)

    def path(self, root_image: str | None, signing_dn: str | None, files: Path) -> Path:
        """The image's file. Raises CreationFailed if it isn't ready, or isn't any more what was checked."""
        return self._find(root_image, signing_dn, files, None)[0]

    def held(
        self, root_image: str | None, signing_dn: str | None, files: Path, own_name: Path
    ) -> tuple[Path, Path]:
        """As path(), and the name to open it by: own_name if it was fetched or checked and both are on one file system.

        That names what was checked even when the other has been replaced. The caller removes it.
        """
        return self._find(root_image, signing_dn, files, own_name)

    def _find(
        self, root_image: str | None, signing_dn: str | None, files: Path, own_name: Path | None
    ) -> tuple[Path, Path]:
        missing = self.prepare(root_image, signing_dn, files)
        if missing is not None:
            raise CreationFailed(missing)
        key = _key(root_image or "", signing_dn, files)
        hanging = problem_of(key.source)
        if hanging is not None:
            raise CreationFailed(f"image {key.shown} {hanging}")
        entry = self._entries.get(key)
        path = Path(key.source) if entry is None or entry.ready is None else entry.ready.path
        name = path if entry is None or own_name is None else _named(path, own_name)
        try:
            stamp = _stamp(name)
        except OSError as error:
            stamp, missing = None, error.strerror
        if entry is not None and (entry.ready is None or stamp != entry.ready.stamp):
            entry.ready, entry.next_time = None, 0.0
            missing = "its file has been replaced: to be looked at again"
        if missing is not None:
            if name == own_name:
                name.unlink()
            raise CreationFailed(f"image {key.shown}: {missing}")
        return path, name

    def _reason(self, key: _Key, entry: _Entry) -> str | None:
        if entry.ready is not None:
            return None
        if entry.working or not entry.failure:
            doing = "downloaded" if "://" in key.source else "checked"
            return f"image {key.shown} is being {doing}"
        seconds = max(entry.next_time - self._clock(), 0)
        return f"image {key.shown}: {entry.failure}; next attempt in {seconds:.0f} s"

    def _work(self, fetch: Fetch, key: _Key, entry: _Entry) -> None:
        late, pause_seconds = False, REFRESH_SECONDS
        try:
            first, entry.ready = entry.ready is None, _fetched(fetch, key)
            late = first and entry.settled.is_set()
            entry.failure, entry.failures = "", 0
        except OSError as error:
            pause_seconds = min(self._first_pause_seconds * 2**entry.failures, LONGEST_PAUSE_SECONDS)
            entry.ready, entry.failures = None, min(entry.failures + 1, 20)
            reason = error.strerror or str(error)
            if reason != entry.failure:
                _log.warning("image %s: %s", key.shown, reason)
                late = entry.settled.is_set()
            entry.failure = reason
        finally:
            with self._lock:
                entry.next_time = self._clock() + pause_seconds
                entry.working = False
            entry.settled.set()
        if late:
            self._news()


def _key(root_image: str, signing_dn: str | None, files: Path) -> _Key:
    return _Key(root_image if "://" in root_image else str(files / root_image), signing_dn)


def _needs_work(key: _Key) -> bool:
    return "://" in key.source or key.signing_dn is not None


def _fetched(fetch: Fetch, key: _Key) -> _Ready:
    """The file, and the stamp of what was judged: with another signer, or none, the same URL has another thread, which
    may replace the copy at any time. Raises OSError."""
    path = fetch(key.source, key.signing_dn)
    stamp = _stamp(path)
    if key.signing_dn is not None:
        fetch(str(path), key.signing_dn)  # from memory, unless it is another file than a moment ago
        if _stamp(path) != stamp:
            raise OSError("the file was replaced while it was checked")
    return _Ready(path, stamp)


def _named(path: Path, name: Path) -> Path:
    """The file by its new name; by the old one if it can't have another."""
    try:
        os.link(path.resolve(), name)
    except OSError:
        return path
    return name


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
