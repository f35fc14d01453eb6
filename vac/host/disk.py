"""How much disk a machine's directories use, measured by a child process, since looking may take for ever."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Union

DU = ("nice", "-n", "19", "du", "-s", "-x", "--block-size=1", "--")
"""Other file systems mounted inside, such as a volume of the machine's own, are not counted."""
TIME_LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class DiskMeasured:
    """What the directories use together."""

    key: str
    used_bytes: int
    seconds: float
    """How long it took."""


@dataclass(frozen=True)
class DiskNotMeasured:
    """It couldn't be measured."""

    key: str
    reason: str


DiskMessage = Union[DiskMeasured, DiskNotMeasured]


class DiskMeter:
    """Measures directories one after another in a thread of its own, which never blocks the caller.

    post takes each DiskMessage. A key is the caller's name for what is measured, such as a machine's uuid.
    """

    def __init__(
        self,
        post: Callable[[DiskMessage], object],
        time_limit_seconds: float = TIME_LIMIT_SECONDS,
        command: Sequence[str] = DU,
    ) -> None:
        self._post = post
        self._time_limit_seconds = time_limit_seconds
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._wanted: queue.SimpleQueue[tuple[str, tuple[Path, ...]] | None] = queue.SimpleQueue()
        self._stuck: dict[str, subprocess.Popen[str]] = {}
        threading.Thread(target=self._keep_measuring, name="disk", daemon=True).start()

    def start(self, key: str, *directories: Path) -> None:
        """Ask for a measurement; nothing happens if one with this key is under way. What isn't there uses nothing,
        if it isn't the first."""
        with self._lock:
            if key in self._waiting:
                return
            self._waiting.add(key)
        self._wanted.put((key, directories))

    def close(self) -> None:
        """Measure nothing more."""
        self._wanted.put(None)

    def _keep_measuring(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            key, directories = wanted
            message = self._measure(key, directories)
            with self._lock:
                self._waiting.discard(key)
            self._post(message)

    def _measure(self, key: str, directories: Sequence[Path]) -> DiskMessage:
        directory = directories[0]
        for each, child in list(self._stuck.items()):
            if child.poll() is not None:
                del self._stuck[each]
        begun = time.monotonic()
        if key in self._stuck:
            return DiskNotMeasured(key, f"an earlier du of {directory} can't even be killed")
        try:
            child = subprocess.Popen(
                [*self._command, *map(str, directories)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            return DiskNotMeasured(key, f"can't start {self._command[0]}: {error.strerror}")
        try:
            output, _ = child.communicate(timeout=self._time_limit_seconds)
        except subprocess.TimeoutExpired:
            self._end(key, child)
            return DiskNotMeasured(key, f"du of {directory} took over {self._time_limit_seconds:.0f} s")
        used = {
            path: int(number) for number, _, path in (line.partition("\t") for line in output.splitlines())
        }
        if str(directory) not in used:
            return DiskNotMeasured(key, f"du can't measure {directory}: exit code {child.returncode}")
        return DiskMeasured(key, sum(used.values()), time.monotonic() - begun)

    def _end(self, key: str, child: subprocess.Popen[str]) -> None:
        child.kill()
        if child.stdout is not None:
            child.stdout.close()
        try:
            child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._stuck[key] = child
