"""The engine's events, and what else is news to the factory, as one stream of machine names.

Docker says `die` and `destroy` where Podman says `died` and `remove`, and a filter on these names finds
nothing on the other: so all events of our containers are read, and chosen here.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Union

import docker.errors

from vac.drivers.base import EngineUnavailable
from vac.drivers.docker.api import Client, Connection, timed_out
from vac.drivers.docker.listing import Ownership

NEWS = frozenset({"die", "died", "destroy", "remove", "pause", "unpause", "rename", "oom"})
ENDS = frozenset({"die", "died"})
SILENCE_SECONDS = 300.0
"""After this the stream is opened anew, for a connection can be dead without a sign."""
OVERLAP_SECONDS = 1
"""So much of the past is asked for with a new stream: Docker answers before it begins to collect events."""

_News = Union[str, EngineUnavailable, None]


class EventReader:
    """Listens to the engine. ownership tells whose containers count at this moment."""

    def __init__(self, connection: Connection, ownership: Callable[[], Ownership]) -> None:
        self._connection = connection
        self._ownership = ownership
        self._lock = threading.Lock()
        self._listener: queue.SimpleQueue[_News] | None = None
        self._stream: Any = None
        self._closed = False

    def wake(self) -> None:
        """Let whoever listens know that something has changed."""
        with self._lock:
            if self._listener is not None:
                self._listener.put("")

    def listen(self) -> Iterator[str]:
        """Names of machines with which something has happened, "" for any, as whenever a stream of events begins:
        what happened before it isn't in it. Ends with close()."""
        news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        with self._lock:
            if self._closed:
                return
            self._listener = news
        reader = threading.Thread(target=self._read, args=(news,), name="docker-events", daemon=True)
        reader.start()
        try:
            while (item := news.get()) is not None:
                if isinstance(item, EngineUnavailable):
                    raise item
                yield item
        finally:
            with self._lock:
                self._listener = None
                self._hang_up()

    def close(self) -> None:
        """End listen()."""
        with self._lock:
            self._closed = True
            if self._listener is not None:
                self._listener.put(None)
            self._hang_up()

    def _read(self, news: queue.SimpleQueue[_News]) -> None:
        try:
            while self._is_current(news):
                try:
                    self._read_stream(news)
                    raise EngineUnavailable(f"{self._connection.url}: the engine closed the stream of events")
                except EngineUnavailable as error:
                    if error.__cause__ is None or not timed_out(error.__cause__):
                        raise
        except EngineUnavailable as error:
            news.put(error)

    def _read_stream(self, news: queue.SimpleQueue[_News]) -> None:
        ownership = self._ownership()
        filters = {"type": ["container"], **ownership.filters}
        with self._connection.stream_client(SILENCE_SECONDS) as client:
            since = int(time.time()) - OVERLAP_SECONDS
            stream = client.events(since=since, decode=True, filters=filters)
            with self._lock:
                if self._listener is not news:
                    return
                self._stream = stream
            news.put("")
            for event in stream:
                name = event_machine(event, self._ownership())
                if name is not None:
                    self._await_listing(event)
                    news.put(name)

    def _await_listing(self, event: Mapping[str, Any]) -> None:
        """Let the engine's listing catch up with an end, which Docker tells before it lists it."""
        if _action(event) in ENDS:
            with self._connection.client() as client:
                await_listing(client, event["Actor"]["ID"])

    def _is_current(self, news: queue.SimpleQueue[_News]) -> bool:
        with self._lock:
            return self._listener is news

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError, docker.errors.DockerException):
                stream.close()


def event_machine(event: Mapping[str, Any], ownership: Ownership) -> str | None:
    """Name of the machine of which this event is news; None if it isn't news, or not of a machine of ours."""
    actor = event.get("Actor") or {}
    if _action(event) not in NEWS:
        return None
    identity = ownership.identify(str(actor.get("ID", "")), actor.get("Attributes") or {})
    return identity[0] if identity is not None else None


def await_listing(client: Client, container_id: str) -> None:
    """Return when the engine lists the container as what it is now.

    To inspect it takes its lock, which Docker holds from the end of its process until it is listed as ended.
    What the engine says about it, be it that it is just being removed, doesn't matter.
    """
    with contextlib.suppress(docker.errors.APIError):
        client.inspect_container(container_id)


def _action(event: Mapping[str, Any]) -> object:
    return event.get("Action", event.get("status"))
