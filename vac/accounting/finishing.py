"""The end of a machine on disk: final heartbeat, record, history, `finished`, finishes/TYPE, in this order.

Each step can be the last one before a crash: repeating them all gives the same files with the same content.
"""

from __future__ import annotations

import signal

from vac.accounting import history, records
from vac.clock import Moment
from vac.drivers.base import Usage
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time, mark_started, write_final_heartbeat
from vac.machines.outputs import keep_shutdown_message, shutdown_message
from vac.machines.slots import note_finish


def finish(state: StateDir, machine: Machine, usage: Usage, now: Moment, *, watched: bool) -> None:
    """Write the machine's end.

    usage is what the engine told last, if anything. watched: the engine has shown the machine alive and answered ever
    since, so that it has ended just now; else its end is what the engine tells, or its latest sign of life.
    If somebody has removed the machine's directory, what is known of it is accounted for all the same. Raises OSError
    if it can't be written now; try again: nothing is lost, nothing doubled.
    """
    if machine.started_time is not None and not machine.options.vac_space:
        raise OSError("its accounting needs vac_space, and there is no configuration yet")
    files.make_directory(machine.directory, exist_ok=True)
    if machine.started_time is not None:
        if not machine.start_written:
            mark_started(state, machine, now)
        # a container that SIGTERM ended: by people, or by its engine, which may answer until all have ended
        stopped = machine.model == "docker" and usage.signal == signal.SIGTERM
        if stopped and not shutdown_message(machine):
            machine.ended_by_people = True
        write_final_heartbeat(state, machine, now, usage, watched=watched)
        keep_shutdown_message(state, machine, now.unix)
        if end_time(machine) - machine.started_time >= machine.options.fizzle_seconds:
            record = records.archive(state, machine)
            options = machine.options
            if options.gocdb_sitename and (options.hs06_per_processor or options.hepscore23_per_processor):
                records.send(state, record.parent.name, record.name, record.read_text(encoding="ascii"))
        history.append(state, machine)
    files.write_atomic(machine.directory / "finished", b"", tmp=state.tmp)
    machine.finished = True
    note_finish(state, machine)
