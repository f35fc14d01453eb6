"""libvirt's lifecycle events, and what else is news to the factory, as one stream of machine names.

Callbacks come in the thread of libvirt's event loop, which must not be kept waiting: they only note what has
happened, and whoever listens does the rest.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Callable, NamedTuple, Union

import libvirt

from vac.drivers.base import EngineUnavailable
from vac.drivers.libvirt.api import Connection

SAMPLE_SECONDS = 10.0
"""Usage is sampled at least this often, since a domain that crashes takes its figures with it."""


class _Closed(NamedTuple):
    reason: str


_News = Union[str, _Closed, None]


class EventReader:
    """Listens to the hypervisor.

    sample is called, in the listener's thread, after each event and every SAMPLE_SECONDS. It may raise
    EngineUnavailable. ours tells whether a domain of that name may be a machine of this factory.
    """

    def __init__(
        self, connection: Connection, sample: Callable[[], object], ours: Callable[[str], bool]
    ) -> None:
        self._connection = connection
        self._sample = sample
        self._ours = ours
        self._lock = threading.Lock()
        self._listener: queue.Queue[_News] | None = None
        self._closed = False

    def wake(self) -> None:
        """Let whoever listens know that something has changed."""
        self._put("")

    def close(self) -> None:
        """End listen()."""
        with self._lock:
            self._closed = True
        self._put(None)

    def listen(self) -> Iterator[str]:
        """Names of machines with which something has happened, "" for any. Ends with close()."""
        news: queue.Queue[_News] = queue.Queue()
        with self._lock:
            if self._closed:
                return
            self._listener = news
        with self._connection.explained():
            connection = self._connection.open("events")
        callback = None
        try:
            with self._connection.explained():
                callback = self._register(connection, news)
            yield ""
            yield from self._read(news)
        finally:
            with self._lock:
                self._listener = None
            _hang_up(connection, callback)

    def _register(self, connection: libvirt.virConnect, news: queue.Queue[_News]) -> int:
        def happened(_connection: object, domain: Any, *_details: object) -> None:
            news.put(domain.name())

        def closed(_connection: object, reason: int, _context: object) -> None:
            said = "doesn't answer" if reason == libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE else "has gone"
            news.put(_Closed(f"libvirtd {said}"))

        with suppress(libvirt.libvirtError):  # a mock inside this process doesn't close
            connection.registerCloseCallback(closed, None)
        kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        callback: int = connection.domainEventRegisterAny(None, kind, happened, None)
        return callback

    def _read(self, news: queue.Queue[_News]) -> Iterator[str]:
        sample_time = time.monotonic() + SAMPLE_SECONDS
        while True:
            try:
                item = news.get(timeout=max(0.0, sample_time - time.monotonic()))
            except queue.Empty:
                self._sample()
                sample_time = time.monotonic() + SAMPLE_SECONDS
                continue
            if item is None:
                return
            if isinstance(item, _Closed):
                raise EngineUnavailable(f"{self._connection.uri}: {item.reason}")
            if item and not self._ours(item):
                continue
            if item:
                self._sample()
            yield item

    def _put(self, item: _News) -> None:
        with self._lock:
            if self._listener is not None:
                self._listener.put(item)


def _hang_up(connection: libvirt.virConnect, callback: int | None) -> None:
    """A connection stays open as long as somebody is to be called back."""
    with suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    if callback is not None:
        with suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback)
    with suppress(libvirt.libvirtError):
        connection.close()
