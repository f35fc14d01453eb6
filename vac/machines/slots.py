"""Slots: which machine is, or was last, in each, rebuilt from disk at start; and the removal of what is old."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.lifecycle.phases import Phase, Recovery, SlotFile, recover
from vac.machines import files
from vac.machines.layout import DirectoryName, StateDir, parse_directory_name, slot_number
from vac.machines.machine import Machine, end_time, load
from vac.machines.outputs import shutdown_message
from vac.scheduling.backoff import is_abort, reported_message
from vac.scheduling.model import MachineEnd

log = logging.getLogger(__name__)


class SlotContent(NamedTuple):
    """Content of slots/HOST."""

    directory: DirectoryName
    model: str


def read_slot(path: Path) -> SlotContent | None:
    """Return the content of a slot file; None if there is none, it says nothing, or it is no file."""
    words = _three_words(path)
    directory = parse_directory_name("_".join([*words[:2], path.name])) if words else None
    return None if directory is None else SlotContent(directory, words[2])


def read_finish(path: Path) -> DirectoryName | None:
    """Return the machine that a file finishes/MACHINETYPE names; None if there is none, or it says nothing."""
    return parse_directory_name("_".join(_three_words(path)))


def _three_words(path: Path) -> list[str]:
    try:
        words = path.read_text(encoding="ascii", errors="replace").split()
    except (FileNotFoundError, IsADirectoryError):
        return []
    return words if len(words) == 3 else []


def write_slot(state: StateDir, machine: Machine) -> None:
    """Name the machine as its slot's present one."""
    content = f"{machine.created_time} {machine.machinetype} {machine.model}\n".encode("ascii", "replace")
    files.write_atomic(state.slot(machine.name), content, tmp=state.tmp)


def note_finish(state: StateDir, machine: Machine) -> None:
    """Name a finished machine in finishes/MACHINETYPE, unless one that was created later is named there.

    One that never started says nothing about its type and isn't named.
    """
    if machine.started_time is None:
        return
    named = read_finish(state.finish(machine.machinetype))
    if named is None or (machine.created_time, machine.name) > (named.created_time, named.name):
        content = f"{machine.created_time} {machine.machinetype} {machine.name}\n".encode("ascii", "replace")
        files.write_atomic(state.finish(machine.machinetype), content, tmp=state.tmp)


def read_slots(state: StateDir) -> dict[str, Machine]:
    """Return the present or last machine of every slot, by name, also of slots above the present number.

    Changes nothing: for those who look while a factory is at work.
    """
    slots: dict[str, Machine] = {}
    for path in sorted(state.slots.iterdir()) if state.slots.is_dir() else ():
        try:
            slot = read_slot(path)
            machine = None if slot is None else load(state.machine(slot.directory), model=slot.model)
        except OSError as error:
            log.warning("slot %s can't be read: %s", path.name, error)
            continue
        if machine is not None:
            slots[machine.name] = machine
    return slots


@dataclass
class Found:
    """Slots and machines that a factory finds on disk when it starts."""

    slots: dict[str, tuple[Machine, type[Phase]]] = field(default_factory=dict)
    """By name, the present or last machine of each slot, and the phase in which it goes on."""
    orphans: list[Machine] = field(default_factory=list)
    """Machines that started, are in no slot and have not been accounted for."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """By slot, why its machine can't be read. It is set aside."""


def load_slots(state: StateDir, machinetypes: Mapping[str, Machinetype], settings: Settings | None) -> Found:
    """Read all slots and machines, and undo or complete what a crash left undone."""
    found = Found()
    models: dict[DirectoryName, str] = {}
    for path in sorted(state.slots.iterdir()):
        try:
            slot = read_slot(path)
        except OSError as error:
            found.unreadable[path.name] = str(error)
            continue
        if slot is not None:
            models[slot.directory] = slot.model
    named = {directory.name for directory in models}
    for directory in [*models, *(one for one in reversed(_directories(state)) if one not in models)]:
        taken = directory.name in named or directory.name in found.slots
        slot_file = SlotFile.NAMES_ANOTHER if taken else SlotFile.MISSING
        if directory in models:
            slot_file = SlotFile.NAMES_IT
        if directory.name in found.unreadable:
            continue
        read = functools.partial(
            load, model=models.get(directory), machinetypes=machinetypes, settings=settings
        )
        try:
            _go_on(state, directory, slot_file, found, read)
        except OSError as error:
            if slot_file is not SlotFile.NAMES_IT:  # of those, the factory tells
                log.warning("%s can't be read: %s", state.machine(directory), error)
            if directory.name not in found.slots:
                found.unreadable[directory.name] = str(error)
    return found


def _go_on(
    state: StateDir,
    name: DirectoryName,
    slot_file: SlotFile,
    found: Found,
    read: Callable[[Path], Machine | None],
) -> None:
    """Do with one directory what vac.lifecycle.phases says."""
    directory = state.machine(name)
    started, finished = (directory / "started").exists(), (directory / "finished").exists()
    recovery, phase = recover(slot_file, started=started, finished=finished)
    if recovery is Recovery.DISCARD:
        log.warning("%s: discarded, its creation was not completed", directory.name)
        files.discard(directory, tmp=state.tmp)
    machine = None if recovery in (Recovery.DISCARD, Recovery.KEEP) else read(directory)
    if machine is None:
        return
    if recovery is Recovery.WRITE_SLOT_FILE:
        log.warning("%s: its slot file was lost and is written again", directory.name)
        write_slot(state, machine)
    elif machine.finished:
        note_finish(state, machine)
    if phase is None:
        found.orphans.append(machine)
    else:
        found.slots[machine.name] = (machine, phase)


def discard(state: StateDir, machine: Machine) -> None:
    """Remove a machine that never started, as if it had not been begun. Its slot file goes first."""
    files.remove(state.slot(machine.name))
    with contextlib.suppress(FileNotFoundError):
        files.discard(machine.directory, tmp=state.tmp)


def discard_scratch(state: StateDir, directory: Path) -> bool:
    """Discard what was a machine's own disk, now that nothing of it runs; False if there is none any more.

    Logs and joboutputs lie beside it and stay. Raises OSError, for example if something is mounted there.
    """
    scratch = directory / "mnt"
    if not scratch.exists():
        return False
    files.discard(scratch, tmp=state.tmp)
    return True


def find_ended(state: StateDir, word: str) -> Machine | None:
    """Return the machine whose uuid or directory's name this is, as long as its directory is kept."""
    for name in _directories(state):
        machine = load(state.machine(name))
        if machine is not None and (word == str(name) or word.lower() == machine.uuid):
            return machine
    return None


def reported(machine: Machine) -> str | None:
    """Return the shutdown message by which an ended machine is judged, here and by peers.

    An end that people wanted is nobody's abort, and one that nobody saw is not too early.
    """
    message = shutdown_message(machine)
    if machine.started_time is None:
        return message
    if machine.ended_by_people:
        return "100 Ended by the administrator" if is_abort(message) or not message else message
    if machine.unseen:
        return message
    return reported_message(message, machine.started_time, end_time(machine), machine.kind.fizzle_seconds)


def outcome(machine: Machine, clock_step: float = 0.0) -> MachineEnd:
    """Return how a machine ended, as scheduling sees it.

    Its times are by the wall clock as it is set now, which was set forward by clock_step seconds since its start.
    """
    return MachineEnd(
        machinetype=machine.machinetype,
        created_time=machine.created_time + clock_step,
        started_time=None if machine.started_time is None else machine.started_time + clock_step,
        ended_time=end_time(machine) + clock_step,
        message=reported(machine),
        early_counts=not (machine.unseen or machine.ended_by_people),
    )


def finished_machines(
    state: StateDir, machinetypes: Mapping[str, Machinetype], settings: Settings | None
) -> list[MachineEnd]:
    """Return the outcomes of all finished machines whose directories are there, oldest creation first."""
    outcomes = []
    for directory in map(state.machine, _directories(state)):
        try:
            if (directory / "finished").exists():
                machine = load(directory, machinetypes=machinetypes, settings=settings)
                if machine is not None:
                    outcomes.append(outcome(machine))
        except OSError as error:
            log.warning("%s can't be read: %s", directory, error)
    return outcomes


def _directories(state: StateDir) -> list[DirectoryName]:
    """Return the names of all machines' directories, by time of creation."""
    names = (parse_directory_name(path.name) for path in state.machines.iterdir())
    return sorted(name for name in names if name is not None)


UNCONFIGURED_DAYS = 3.0
"""Days for which directories of types are kept that are no longer configured."""
MOST_ABORTED = 100
"""Directories of aborted machines that are kept of each type, the newest."""
_DAY_SECONDS = 86400.0


class Expiry:
    """Removal of old directories. Facts read once are remembered, so that each call costs little."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._ended: dict[Path, tuple[str, float, bool]] = {}
        """By directory of a machine that has ended or never started: its type, when `finished` was written or else
        when it was created, and whether it was aborted or never started."""

    def run(
        self, machinetypes: Mapping[str, Machinetype], occupied: Collection[Path], now: float, limit: int = 50
    ) -> list[Path]:
        """Read at most `limit` new directories and remove at most `limit`; return the removed ones.

        machinetypes are those configured now: don't call it with a configuration that couldn't be read.
        occupied are the directories of machines that are starting or running.
        """
        directories = [self._state.machine(name) for name in _directories(self._state)]
        self._ended = {path: self._ended[path] for path in directories if path in self._ended}
        new = [path for path in directories if path not in self._ended and path not in occupied][:limit]
        for path in new:
            try:
                self._look(path)
            except OSError as error:
                log.warning("%s can't be read, or its scratch space removed: %s", path, error)
        removed = []
        for path in self._expired(directories, machinetypes, now)[:limit]:
            del self._ended[path]
            try:
                files.discard(path, tmp=self._state.tmp)
                removed.append(path)
            except OSError as error:
                log.warning("%s can't be removed: %s", path, error)
        return removed

    def _look(self, path: Path) -> None:
        """Read a directory that is new; discard the scratch space that another factory, perhaps a classic one, left."""
        machine = load(path)
        if machine is None or (machine.started_time is not None and not machine.finished):
            return
        aborted = machine.started_time is None or is_abort(outcome(machine).message)
        ended_time = (path / "finished").stat().st_mtime if machine.finished else float(machine.created_time)
        self._ended[path] = (machine.machinetype, ended_time, aborted)
        if machine.finished:
            discard_scratch(self._state, path)

    def _expired(
        self, directories: Sequence[Path], machinetypes: Mapping[str, Machinetype], now: float
    ) -> list[Path]:
        """Return directories that are too old, and aborted ones beyond MOST_ABORTED; oldest first."""
        expired: list[Path] = []
        aborted: Counter[str] = Counter()
        for path in reversed(directories):
            if path not in self._ended:
                continue
            name, ended_time, is_aborted = self._ended[path]
            days = machinetypes[name].machines_dir_days if name in machinetypes else UNCONFIGURED_DAYS
            too_old = days > 0 and now - ended_time > days * _DAY_SECONDS
            aborted[name] += is_aborted and not too_old
            if too_old or (is_aborted and aborted[name] > MOST_ABORTED):
                expired.append(path)
        return expired[::-1]


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
