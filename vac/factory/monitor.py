"""Status messages to VacMon: what is to be told is read from disk and sent in a thread of its own.

Whatever goes wrong there costs a log line, and the factory never waits for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from vac.config.settings import Settings
from vac.logs import OnChange
from vac.machines.layout import StateDir
from vac.vacquery.messages import AnyStatus
from vac.vacquery.resolver import Names
from vac.vacquery.snapshot import SnapshotBuilder
from vac.vacquery.vacmon import VacMon

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Of what can't be told because the disk or the network hangs, no more is kept."""

_Task = tuple[tuple[str, ...], Optional[Path]]


class Monitor:
    """Tells the services of vacmon_hostport of each cycle and of each machine that finishes."""

    def __init__(self, state: StateDir, names: Names, clock: Callable[[], float]) -> None:
        self._state = state
        self._names = names
        self._clock = clock
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def cycle(self, settings: Settings) -> None:
        """A cycle is over: the factory's status and every machinetype's are to be sent. Returns at once."""
        self._put(settings, None)

    def finished(self, settings: Settings, directory: Path) -> None:
        """The machine with this directory has finished: its status is to be sent. Returns at once."""
        self._put(settings, directory)

    def _put(self, settings: Settings, directory: Path | None) -> None:
        if not settings.vacmon_hostport or self._tasks.qsize() >= MOST_WAITING:
            return
        self._tasks.put((settings.vacmon_hostport, directory))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vacmon", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        builder = SnapshotBuilder(self._state, "vacd-factory")
        changes = OnChange(log)
        services: dict[tuple[str, ...], VacMon] = {}
        while True:
            hostports, directory = self._tasks.get()
            if hostports not in services:
                services = {hostports: VacMon(hostports, self._names)}
            try:
                services[hostports].send(_statuses(builder, directory, self._clock()), self._clock())
                changes.clear("vacmon")
            except OSError as error:
                changes.say("vacmon", f"VacMon gets no status messages: {error}", logging.WARNING)


def _statuses(builder: SnapshotBuilder, directory: Path | None, now: float) -> list[AnyStatus]:
    """What is to be sent; nothing before the factory has reported for the first time."""
    if directory is not None:
        machine = builder.finished(directory)
        return [] if machine is None else [machine]
    snapshot = builder.build(now)
    return [] if snapshot is None else [snapshot.factory, *snapshot.machinetypes]
