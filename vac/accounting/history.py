"""The end of a machine on disk, and how machines of this factory have ended.

finish() writes the final heartbeat, record, history, `finished` and finishes/TYPE, in this order. Each step can be the
last one before a crash: repeating them all gives the same files with the same content. The history is one line of JSON
for each machine, in a file of bounded size, and outlives the machine's directory. `vac history`, `vac why` and the
status page's curves are made of it; accounting is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal as signals
from collections.abc import Iterator
from dataclasses import dataclass

from vac.accounting import records
from vac.clock import Moment
from vac.drivers.base import Usage
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time, mark_started, write_final_heartbeat
from vac.machines.outputs import keep_shutdown_message, shutdown_message
from vac.machines.slots import note_finish, reported
from vac.scheduling.backoff import is_abort
from vac.text import duration

LIMIT_BYTES = 4 * 1024 * 1024
"""Of each of two files: together they hold some 20,000 machines."""
_TAIL_BYTES = 65536
_RECENT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Ended:
    """One ended machine. Times are Unix seconds."""

    machine: str
    machinetype: str
    directory: str
    """Name of its directory below machines/."""
    started: float
    ended: float
    uuid: str = ""
    model: str = ""
    fqan: str | None = None
    processors: int = 1
    hs06: float = 0.0
    cpu_seconds: float = 0.0
    joules: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    shutoff_reason: str | None = None
    """Of a VM, see Usage."""
    by_people: bool = False
    message: str | None = None
    """Its shutdown message, or the one by which it is judged without."""

    @property
    def lived_seconds(self) -> float:
        """Wall-clock time."""
        return max(0.0, self.ended - self.started)

    @property
    def efficiency(self) -> float:
        """Part of its processors' time that it used."""
        return self.cpu_seconds / (self.lived_seconds * self.processors) if self.lived_seconds else 0.0

    @property
    def failed(self) -> bool:
        """True for an abort, and if its command failed though nobody had ended it."""
        told = self.message is not None and self.message[:3].isdigit()
        return not self.by_people and (
            is_abort(self.message)
            or (not told and bool(self.signal or self.exit_code or self.shutoff_reason == "crashed"))
        )

    @property
    def exit_words(self) -> str:
        """Exit code, signal or a VM's reason, such as `exit code 7`, `SIGKILL` or `crashed`; empty if unknown."""
        if self.signal is not None:
            return _signal_name(self.signal)
        if self.exit_code is None:
            return self.shutoff_reason or ""
        name = _signal_name(self.exit_code - 128) if 128 < self.exit_code < 160 else ""
        return f"exit code {self.exit_code}" + (f" ({name})" if name else "")

    @property
    def words(self) -> str:
        """How it ended, in one sentence."""
        how = f"{self.exit_words} " if self.exit_words else ""
        ended = f"{how}after {duration(self.lived_seconds)}: {self.message or 'no shutdown message'}"
        return f"{ended} (people wanted its end)" if self.by_people else ended


_NAMES = frozenset(field.name for field in dataclasses.fields(Ended))


def ended(machine: Machine) -> Ended:
    """Return the end of a machine that has started and ended, from its files."""
    assert machine.started_time is not None
    return Ended(
        machine=machine.name,
        machinetype=machine.machinetype,
        model=machine.model,
        fqan=machine.fqan,
        uuid=machine.uuid,
        directory=machine.directory.name,
        processors=machine.processors,
        hs06=machine.hs06,
        started=round(machine.started_time, 3),
        ended=round(end_time(machine), 3),
        cpu_seconds=round(machine.cpu_seconds, 1),
        joules=None if machine.joules is None else round(machine.joules),
        exit_code=machine.exit_code,
        signal=machine.signal,
        shutoff_reason=machine.shutoff_reason,
        by_people=machine.ended_by_people,
        message=reported(machine),
    )


def finish(state: StateDir, machine: Machine, usage: Usage, now: Moment, *, watched: bool) -> None:
    """Write the machine's end.

    usage is what the engine told last, if anything. watched: the engine has shown the machine alive and answered ever
    since, so that it has ended just now; else its end is what the engine tells, or its latest sign of life.
    If somebody has removed the machine's directory, what is known of it is accounted for all the same. Raises OSError
    if it can't be written now; try again: nothing is lost, nothing doubled.
    """
    if machine.started_time is not None and not machine.settings.vac_space:
        raise OSError("its accounting needs vac_space, and there is no configuration yet")
    files.make_directory(machine.directory, exist_ok=True)
    if machine.started_time is not None:
        if not machine.start_written:
            mark_started(state, machine, now)
        # a container that SIGTERM ended: by people, or by its engine, which may answer until all have ended
        stopped = machine.model == "docker" and usage.signal == signals.SIGTERM
        if stopped and not shutdown_message(machine):
            machine.ended_by_people = True
        write_final_heartbeat(state, machine, now, usage, watched=watched)
        keep_shutdown_message(state, machine, now.unix)
        if end_time(machine) - machine.started_time >= machine.kind.fizzle_seconds:
            record = records.archive(state, machine)
            settings = machine.settings
            if settings.gocdb_sitename and (settings.hs06_per_processor or settings.hepscore23_per_processor):
                records.send(state, record.parent.name, record.name, record.read_text(encoding="ascii"))
        append(state, machine)
    files.write_atomic(machine.directory / "finished", b"", tmp=state.tmp)
    machine.finished = True
    note_finish(state, machine)


def append(state: StateDir, machine: Machine) -> None:
    """Write the machine's end, unless it is among the last that were written. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), state.history.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        if json.dumps(machine.directory.name).encode() in file.read():
            return
    line = json.dumps(dataclasses.asdict(ended(machine))).encode("ascii")
    files.append_line(state.history, line, LIMIT_BYTES)


def read(state: StateDir, since: float = 0.0) -> list[Ended]:
    """Return the machines known that ended since then, the last to end last. Lines that can't be read are left out."""
    found: dict[str, Ended] = {}
    for path in (state.history.with_name(f"{state.history.name}.1"), state.history):
        with contextlib.suppress(FileNotFoundError):
            found.update((one.directory, one) for one in _decoded(path.read_bytes()) if one.ended >= since)
    return sorted(found.values(), key=lambda one: one.ended)


def last_failures(state: StateDir, since: float) -> dict[str, Ended]:
    """Return each type's last machine that failed, if it ended since then or none of the type has after it."""
    found: dict[str, Ended] = {}
    with contextlib.suppress(FileNotFoundError), state.history.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _RECENT_BYTES))
        for one in sorted(_decoded(file.read()), key=lambda one: one.ended):
            if one.failed:
                found[one.machinetype] = one
            elif one.machinetype in found and found[one.machinetype].ended < since:
                del found[one.machinetype]
    return found


def _decoded(content: bytes) -> Iterator[Ended]:
    """Yield the machines of these lines. vac.decoding takes ten times as long, and the file is ours."""
    for line in content.splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            fields = json.loads(line.decode())
            yield Ended(**{name: fields[name] for name in fields.keys() & _NAMES})


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
