"""Usage of containers, read from the kernel's files: no call to the engine for each of them.

A container's cgroup is gone before the engine reports its end. So each container's first process is watched (pidfd):
at its exit, when all others in its PID namespace have been killed already, the final figures are read while the engine
is still cleaning up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vac.drivers.base import Usage, with_growing_counters
from vac.host.cgroups import EngineGroup, find_engine_group, find_mounts
from vac.host.child_processes import call_at_end
from vac.host.connections import Contact, contacts_by_group, contacts_within

PROC = Path("/proc")

_log = logging.getLogger(__name__)


@dataclass
class _Container:
    id: str
    pid: int
    group: EngineGroup
    own_network: bool
    usage: Usage = field(default_factory=Usage)
    ended: bool = False
    listed: bool = False

    def measure(self) -> None:
        """Update the container's usage, as far as it can still be read."""
        used = self.group.usage()
        if used is None:
            self.ended = True
            return
        if used.peak_memory_bytes is None:
            used = replace(used, peak_memory_bytes=used.memory_bytes)
        with contextlib.suppress(OSError):
            if self.own_network and self.is_first_process():
                received, sent = parse_net_dev((PROC / str(self.pid) / "net" / "dev").read_text())
                used = replace(used, network_received_bytes=received, network_sent_bytes=sent)
        self.usage = with_growing_counters(used, self.usage)

    def watch(self) -> None:
        """Measure once more as soon as the first process ends."""
        try:
            call_at_end(self.pid, self._end, "docker-end")
        except OSError as error:
            _log.debug("cannot watch process %s: %s", self.pid, error)
            self.ended = isinstance(error, ProcessLookupError)

    def _end(self) -> None:
        self.measure()
        self.ended = True

    def is_first_process(self) -> bool:
        """Tell if the process number is still the container's. Raises OSError if there is no such process."""
        return self.id in (PROC / str(self.pid) / "cgroup").read_text()


class UsageMeter:
    """Measures the containers added to it; from any thread."""

    def __init__(self) -> None:
        self._mounts = find_mounts()
        self._lock = threading.Lock()
        self._containers: dict[str, _Container] = {}

    def knows(self, container_id: str) -> bool:
        """Tell if a container of this id can be measured."""
        with self._lock:
            container = self._containers.get(container_id)
            return container is not None and not container.ended

    def ended_process(self, container_id: str) -> int | None:
        """Return the number of the container's first process if that was measured and is gone; else None."""
        with self._lock:
            container = self._containers.get(container_id)
        return container.pid if container is not None and container.ended and _gone(container.pid) else None

    def add(self, container_id: str, pid: int, own_network: bool) -> None:
        """Measure this container, whose first process has this number, from now on.

        own_network: it has a network namespace of its own. Does nothing if it has ended meanwhile, or runs on another
        host.
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
            container = _Container(container_id, pid, group, own_network, usage)
            self._containers[container_id] = container
            container.watch()

    def read(self, container_ids: Iterable[str]) -> Mapping[str, Usage]:
        """Return the usage of each of these, until its end if it has ended.

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
                    container.measure()
            return {container_id: container.usage for container_id, container in self._containers.items()}

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        """Return the remote ends of running containers' connections, by id. Raises OSError and CgroupError."""
        with self._lock:
            running = [each for each in self._containers.values() if not each.ended]
        shared = {each.id: each.group.processes() for each in running if not each.own_network}
        found = dict(contacts_by_group(shared)) if shared else {}
        for container in running:
            with contextlib.suppress(OSError):
                if container.own_network and container.is_first_process():
                    found[container.id] = contacts_within(container.pid)
        return found


def parse_net_dev(text: str) -> tuple[int, int]:
    """Return bytes received and sent over all interfaces but lo; the format is proc(5)'s /proc/net/dev."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        interface, _, counters = line.partition(":")
        if interface.strip() != "lo":
            numbers = counters.split()
            received += int(numbers[0])
            sent += int(numbers[8])
    return received, sent


def _gone(pid: int) -> bool:
    """Tell if no process of this number runs. One that has ended and waits for its parent doesn't."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
