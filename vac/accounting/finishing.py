"""The end of a machine on disk: final heartbeat, record, history, `finished`, finishes/TYPE, in this order.

Each step can be the last one before a crash: repeating them all gives the same files with the same content.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vac.accounting import history, records
from vac.clock import Moment
from vac.drivers.base import Usage
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time, mark_started, write_final_heartbeat
from vac.machines.outputs import keep_shutdown_message
from vac.machines.slots import note_finish


class FinishFailed(Exception):
    """The end can't be written now (the reason is the text); try again: nothing is lost, nothing doubled."""


@dataclass(frozen=True)
class Finished:
    """Result of writing a machine's end."""

    ended_time: float
    message: str | None
    """Shutdown message of the machine, or of the factory that destroyed it."""
    record: Path | None
    """Its accounting record in apel-archive; None if it never started or lived less than fizzle_seconds."""
    outgoing: Path | None
    """The same in apel-outgoing, if the site reports to APEL."""


def finish(state: StateDir, machine: Machine, usage: Usage | None, now: Moment, *, watched: bool) -> Finished:
    """Write the machine's end.

    usage is the engine's last word, if it has one. watched: the engine has shown the machine alive and answered ever
    since, so that it has ended just now; else its end is what the engine tells, or its latest sign of life.
    On a full disk the reserve is given up. If somebody has removed the machine's directory, what is known of
    it is accounted for all the same. Raises FinishFailed.
    """
    if machine.started_time is not None and not machine.options.vac_space:
        raise FinishFailed(
            f"{machine.name}: its accounting needs vac_space, and there is no configuration yet"
        )
    try:
        return state.spending_reserve(lambda: _finish(state, machine, usage or Usage(), now, watched))
    except OSError as error:
        raise FinishFailed(f"{machine.name}: its end can't be written: {error}") from error


def _finish(state: StateDir, machine: Machine, usage: Usage, now: Moment, watched: bool) -> Finished:
    record, outgoing, message = None, None, None
    files.make_directory(machine.directory, exist_ok=True)
    if machine.started_time is not None:
        if not machine.start_written:
            mark_started(state, machine, now)
        write_final_heartbeat(state, machine, now, usage, watched=watched)
        message = keep_shutdown_message(state, machine, now.unix)
        if end_time(machine) - machine.started_time >= machine.options.fizzle_seconds:
            record = records.archive(state, records.job_record(machine))
            outgoing = _send(state, machine, record)
        history.append(state, machine)
    files.write_atomic(machine.directory / "finished", b"", tmp=state.tmp)
    machine.finished = True
    note_finish(state, machine)
    return Finished(end_time(machine), message, record, outgoing)


def _send(state: StateDir, machine: Machine, record: Path) -> Path | None:
    options = machine.options
    if not options.gocdb_sitename or not (options.hs06_per_processor or options.hepscore23_per_processor):
        return None
    return records.send(state, record.parent.name, record.name, record.read_text(encoding="ascii"))
