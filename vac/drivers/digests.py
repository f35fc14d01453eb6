"""SHA-256 of image files, computed in the background, once for each version of a file."""

from __future__ import annotations

import logging
import stat
import threading
import time
from pathlib import Path
from typing import Callable, NamedTuple

from vac.host.filesystems import FileStamp, sha256_of, stamp_from

MOST_VERSIONS = 200
"""Remembered; of more, those that were first asked for are forgotten."""

_log = logging.getLogger(__name__)


class ImageVersion(NamedTuple):
    """A file as it was at one time."""

    path: str
    stamp: FileStamp

    @property
    def modified(self) -> str:
        """When it was last changed, in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.stamp.mtime_ns // 10**9))


def version_of(path: Path) -> ImageVersion | None:
    """Return the file's present version; None if there is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return ImageVersion(str(path), stamp_from(status)) if stat.S_ISREG(status.st_mode) else None


def read_through(version: ImageVersion) -> str | None:
    """Return the digest of this version of the file, None if there is another by now. Raises OSError with a reason."""
    stamp, digest = sha256_of(version.path)
    return digest if stamp == version.stamp else None


class ImageDigests:
    """Digests by version of a file, from memory; of() may be called from any thread."""

    def __init__(self, compute: Callable[[ImageVersion], str | None] = read_through) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._known: dict[ImageVersion, str | None] = {}

    def of(self, version: ImageVersion) -> str | None:
        """The digest in hex; None if it isn't known (yet). The first to ask has it computed."""
        with self._lock:
            if version not in self._known:
                self._known[version] = None
                while len(self._known) > MOST_VERSIONS:
                    del self._known[next(iter(self._known))]
                threading.Thread(target=self._work, args=(version,), name="digest", daemon=True).start()
            return self._known[version]

    def _work(self, version: ImageVersion) -> None:
        try:
            digest = self._compute(version)
        except OSError as error:
            _log.warning("image %s: its digest can't be computed: %s", version.path, error)
            return
        with self._lock:
            if version in self._known:
                self._known[version] = digest
