"""Removal of what is old: directories of ended machines, slots that a factory has no more."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.machines import files
from vac.machines.layout import StateDir, parse_directory_name, slot_number
from vac.machines.machine import load
from vac.machines.slots import discard_scratch, outcome
from vac.scheduling.backoff import is_abort

log = logging.getLogger(__name__)

UNCONFIGURED_DAYS = 3.0
"""How long directories of types are kept that are no longer configured."""
MOST_ABORTED = 100
"""Directories of aborted machines that are kept of each type, the newest."""
_DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class _Ended:
    """What is remembered of an ended machine's directory."""

    created_time: int
    machinetype: str
    ended_time: float
    """When `finished` was written; when it was created, if it has none because it never started."""
    aborted: bool
    """Or never started."""


class Expiry:
    """Remembers what it has read of finished machines, so that each call costs little."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._ended: dict[Path, _Ended] = {}

    def run(
        self, machinetypes: Mapping[str, Machinetype], occupied: Collection[Path], now: float, limit: int = 50
    ) -> list[Path]:
        """Read at most `limit` directories that are new to it and remove at most `limit`; returns the
        removed.

        machinetypes are those configured now: don't call it with a configuration that couldn't be read.
        occupied are the directories of machines that are starting or running.
        """
        self._look(occupied, limit)
        removed = []
        for path in self._expired(machinetypes, now)[:limit]:
            try:
                files.discard(path, tmp=self._state.tmp)
            except OSError as error:
                log.warning("%s can't be removed: %s", path, error)
            else:
                removed.append(path)
            del self._ended[path]
        return removed

    def _look(self, occupied: Collection[Path], limit: int) -> None:
        """Forget what has vanished, read what is new."""
        present = {path for path in self._state.machines.iterdir() if parse_directory_name(path.name)}
        self._ended = {path: ended for path, ended in self._ended.items() if path in present}
        new = sorted(present - self._ended.keys() - set(occupied))
        for path in new[:limit]:
            try:
                ended = self._read(path)
            except OSError as error:
                log.warning("%s can't be read: %s", path, error)
                continue
            if ended is not None:
                self._ended[path] = ended

    def _read(self, path: Path) -> _Ended | None:
        name = parse_directory_name(path.name)
        machine = load(path)
        if name is None or machine is None or (machine.started_time is not None and not machine.finished):
            return None
        finished = path / "finished"
        ended_time = finished.stat().st_mtime if machine.finished else float(name.created_time)
        if machine.finished:
            self._empty(path)
        aborted = machine.started_time is None or is_abort(outcome(machine).message)
        return _Ended(name.created_time, name.machinetype, ended_time, aborted)

    def _empty(self, path: Path) -> None:
        """Whoever saw to its end, a classic factory perhaps, has left its disk."""
        try:
            discard_scratch(self._state, path)
        except OSError as error:
            log.warning("%s: its scratch space can't be removed: %s", path, error)

    def _expired(self, machinetypes: Mapping[str, Machinetype], now: float) -> list[Path]:
        """What is too old, and aborted ones of which there are too many; oldest first."""
        expired = set()
        aborted = defaultdict(list)
        for path, ended in self._ended.items():
            machinetype = machinetypes.get(ended.machinetype)
            days = UNCONFIGURED_DAYS if machinetype is None else machinetype.machines_dir_days
            if days > 0 and now - ended.ended_time > days * _DAY_SECONDS:
                expired.add(path)
            elif ended.aborted:
                aborted[ended.machinetype].append((ended.created_time, path))
        for paths in aborted.values():
            expired.update(path for _, path in sorted(paths)[:-MOST_ABORTED])
        return sorted(expired, key=lambda path: self._ended[path].created_time)


def remove_orphaned_slots(
    state: StateDir, factory_name: str, slots: int, occupied: Collection[str]
) -> list[str]:
    """Remove the slot files of this factory numbered `slots` or above whose names aren't occupied."""
    removed = []
    for path in sorted(state.slots.iterdir()):
        number = slot_number(factory_name, path.name)
        if number is not None and number >= slots and path.name not in occupied and path.is_file():
            files.remove(path)
            removed.append(path.name)
    return removed
