"""Watch of process machines: their ends as they happen, and the size of their console logs.

The machine itself writes its console.log, so that it depends on no reader. While it runs, blocks in the middle of a log
that has grown too large are given back to the file system (fallocate(2), FALLOC_FL_PUNCH_HOLE): its end stays where the
machine goes on writing. Once the machine has ended, the log is rewritten without the hole.
"""

from __future__ import annotations

import collections
import ctypes
import logging
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vac.host.cgroups import Groups

CONSOLE_LOG = "console.log"
KEPT_BYTES = 4 * 1024 * 1024
"""Kept of the beginning, and of the end."""
SLACK_BYTES = 8 * 1024 * 1024
"""May be allocated beyond that."""
LOOK_SECONDS = 1.0
"""Interval at which new machines and logs are looked for."""
_BLOCK = 512
_PAGE = 1 << 16
_KEEP_SIZE, _PUNCH_HOLE = 0x1, 0x2  # linux/falloc.h

_log = logging.getLogger(__name__)


class MachineWatcher:
    """Watches groups for the ends of their last processes, and limits the logs in these directories.

    One thread iterates over ends(); any thread may add() a group or close().
    """

    def __init__(self, groups: Groups, directories: Callable[[], Iterable[Path]]) -> None:
        self._groups = groups
        self._directories = directories
        self._failed: set[Path] = set()
        self._added: collections.deque[str] = collections.deque()
        self._closed = threading.Event()

    def add(self, name: str) -> None:
        """Watch this group, which a process has entered."""
        self._added.append(name)

    def close(self) -> None:
        """Make ends() return."""
        self._closed.set()

    def ends(self) -> Iterator[str]:
        """Yield groups that become empty, first those that are already."""
        watches: dict[int, str] = {}
        poller = select.poll()
        self._added.extend(self._groups.names())
        try:
            while not self._closed.is_set():
                while self._added:
                    name = self._added.popleft()
                    watch = self._groups.watch(name)
                    if watch is None:
                        yield name
                        continue
                    watches[watch.descriptor] = name
                    poller.register(watch.descriptor, watch.events)
                for descriptor, _ in poller.poll(1000 * LOOK_SECONDS):
                    poller.unregister(descriptor)
                    self._added.append(watches.pop(descriptor))
                    os.close(descriptor)
                self._limit_logs()
        finally:
            for descriptor in watches:
                os.close(descriptor)

    def _limit_logs(self) -> None:
        for directory in self._directories():
            try:
                limit(directory / CONSOLE_LOG)
            except FileNotFoundError:
                continue
            except OSError as error:
                if directory not in self._failed:
                    self._failed.add(directory)
                    _log.warning("%s/%s can't be limited: %s", directory, CONSOLE_LOG, error.strerror)


def limit(log: Path) -> None:
    """Free the middle of a log that takes too much disk. Raises OSError."""
    found = log.stat()
    if found.st_blocks * _BLOCK <= 2 * KEPT_BYTES + SLACK_BYTES:
        return
    end = (found.st_size - KEPT_BYTES) // _PAGE * _PAGE
    if end <= KEPT_BYTES:
        return
    descriptor = os.open(log, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        start, length = ctypes.c_int64(KEPT_BYTES), ctypes.c_int64(end - KEPT_BYTES)
        if libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(log))
    finally:
        os.close(descriptor)


def remove_middle(log: Path) -> None:
    """Rewrite the log of a machine that has ended without its middle, if it is too large. Raises OSError."""
    size = log.stat().st_size
    if size <= 2 * KEPT_BYTES + SLACK_BYTES:
        return
    short = log.with_name(f".{log.name}.short")
    descriptor = os.open(short, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as new, log.open("rb") as old:
        new.write(old.read(KEPT_BYTES))
        new.write(f"\n[{size - 2 * KEPT_BYTES} bytes were left out here]\n".encode())
        old.seek(size - KEPT_BYTES)
        new.write(old.read(KEPT_BYTES))
    short.replace(log)
