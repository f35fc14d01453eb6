"""Images over http and https, kept in state_dir/imagecache.

A copy's mtime is the server's Last-Modified, its atime when it was last asked for. What is written and not
yet complete has another name, in another directory of the same file system.
"""

from __future__ import annotations

import email.utils
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from vac.config.values import without_password
from vac.context.transfers import Answer, DownloadFailed, Limits, get
from vac.logs import OnChange

_LONGEST_NAME = 255
_DAY_SECONDS = 86400

_log = logging.getLogger(__name__)


class ImageCache:
    """Copies of images by URL. All methods may be called from any thread.

    directory holds the copies, unfinished what is being downloaded; both are on one file system. ca_file: see get().
    """

    def __init__(
        self, directory: Path, unfinished: Path, limits: Limits | None = None, ca_file: Path | None = None
    ) -> None:
        self._directory = directory
        self._unfinished = unfinished
        self._limits = limits or Limits()
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._changes = OnChange(_log)

    def path(self, url: str) -> Path:
        """Where the copy of this URL is, or would be."""
        name = quote(without_password(url), safe="", errors="surrogateescape")
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()
            name = f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
        return self._directory / name

    def fetch(self, url: str) -> Path:
        """The path of a copy, as new as the server's; an older one while the server can't be asked.

        Blocks as long as the download takes. Raises DownloadFailed, and OSError if it can't be written.
        """
        path = self.path(url)
        with self._lock:
            lock = self._locks[path.name]
        with lock:
            try:
                modified_time = self._bring_up_to_date(url, path)
            except DownloadFailed as error:
                if not error.passing or not path.exists():
                    raise
                text = f"image {without_password(url)}: the copy in the cache is used: {error}"
                self._changes.say(url, text, logging.WARNING)
                modified_time = path.stat().st_mtime
            else:
                self._changes.clear(url)
            os.utime(path, (time.time(), modified_time))
        return path

    def expire(self, used_urls: Iterable[str], now: float, days: float) -> None:
        """Remove the copies that no used URL has and that nobody has asked for in so many days.

        Waits for no download. now is in Unix seconds.
        """
        used = {self.path(url).name for url in used_urls}
        for path in sorted(self._directory.iterdir()):
            try:
                if path.name not in used and now - path.stat().st_atime > days * _DAY_SECONDS:
                    path.unlink(missing_ok=True)
                    _log.info("image %s: removed from the cache, unused for %g days", path.name, days)
            except OSError as error:
                self._changes.say(path, f"{path} can't be removed: {error.strerror}", logging.WARNING)

    def _bring_up_to_date(self, url: str, path: Path) -> float:
        """Download the image unless the copy is as new; gives the copy's Last-Modified, in Unix seconds."""
        known_time = path.stat().st_mtime if path.exists() else None
        descriptor, temporary = tempfile.mkstemp(dir=self._unfinished, prefix="image-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                answer = Answer(file.write, _date)
                get(url, answer, self._limits, known_time=known_time, ca_file=self._ca_file)
                if answer.status == 304 and known_time is not None:
                    return known_time
                modified_time = _date(answer)
                file.flush()
                os.fchmod(descriptor, 0o644)  # hypervisors don't read it as root
                os.utime(temporary, (time.time(), modified_time))
                os.fsync(descriptor)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return modified_time


def _date(answer: Answer) -> float:
    """An image's Last-Modified in Unix seconds. Raises DownloadFailed if the server gives none."""
    try:
        return email.utils.parsedate_to_datetime(answer.last_modified).timestamp()
    except (TypeError, ValueError, OverflowError) as error:
        raise DownloadFailed(
            "the server gives no Last-Modified date, without which an image can't be kept up to date"
        ) from error
