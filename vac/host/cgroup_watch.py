"""The ends of machines: groups whose last process has just ended."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import threading
from collections.abc import Iterator

from vac.host.cgroups import Groups


class EndWatcher:
    """The ends of groups' last processes, as they happen.

    One thread iterates over ends(); any thread may add() a group or close().
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._added: collections.deque[str] = collections.deque()
        self._lock = threading.Lock()
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._listening = False
        self._closed = threading.Event()

    def add(self, name: str) -> None:
        """Watch this group, which a process has entered, from now on."""
        self._added.append(name)
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed.is_set():
                os.write(self._writer, b"\0")

    def wake(self) -> None:
        """Make ends() yield "", which is no group, once."""
        self.add("")

    def close(self) -> None:
        """Make ends() return."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            os.close(self._writer)
            if not self._listening:
                os.close(self._reader)

    def ends(self) -> Iterator[str]:
        """Yield groups that become empty, first those that are already, and "" after wake()."""
        with self._lock:
            if self._closed.is_set():
                return
            self._listening = True
        watches: dict[int, str] = {}
        try:
            yield from self._ends(watches)
        finally:
            for descriptor in watches:
                os.close(descriptor)
            with self._lock:
                self._listening = False
                if self._closed.is_set():
                    os.close(self._reader)

    def _ends(self, watches: dict[int, str]) -> Iterator[str]:
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        self._added.extend(self._groups.names())
        while not self._closed.is_set():
            while self._added:
                name = self._added.popleft()
                watch = self._groups.watch(name) if name else None
                if watch is None:
                    yield name
                    continue
                watches[watch.descriptor] = name
                poller.register(watch.descriptor, watch.events)
            for descriptor, _ in poller.poll():
                if descriptor == self._reader:
                    with contextlib.suppress(BlockingIOError):
                        os.read(descriptor, 4096)
                    continue
                poller.unregister(descriptor)
                os.close(descriptor)
                self._added.append(watches.pop(descriptor))
