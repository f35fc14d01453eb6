"""Slots: which machine is, or was last, in each; rebuilt from disk at start."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.machines import files
from vac.machines.layout import DirectoryName, StateDir, parse_directory_name, slot_name
from vac.machines.machine import Machine, end_time, load
from vac.machines.messages import shutdown_message
from vac.scheduling.model import Outcome

log = logging.getLogger(__name__)

Report = Callable[[Optional[str], float, float, float], Optional[str]]
"""vac.scheduling.backoff.reported_message(message, started, ended, fizzle_seconds)."""


class SlotFile(NamedTuple):
    """What slots/HOST says."""

    directory: DirectoryName
    model: str


def read_slot(path: Path) -> SlotFile | None:
    """The content of a slot file, or None if there is none, it says nothing, or it is no file."""
    try:
        words = path.read_text(encoding="ascii", errors="replace").split()
    except (FileNotFoundError, IsADirectoryError):
        return None
    directory = parse_directory_name("_".join([*words[:2], path.name])) if len(words) == 3 else None
    return None if directory is None else SlotFile(directory, words[2])


def write_slot(state: StateDir, machine: Machine) -> None:
    """Name the machine as its slot's present one."""
    content = f"{machine.created_time} {machine.machinetype} {machine.model}\n".encode("ascii", "replace")
    files.write_atomic(state.slot(machine.name), content, tmp=state.tmp)


def note_finish(state: StateDir, machine: Machine) -> None:
    """Name a finished machine in finishes/MACHINETYPE, unless one that was created later is named there.

    One that never started says nothing about its type and isn't named.
    """
    path = state.finish(machine.machinetype)
    if machine.started_time is None:
        return
    try:
        words = path.read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        words = []
    named = (int(words[0]), words[2]) if len(words) == 3 and words[0].isdigit() else (-1, "")
    if (machine.created_time, machine.name) > named:
        content = f"{machine.created_time} {machine.machinetype} {machine.name}\n".encode("ascii", "replace")
        files.write_atomic(path, content, tmp=state.tmp)


def read_slots(
    state: StateDir, machinetypes: Mapping[str, Machinetype] | None = None, settings: Settings | None = None
) -> dict[str, Machine]:
    """The present or last machine of every slot, by name, also of slots above the present number.

    Changes nothing: for those who look while a factory is at work.
    """
    slots: dict[str, Machine] = {}
    for path in sorted(state.slots.iterdir()) if state.slots.is_dir() else ():
        slot = read_slot(path)
        if slot is None:
            continue
        machine = load(
            state.machine(slot.directory), model=slot.model, machinetypes=machinetypes, settings=settings
        )
        if machine is not None:
            slots[machine.name] = machine
    return slots


def load_slots(
    state: StateDir, machinetypes: Mapping[str, Machinetype], settings: Settings | None
) -> dict[str, Machine]:
    """As read_slots, for the factory at its start.

    What a crash left undone is undone or completed: half-created directories are removed, a running machine
    whose slot file was lost gets it back, a finished one is named in finishes/.
    """
    slots = read_slots(state, machinetypes, settings)
    for machine in slots.values():
        if machine.finished:
            note_finish(state, machine)
    known = {machine.directory for machine in slots.values()}
    for directory in reversed(_directories(state)):
        if directory in known or (directory / "finished").exists():
            continue
        if not (directory / "started").exists():
            log.warning("%s: removed, its creation was not completed", directory.name)
            files.discard(directory, tmp=state.tmp)
            continue
        lost = load(directory, machinetypes=machinetypes, settings=settings)
        if lost is not None and read_slot(state.slot(lost.name)) is None:
            log.warning("%s: its slot file was lost and is made again", directory.name)
            write_slot(state, lost)
            slots[lost.name] = lost
    return slots


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


def strays(
    state: StateDir,
    slots: Iterable[Machine],
    machinetypes: Mapping[str, Machinetype],
    settings: Settings | None,
) -> list[Machine]:
    """Machines that started, are in no slot and have no `finished`: their end is still to be written."""
    known = {machine.directory for machine in slots}
    found = []
    for directory in _directories(state):
        if directory in known or (directory / "finished").exists() or not (directory / "started").exists():
            continue
        machine = load(directory, machinetypes=machinetypes, settings=settings)
        if machine is not None:
            found.append(machine)
    return found


def find_by_uuid(state: StateDir, uuid: str) -> Machine | None:
    """The machine with this uuid, as long as its directory is kept."""
    for directory in _directories(state):
        machine = load(directory, machinetypes={}, settings=None)
        if machine is not None and machine.uuid == uuid:
            return machine
    return None


def free_slot(factory_name: str, slots: int, occupied: Collection[str]) -> str | None:
    """The name of the lowest slot that isn't occupied, or None if all of them are."""
    names = (slot_name(factory_name, number) for number in range(slots))
    return next((name for name in names if name not in occupied), None)


def outcome(machine: Machine, report: Report) -> Outcome:
    """How a machine ended, as scheduling sees it."""
    message = shutdown_message(machine)
    ended = end_time(machine)
    if machine.started_time is not None:
        message = report(message, machine.started_time, ended, machine.options.fizzle_seconds)
    return Outcome(
        machinetype=machine.machinetype,
        created_time=machine.created_time,
        started_time=machine.started_time,
        ended_time=ended,
        message=message,
    )


def finished_machines(
    state: StateDir, machinetypes: Mapping[str, Machinetype], settings: Settings | None, report: Report
) -> list[Outcome]:
    """The outcomes of all finished machines whose directories are there, oldest creation first."""
    outcomes = []
    for directory in _directories(state):
        if (directory / "finished").exists():
            machine = load(directory, machinetypes=machinetypes, settings=settings)
            if machine is not None:
                outcomes.append(outcome(machine, report))
    return outcomes


def _directories(state: StateDir) -> list[Path]:
    """All machines' directories, by time of creation."""
    named = ((parse_directory_name(path.name), path) for path in state.machines.iterdir())
    return [path for _, path in sorted((name, path) for name, path in named if name is not None)]
