"""What containers use, read from the kernel's files: no call to the engine for each of them.

A container's cgroup is gone before the engine reports its end. So each container's first process is watched
(pidfd): at its exit, when all others in its process name space have been killed already, the final figures
are read while the engine is still clearing up. Where the kernel has no pidfd (before 5.3) the last figures
seen are kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vac.drivers.base import Usage
from vac.drivers.traces import shared_network
from vac.host.cgroups import EngineGroup, find_engine_group, find_mounts
from vac.host.connections import Contact, contacts_within

PROC = Path("/proc")
HIGHEST_PRIORITY = -20

_log = logging.getLogger(__name__)


@dataclass
class _Container:
    pid: int
    group: EngineGroup
    own_network: bool
    usage: Usage = field(default_factory=Usage)
    ended: bool = False
    listed: bool = False


class UsageMeter:
    """Measures the containers that it has been told of; from any thread."""

    def __init__(self) -> None:
        self._mounts = find_mounts()
        self._lock = threading.Lock()
        self._containers: dict[str, _Container] = {}
        self._watched: dict[int, str] = {}
        self._poller = select.epoll()
        self._sleeper, self._wake = os.pipe()
        self._poller.register(self._sleeper, select.EPOLLHUP)
        self._thread: threading.Thread | None = None
        self._closed = False

    def knows(self, container_id: str) -> bool:
        """Is there a container of this id that can be measured?"""
        with self._lock:
            container = self._containers.get(container_id)
            return container is not None and not container.ended

    def ended_process(self, container_id: str) -> int | None:
        """Number of the container's first process if that was measured, and is gone; None if not."""
        with self._lock:
            container = self._containers.get(container_id)
        return container.pid if container is not None and container.ended and _gone(container.pid) else None

    def add(self, container_id: str, pid: int, own_network: bool) -> None:
        """Measure this container, whose first process has this number, from now on.

        own_network: has it a network name space to itself? Nothing happens if it has ended meanwhile, or runs
        on another host.
        """
        try:
            group = find_engine_group(pid, container_id, self._mounts)
        except OSError:
            return
        if group is None:
            return
        with self._lock:
            before = self._containers.get(container_id)
            if before is not None and not before.ended:
                return
            usage = Usage() if before is None else before.usage
            container = self._containers[container_id] = _Container(pid, group, own_network, usage)
            self._watch(container_id, container)

    def read(self, container_ids: Iterable[str]) -> Mapping[str, Usage]:
        """What each of these has used, until its end if it has ended.

        Those that were asked for before and aren't any more are forgotten; new ones may have come meanwhile.
        """
        wanted = frozenset(container_ids)
        with self._lock:
            for container_id, container in list(self._containers.items()):
                if container.listed and container_id not in wanted:
                    del self._containers[container_id]
                    continue
                container.listed = container_id in wanted
                if not container.ended:
                    _measure(container_id, container)
            return {container_id: container.usage for container_id, container in self._containers.items()}

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        """With whom containers that run have connections, by id. Raises OSError and CgroupError."""
        with self._lock:
            running = {
                container_id: each for container_id, each in self._containers.items() if not each.ended
            }
        shared = {id_: each.group.processes() for id_, each in running.items() if not each.own_network}
        found = dict(shared_network(shared)) if shared else {}
        for container_id, container in running.items():
            with contextlib.suppress(OSError):
                if container.own_network and _is_first_process(container_id, container):
                    found[container_id] = contacts_within(container.pid)
        return found

    def close(self) -> None:
        """Stop watching. What is asked later is answered from what has been seen."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake)
            if self._thread is None:
                self._let_go()

    def _watch(self, container_id: str, container: _Container) -> None:
        if self._closed or not hasattr(os, "pidfd_open"):
            return
        try:
            descriptor = os.pidfd_open(container.pid)
        except OSError as error:
            _log.debug("process %s can't be watched: %s", container.pid, error)
            container.ended = isinstance(error, ProcessLookupError)
            return
        self._watched[descriptor] = container_id
        self._poller.register(descriptor, select.EPOLLIN)
        if self._thread is None:
            self._thread = threading.Thread(target=self._await_ends, name="docker-ends", daemon=True)
            self._thread.start()

    def _await_ends(self) -> None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, HIGHEST_PRIORITY)  # on Linux, of this thread alone
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor == self._sleeper:
                    with self._lock:
                        self._let_go()
                    return
                self._end(descriptor)

    def _end(self, descriptor: int) -> None:
        """Measure at once, for the group is about to be removed: before waiting for the lock."""
        container_id = self._watched[descriptor]
        container = self._containers.get(container_id)
        if container is not None:
            _measure(container_id, container)
            container.ended = True
        with self._lock:
            del self._watched[descriptor]
            self._poller.unregister(descriptor)
            os.close(descriptor)

    def _let_go(self) -> None:
        self._poller.close()
        for descriptor in (self._sleeper, *self._watched):
            os.close(descriptor)
        self._watched.clear()


def _measure(container_id: str, container: _Container) -> None:
    """Bring the container's usage up to date, as far as it can still be read."""
    used = container.group.usage()
    if used is None:
        container.ended = True
        return
    peaks = (used.peak_memory_bytes, used.memory_bytes, container.usage.peak_memory_bytes)
    container.usage = replace(
        container.usage,
        cpu_seconds=_later(container.usage.cpu_seconds, used.cpu_seconds),
        memory_bytes=used.memory_bytes,
        peak_memory_bytes=max((peak for peak in peaks if peak is not None), default=None),
    )
    if container.own_network:
        with contextlib.suppress(OSError):
            if _is_first_process(container_id, container):
                received, sent = parse_net_dev((PROC / str(container.pid) / "net" / "dev").read_text())
                container.usage = replace(
                    container.usage, network_received_bytes=received, network_sent_bytes=sent
                )


def _is_first_process(container_id: str, container: _Container) -> bool:
    """Has the process number not been given to another meanwhile? Raises OSError if there is no such process."""
    return container_id in (PROC / str(container.pid) / "cgroup").read_text()


def _gone(pid: int) -> bool:
    """Does no process of this number run? One that has ended and waits for its parent doesn't."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _later(before: float | None, now: float | None) -> float | None:
    """Of two readings of what only grows the later one, whichever thread was the last."""
    return max((value for value in (before, now) if value is not None), default=None)


def parse_net_dev(text: str) -> tuple[int, int]:
    """Bytes received and sent over all interfaces but lo; the format is proc(5)'s /proc/net/dev."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        interface, _, counters = line.partition(":")
        if interface.strip() != "lo":
            numbers = counters.split()
            received += int(numbers[0])
            sent += int(numbers[8])
    return received, sent
