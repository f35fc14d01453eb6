"""What an incident team wants to know beyond what engines tell: which image, and whom machines talk to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Callable

from vac.drivers.base import Trace
from vac.drivers.digests import ImageDigests, ImageVersion
from vac.host import connections
from vac.host.cgroups import CgroupError
from vac.host.connections import Contact

SHORTEST_SECONDS = 10.0
"""From one sample of connections to the next, however often somebody looks."""
REST = 20
"""After a sample that took long it is so many times as long until the next."""

_log = logging.getLogger(__name__)


class Sampling:
    """Says when a sample of connections is due, so that it takes little of the host's time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_time = clock()

    def due(self) -> bool:
        """Is it time for the next one?"""
        return self._clock() >= self._next_time

    def sample(
        self, look: Callable[[], Mapping[str, frozenset[Contact]]]
    ) -> Mapping[str, frozenset[Contact]]:
        """What look finds, if it is time; else nothing. What can't be seen is told in the log and isn't there."""
        if not self.due():
            return {}
        begun_time = self._clock()
        try:
            return look()
        except (OSError, CgroupError) as error:
            _log.info("connections of machines can't be seen: %s", error)
            return {}
        finally:
            now = self._clock()
            self._next_time = now + max(SHORTEST_SECONDS, REST * (now - begun_time))


class ImageFacts:
    """What is known of machines by their creation. Callable from any thread."""

    def __init__(self, digests: ImageDigests | None = None) -> None:
        self._digests = digests or ImageDigests()
        self._lock = threading.Lock()
        self._facts: dict[str, tuple[dict[str, str], ImageVersion | None]] = {}

    def note(self, uuid: str, facts: Mapping[str, str], image: ImageVersion | None) -> None:
        """The machine with this uuid has been made, of this version of an image file if of one."""
        told = dict(facts)
        if image is not None:
            told["image_modified"] = image.modified
        with self._lock:
            self._facts[uuid] = told, image

    def forget(self, uuid: str) -> None:
        """The machine is no more."""
        with self._lock:
            self._facts.pop(uuid, None)

    def news(self, running: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        """By uuid what hasn't been told before of machines that run."""
        wanted = set(running)
        with self._lock:
            noted = {uuid: known for uuid, known in self._facts.items() if uuid in wanted}
        news = {}
        for uuid, (facts, image) in noted.items():
            digest = self._digests.of(image) if image is not None else None
            told = {**facts, "image_digest": f"sha256:{digest}"} if digest else facts
            done = image is None or digest is not None
            with self._lock:
                if done:
                    self._facts.pop(uuid, None)
                else:
                    self._facts[uuid] = {}, image
            if told:
                news[uuid] = told
        return news


def merged(
    facts: Mapping[str, Mapping[str, str]], found: Mapping[str, frozenset[Contact]]
) -> dict[str, Trace]:
    """Both by uuid, of machines of which there is anything to tell."""
    return {
        uuid: Trace(facts.get(uuid, {}), found.get(uuid, frozenset()))
        for uuid in {*facts, *(uuid for uuid, those in found.items() if those)}
    }


def shared_network(processes: Mapping[str, Iterable[int]]) -> Mapping[str, frozenset[Contact]]:
    """Contacts by key of groups of processes in the host's own network name space. Raises OSError."""
    by_inode = dict(connections.sockets(connections.PROC / "net"))
    return {key: connections.contacts_of(numbers, by_inode) for key, numbers in processes.items()}
