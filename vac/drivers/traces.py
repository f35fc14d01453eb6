"""Facts for incident teams beyond those that engines tell: which image a machine has, and its connections."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Callable, NamedTuple

from vac.drivers.base import Trace
from vac.host import connections
from vac.host.cgroups import CgroupError
from vac.host.connections import Contact
from vac.host.filesystems import FileStamp, sha256_of, stamp_from

MOST_VERSIONS = 200
"""Image versions whose digests are remembered; the oldest are forgotten first."""
SHORTEST_SECONDS = 10.0
"""Shortest time from one sample of connections to the next."""
REST = 20
"""A sample is followed by a pause of at least so many times its duration."""

_log = logging.getLogger(__name__)


class ImageVersion(NamedTuple):
    """A file as it was at one time."""

    path: str
    stamp: FileStamp

    @property
    def modified(self) -> str:
        """Time of its last change, in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.stamp.mtime_ns // 10**9))

    def is_that_of(self, status: os.stat_result) -> bool:
        """Tell if a file with this status is this version."""
        return stamp_from(status) == self.stamp


def version_of(path: Path) -> ImageVersion | None:
    """Return the present version of the file; None if there is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return ImageVersion(str(path), stamp_from(status)) if stat.S_ISREG(status.st_mode) else None


def read_through(version: ImageVersion) -> str | None:
    """Return the digest of this version of the file, None if it has changed; a child process reads it.

    Raises OSError with a reason.
    """
    stamp, digest = sha256_of(version.path)
    return digest if stamp == version.stamp else None


class ImageFacts:
    """Facts known of machines since their creation, and the SHA-256 of their image files. For any thread.

    Digests are computed in the background, once for each version of a file.
    """

    def __init__(self, compute: Callable[[ImageVersion], str | None] = read_through) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._facts: dict[str, tuple[dict[str, str], ImageVersion | None]] = {}
        self._digests: dict[ImageVersion, str | None] = {}

    def note(self, uuid: str, facts: Mapping[str, str], image: ImageVersion | None) -> None:
        """Keep the facts of a new machine, made of this version of an image file if of one."""
        modified = {} if image is None else {"image_modified": image.modified}
        with self._lock:
            self._facts[uuid] = {**facts, **modified}, image

    def forget(self, uuid: str) -> None:
        """Drop the facts of a machine."""
        with self._lock:
            self._facts.pop(uuid, None)

    def news(self, running: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        """Return, by uuid, facts of running machines that haven't been returned before."""
        news = {}
        with self._lock:
            for uuid in self._facts.keys() & set(running):
                facts, image = self._facts.pop(uuid)
                digest = self._digest(image) if image is not None else None
                if digest is not None:
                    facts = {**facts, "image_digest": f"sha256:{digest}"}
                elif image is not None:
                    self._facts[uuid] = {}, image
                if facts:
                    news[uuid] = facts
        return news

    def _digest(self, version: ImageVersion) -> str | None:
        """Return the digest in hex; None if it isn't known (yet). The first call has it computed."""
        if version not in self._digests:
            self._digests[version] = None
            while len(self._digests) > MOST_VERSIONS:
                del self._digests[next(iter(self._digests))]
            threading.Thread(target=self._work, args=(version,), name="digest", daemon=True).start()
        return self._digests[version]

    def _work(self, version: ImageVersion) -> None:
        try:
            digest = self._compute(version)
        except OSError as error:
            _log.warning("image %s: cannot compute its digest: %s", version.path, error)
            return
        with self._lock:
            if version in self._digests:
                self._digests[version] = digest


class Sampling:
    """Limits the sampling of connections to a small share of the time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_time = clock()

    def sample(
        self, look: Callable[[], Mapping[str, frozenset[Contact]]]
    ) -> Mapping[str, frozenset[Contact]]:
        """Return what look returns if a sample is due, else nothing. Its failures are only logged."""
        begun_time = self._clock()
        if begun_time < self._next_time:
            return {}
        try:
            return look()
        except (OSError, CgroupError) as error:
            _log.info("cannot sample the connections of machines: %s", error)
            return {}
        finally:
            now = self._clock()
            self._next_time = now + max(SHORTEST_SECONDS, REST * (now - begun_time))


def merged(
    facts: Mapping[str, Mapping[str, str]], found: Mapping[str, frozenset[Contact]]
) -> dict[str, Trace]:
    """Combine facts and contacts, both by uuid, leaving out machines that have none."""
    return {
        uuid: Trace(facts.get(uuid, {}), found.get(uuid, frozenset()))
        for uuid in {*facts, *(uuid for uuid, those in found.items() if those)}
    }


def shared_network(processes: Mapping[str, Iterable[int]]) -> Mapping[str, frozenset[Contact]]:
    """Return contacts, by key, of groups of processes in the host's own network namespace. Raises OSError."""
    by_inode = dict(connections.sockets(connections.PROC / "net"))
    return {key: connections.contacts_of(numbers, by_inode) for key, numbers in processes.items()}
