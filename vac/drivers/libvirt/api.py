"""Talking to libvirt: connections that notice a dead daemon, failures in words, the thread for its events.

libvirt-python's rules: an event loop is registered once a process and before the first connection; keepalive,
by which a daemon that hangs is noticed, works on the connection's own calls and, between them, by that loop.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import libvirt

from vac.drivers.base import EngineUnavailable
from vac.drivers.libvirt.domain_xml import FILTER, Hypervisor, hypervisor

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
"""A daemon that doesn't answer so many times so many seconds apart counts as dead."""
OPEN_SECONDS = 15.0
"""How long it may take to connect."""
GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID})
"""What calls for a domain that has ended fail with."""
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

_loop_lock = threading.Lock()
_loop_threads: list[threading.Thread] = []
_log = logging.getLogger(__name__)


class Connection:
    """The way to one hypervisor, for any thread: one connection for each purpose, made when it is needed first.

    hypervisor_type is vm_domain_type.
    """

    def __init__(self, uri: str, hypervisor_type: str) -> None:
        self.uri = uri
        self._hypervisor_type = hypervisor_type
        self._lock = threading.Lock()
        self._connections: dict[str, libvirt.virConnect] = {}
        self._opening: dict[str, queue.Queue[Any]] = {}
        self._hypervisor: Hypervisor | None = None

    @contextmanager
    def use(self, purpose: str) -> Iterator[libvirt.virConnect]:
        """The connection for this purpose. What fails within, and isn't caught there, is EngineUnavailable."""
        with self.explained():
            connection = self._connections.get(purpose)
            if connection is None or not connection.isAlive():
                connection = self.open(purpose)
                with self._lock:
                    self._connections[purpose] = connection
            yield connection

    def open(self, purpose: str) -> libvirt.virConnect:
        """A new connection. Raises libvirtError, and EngineUnavailable if that takes too long.

        Keepalive works on what is open only; what opens when it's too late is there for the next one who asks.
        """
        start_event_loop()
        self._hypervisor = None
        with self._lock:
            opening = self._opening.pop(purpose, None) or _open_aside(self.uri)
        try:
            opened = opening.get(timeout=OPEN_SECONDS)
        except queue.Empty:
            with self._lock:
                self._opening[purpose] = opening
            raise EngineUnavailable(f"{self.uri}: libvirtd doesn't answer") from None
        if isinstance(opened, libvirt.libvirtError):
            raise opened
        with suppress(libvirt.libvirtError):  # a mock inside this process needs none
            opened.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        return opened

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what libvirt raises into EngineUnavailable with one clear reason."""
        try:
            yield
        except libvirt.libvirtError as error:
            raise EngineUnavailable(f"{self.uri}: {explanation(error)}") from error

    def hypervisor(self, connection: libvirt.virConnect) -> Hypervisor:
        """What it offers: asked for once as long as nothing is connected anew, but for the filter, which may come."""
        known = self._hypervisor
        if known is None:
            known = self._hypervisor = hypervisor(connection.getCapabilities(), self._hypervisor_type)
        return replace(known, filtering=_has_filter(connection))

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            connections, self._connections = self._connections, {}
        for connection in connections.values():
            with suppress(libvirt.libvirtError):
                connection.close()


def _has_filter(connection: libvirt.virConnect) -> bool:
    try:
        connection.nwfilterLookupByName(FILTER)
    except libvirt.libvirtError as error:
        if lost(error):
            raise
        return False
    return True


def _open_aside(uri: str) -> queue.Queue[Any]:
    """Connect in a thread of its own, for that may never end; what becomes of it comes by the queue."""
    opening: queue.Queue[Any] = queue.Queue()

    def connect() -> None:
        try:
            opening.put(libvirt.open(uri))
        except libvirt.libvirtError as error:
            opening.put(error)

    threading.Thread(target=connect, name="libvirt-open", daemon=True).start()
    return opening


def lost(error: libvirt.libvirtError) -> bool:
    """Is it the connection that failed, so that nobody knows what became of the call?"""
    return error.get_error_domain() in _CONNECTION_DOMAINS or error.get_error_code() in _CONNECTION_CODES


def no_filter(error: libvirt.libvirtError) -> bool:
    """Did the host's kernel or tools refuse the network filter's rules?"""
    return error.get_error_domain() in _FIREWALL_DOMAINS or "ebtables" in explanation(error)


def explanation(error: libvirt.libvirtError) -> str:
    """What libvirt says, in one line."""
    text = " ".join(str(error.get_error_message() or error).split())
    if "keepalive" in text:
        return "libvirtd doesn't answer"
    if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and "socket" in text:
        return f"{text}; is libvirtd installed and running?"
    return text


def start_event_loop() -> None:
    """Once a process: events and keepalive get a thread, and errors are told by exceptions alone."""
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
    """Ask the guest to shut down; False if that makes no sense now."""
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
    """Is it there, running or paused?"""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            return False
        raise


def find_domain(connection: libvirt.virConnect, uuid: str) -> Any:
    """The domain, None if there is none."""
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
