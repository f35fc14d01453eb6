"""Connections to libvirt that notice a dead daemon, its events, and failures in words.

libvirt-python's rules: an event loop is registered once per process and before the first connection; keepalive, which
notices a daemon that hangs, works on the connection's own calls and, between them, by that loop.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Callable, Union

import libvirt

from vac.background import BackgroundWork, Outcome
from vac.drivers.base import EngineUnavailable
from vac.drivers.libvirt.libvirt_domain import FILTER, Hypervisor, hypervisor

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
"""A daemon that doesn't answer so many times so many seconds apart counts as dead."""
OPEN_SECONDS = 15.0
"""Deadline of connecting."""
SAMPLE_SECONDS = 10.0
"""Usage is sampled at least this often, since a domain that crashes takes its figures with it."""
GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID})
"""Errors of calls for a domain that has ended."""
_CONNECTION_DOMAINS = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_CONNECTION_CODES = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_RPC,
    }
)
_FIREWALL_DOMAINS = frozenset({libvirt.VIR_FROM_FIREWALL, libvirt.VIR_FROM_NWFILTER})
_SHUTOFF_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "saved",
}
"""By the detail of a STOPPED event. FAILED: the hypervisor's process has died."""
_News = Union[str, EngineUnavailable, None]

_loop_lock = threading.Lock()
_loop_threads: list[threading.Thread] = []
_log = logging.getLogger(__name__)


class Connection:
    """The connections to one hypervisor, for any thread: one for each purpose, opened when it is first needed.

    hypervisor_type is vm_domain_type.
    """

    def __init__(self, uri: str, hypervisor_type: str) -> None:
        self.uri = uri
        self._hypervisor_type = hypervisor_type
        self._connections: dict[str, libvirt.virConnect] = {}
        self._failures: dict[str, str] = {}
        """By purpose, why the last attempt to connect has failed; "" if it hasn't."""
        self._opening: BackgroundWork[Any] = BackgroundWork("libvirt-open", self._note_opened, at_once=None)
        self._hypervisor: Hypervisor | None = None

    @contextmanager
    def use(self, purpose: str) -> Iterator[libvirt.virConnect]:
        """Yield the connection for this purpose. Failures that leave the block become EngineUnavailable."""
        with self.explained():
            yield self._open(purpose)

    def take(self, purpose: str) -> libvirt.virConnect:
        """Return the connection for this purpose, which is the caller's from now on. Raises EngineUnavailable."""
        with self.explained():
            self._open(purpose)
            return self._connections.pop(purpose)

    def _open(self, purpose: str) -> libvirt.virConnect:
        """Return the connection for this purpose, a new one if it has none that lives.

        Raises EngineUnavailable, also if that takes too long: keepalive works on open connections only. One that opens
        too late is there for the next call.
        """
        connection = self._connections.get(purpose)
        if connection is None or not connection.isAlive():
            start_event_loop()
            self._opening.start(purpose, self._connect)
            if not self._opening.wait(purpose, OPEN_SECONDS):
                raise EngineUnavailable(f"{self.uri}: libvirtd doesn't answer")
            connection = self._connections.get(purpose)
            if connection is None:
                raise EngineUnavailable(f"{self.uri}: {self._failures[purpose]}")
        return connection

    def _connect(self) -> Any:
        """Return a connection: it may take for ever. Raises OSError."""
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise OSError(explanation(error)) from error
        with suppress(libvirt.libvirtError):  # a mock inside this process needs none
            connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        return connection

    def _note_opened(self, outcome: Outcome[Any]) -> None:
        self._hypervisor, self._failures[outcome.key] = None, outcome.failure
        self._connections.pop(outcome.key, None)
        if outcome.value is not None:
            self._connections[outcome.key] = outcome.value

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn libvirt's exceptions into EngineUnavailable with one clear reason."""
        try:
            yield
        except libvirt.libvirtError as error:
            raise EngineUnavailable(f"{self.uri}: {explanation(error)}") from error

    def hypervisor(self, connection: libvirt.virConnect) -> Hypervisor:
        """Return what it offers: asked for once per connection, except for the filter, which may come later."""
        known = self._hypervisor
        if known is None:
            known = self._hypervisor = hypervisor(connection.getCapabilities(), self._hypervisor_type)
        try:
            connection.nwfilterLookupByName(FILTER)
        except libvirt.libvirtError as error:
            if lost(error):
                raise
            return replace(known, filtering=False)
        return replace(known, filtering=True)

    def close(self) -> None:
        """Close all connections."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            with suppress(libvirt.libvirtError):
                connection.close()


class EventReader:
    """Reads the hypervisor's lifecycle events as a stream of machine names.

    sample is called, in the listener's thread, after each event and every SAMPLE_SECONDS; it may raise
    EngineUnavailable. ours tells if a domain of that name may be a machine of this factory. ended is called at once
    with the uuid of a domain that has stopped and libvirt's reason.
    """

    def __init__(
        self,
        connection: Connection,
        sample: Callable[[], object],
        ours: Callable[[str], bool],
        ended: Callable[[str, str], object],
    ) -> None:
        self._connection = connection
        self._sample = sample
        self._ours = ours
        self._ended = ended
        self._news: queue.Queue[_News] = queue.Queue()
        """Of one connection; None: the end."""

    def close(self) -> None:
        """End listen()."""
        self._news.put(None)

    def listen(self) -> Iterator[str]:
        """Yield names of machines that have changed, "" for any. Ends with close()."""
        news = self._news
        connection = self._connection.take("events")
        callback = None
        try:
            with self._connection.explained():
                callback = self._register(connection, news)
            yield ""
            yield from self._read(news)
        finally:
            self._news = queue.Queue()
            _hang_up(connection, callback)

    def _register(self, connection: libvirt.virConnect, news: queue.Queue[_News]) -> Any:
        """Have the event loop's thread, which must not be kept waiting, note what happens."""

        def happened(_connection: object, domain: Any, event: int, detail: int, _context: object) -> None:
            if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail in _SHUTOFF_REASONS:
                self._ended(domain.UUIDString(), _SHUTOFF_REASONS[detail])
            news.put(domain.name())

        def closed(_connection: object, reason: int, _context: object) -> None:
            said = "doesn't answer" if reason == libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE else "has gone"
            news.put(EngineUnavailable(f"{self._connection.uri}: libvirtd {said}"))

        with suppress(libvirt.libvirtError):  # a mock inside this process doesn't close
            connection.registerCloseCallback(closed, None)
        return connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, happened, None)

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
            if isinstance(item, EngineUnavailable):
                raise item
            if self._ours(item):
                self._sample()
                yield item


def _hang_up(connection: libvirt.virConnect, callback: int | None) -> None:
    """Close a connection, which stays open as long as a callback is registered."""
    with suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    if callback is not None:
        with suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback)
    with suppress(libvirt.libvirtError):
        connection.close()


def lost(error: libvirt.libvirtError) -> bool:
    """Tell if the connection failed, so that the call's result is unknown."""
    return error.get_error_domain() in _CONNECTION_DOMAINS or error.get_error_code() in _CONNECTION_CODES


def no_filter(error: libvirt.libvirtError) -> bool:
    """Tell if the host's kernel or tools refused the network filter's rules."""
    return error.get_error_domain() in _FIREWALL_DOMAINS or "ebtables" in explanation(error)


def explanation(error: libvirt.libvirtError) -> str:
    """Return libvirt's message in one line."""
    text = " ".join(str(error.get_error_message() or error).split())
    if "keepalive" in text:
        return "libvirtd doesn't answer"
    if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and "socket" in text:
        return f"{text}; is libvirtd installed and running?"
    return text


def start_event_loop() -> None:
    """Start the thread for events and keepalive, once per process, and have errors raised instead of printed."""
    with _loop_lock:
        if not _loop_threads:
            libvirt.registerErrorHandler(lambda context, error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _loop_threads.append(threading.Thread(target=_run_events, name="libvirt-events", daemon=True))
            _loop_threads[0].start()


def _run_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            _log.warning("libvirt's event loop: %s", explanation(error))


def end_domain(domain: Any) -> None:
    """End it by force; no error if it has ended meanwhile."""
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in GONE:
            raise


def press_power_button(domain: Any) -> bool:
    """Ask the guest to shut down; return False if that is impossible now."""
    try:
        if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return False
        domain.shutdown()
    except libvirt.libvirtError as error:
        if lost(error):
            raise
        return False
    return True


def is_active(domain: Any) -> bool:
    """Tell if it runs or is paused."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            return False
        raise


def find_domain(connection: libvirt.virConnect, uuid: str) -> Any:
    """Return the domain, None if there is none."""
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
