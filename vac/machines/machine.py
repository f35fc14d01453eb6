"""A logical machine: its directory, mirrored in memory, and what its life writes there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import LeftProcess, Usage
from vac.machines import files, retained
from vac.machines.layout import StateDir, parse_directory_name
from vac.machines.retained import RetainedOptions

SAMPLE_SECONDS = 30.0
"""Recent CPU use is measured over at least so long."""
CHECKPOINT_SECONDS = 600.0
"""What a machine has used is made durable this often, so that a power failure costs no more."""
_INTEGERS = ("memory_bytes", "peak_memory_bytes", "network_received_bytes", "network_sent_bytes")
"""Of what usage.json holds; named as in Usage."""
UNKNOWN = Usage()
_JOBFEATURES = ("job_id", "allocated_cpu", "shutdowntime_job", "max_rss_bytes", "hs06_job", "hepscore23_job")


@dataclass
class Machine:
    """One machine as its directory says. Times are Unix seconds."""

    directory: Path
    created_time: int
    machinetype: str
    name: str
    uuid: str
    """job_id; empty if a classic factory failed to create it."""
    processors: int
    options: RetainedOptions
    shutdown_time: int
    """When it must end."""
    started_time: float | None = None
    finished: bool = False
    heartbeat_time: float | None = None
    """When it was last seen alive."""
    cpu_seconds: float = 0.0
    cpu_percent: float | None = None
    """Recent CPU use, in percent of one processor."""
    memory_bytes: int | None = None
    """When it was last measured."""
    peak_memory_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    fqan: str | None = None
    """accounting_fqan as it was when the machine was created."""
    final: bool = False
    """Its last heartbeat is written: nothing moves its end any more."""
    sample: tuple[float, float] | None = None
    """Time and CPU seconds from which recent CPU use is measured."""
    checkpoint_time: float = 0.0
    """When usage.json was last made durable."""

    @property
    def model(self) -> str:
        """Its machine model."""
        return self.options.machine_model

    @property
    def hs06(self) -> float:
        """HS06 of the whole machine, by the rule of Settings.hs06."""
        per_processor = self.options.hs06_per_processor or self.options.hepscore23_per_processor or 1.0
        return per_processor * self.processors


def load(
    directory: Path,
    *,
    model: str | None = None,
    machinetypes: Mapping[str, Machinetype] | None = None,
    settings: Settings | None = None,
) -> Machine | None:
    """The machine of a directory, or None if that isn't one.

    model is what its slot says. The configuration stands in where a classic factory's directory has no
    machinetype.json; without one such a machine's options have an empty vac_space.
    """
    name = parse_directory_name(directory.name)
    if name is None or not directory.is_dir():
        return None
    features = {key: _text(directory / "jobfeatures" / key) or "" for key in _JOBFEATURES}
    processors = (
        _integer(features["allocated_cpu"])
        or _integer(_text(directory / "machinefeatures" / "total_cpu"))
        or 1
    )
    fqan = _text(directory / "accounting_fqan") or None
    stand_in = retained.standing_in(
        (machinetypes or {}).get(name.machinetype),
        settings,
        model=model,
        fqan=fqan,
        processors=processors,
        features={key: value for key, value in features.items() if value},
    )
    kept = _content(directory / "machinetype.json")
    options = stand_in if kept is None else retained.from_json(kept, stand_in)
    latest_shutdown = max(
        _integer(features["shutdowntime_job"]) or 0,
        _integer(_text(directory / "machinefeatures" / "shutdowntime")) or 0,
    )
    machine = Machine(
        directory=directory,
        created_time=name.created_time,
        machinetype=name.machinetype,
        name=name.name,
        uuid=features["job_id"],
        processors=processors,
        options=options,
        shutdown_time=latest_shutdown or name.created_time + options.max_wallclock_seconds,
        started_time=_started_time(directory / "started"),
        finished=_mtime(directory / "finished") is not None,
        fqan=fqan,
    )
    _load_usage(machine)
    return machine


def _load_usage(machine: Machine) -> None:
    heartbeat = machine.directory / "heartbeat"
    machine.heartbeat_time = _mtime(heartbeat)
    numbers = [_float(word) for word in (_text(heartbeat) or "").split()[:2]]
    if numbers and numbers[0] is not None:
        machine.cpu_seconds = numbers[0]
    if len(numbers) > 1:
        machine.cpu_percent = numbers[1]
    try:
        usage = json.loads(_content(machine.directory / "usage.json") or b"{}")
    except ValueError:
        usage = {}
    if isinstance(usage, dict):
        machine.cpu_seconds = max(machine.cpu_seconds, _float(usage.get("cpu_seconds")) or 0.0)
        for name in _INTEGERS:
            setattr(machine, name, _integer(usage.get(name)))
    if machine.heartbeat_time is not None:
        machine.sample = (machine.heartbeat_time, machine.cpu_seconds)


def mark_started(state: StateDir, machine: Machine, now: float) -> None:
    """The machine runs: write `started` and its first heartbeat."""
    started = machine.directory / "started"
    files.write_atomic(started, b"%d\n" % int(now), tmp=state.tmp)
    machine.started_time = float(int(now))
    machine.sample = (now, machine.cpu_seconds)
    _write_heartbeat(state, machine, now, sync=False)


def renew_heartbeat(state: StateDir, machine: Machine, now: float, usage: Usage = UNKNOWN) -> None:
    """The machine has been seen alive now, having used so much since its start.

    On a full disk only the time is renewed, which takes no space.
    """
    if machine.final:
        return
    _take_usage(machine, usage)
    if machine.sample is None:
        machine.sample = (now, machine.cpu_seconds)
    sample_time, sample_cpu = machine.sample
    if now - sample_time >= SAMPLE_SECONDS:
        machine.cpu_percent = 100.0 * (machine.cpu_seconds - sample_cpu) / (now - sample_time)
        machine.sample = (now, machine.cpu_seconds)
    try:
        durable = not 0 <= now - machine.checkpoint_time < CHECKPOINT_SECONDS
        _write_usage(state, machine, sync=durable)
        if durable:
            machine.checkpoint_time = now
        _write_heartbeat(state, machine, now, sync=False)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise
        files.set_mtime(machine.directory / "heartbeat", now)
        machine.heartbeat_time = now


def write_final_heartbeat(
    state: StateDir,
    machine: Machine,
    now: float,
    usage: Usage = UNKNOWN,
    *,
    live: bool,
) -> None:
    """Write final usage. Its time, the machine's end, is now if it was live until now, else usage.ended_time, which
    its engine tells, or if that is None or can't be true, what it was.

    Does nothing if that has been done, so that whatever is derived from it stays the same.
    """
    if machine.final:
        return
    _take_usage(machine, usage)
    told = now if live else min(now, usage.ended_time or 0.0)
    ended = max(told, end_time(machine))
    _write_usage(state, machine, sync=True)
    _write_heartbeat(state, machine, ended, sync=True)
    machine.final = True


def _take_usage(machine: Machine, usage: Usage) -> None:
    """What only grows never shrinks, whatever an engine tells after a restart."""
    if usage.cpu_seconds is not None and math.isfinite(usage.cpu_seconds):
        machine.cpu_seconds = max(machine.cpu_seconds, usage.cpu_seconds)
    if usage.memory_bytes is not None:
        machine.memory_bytes = usage.memory_bytes
    for name in _INTEGERS[1:]:
        told = getattr(usage, name)
        if told is not None:
            setattr(machine, name, max(getattr(machine, name) or 0, told))


def _write_heartbeat(state: StateDir, machine: Machine, seen_time: float, *, sync: bool) -> None:
    content = f"{machine.cpu_seconds:.1f} {machine.cpu_percent or 0.0:.1f}\n".encode("ascii")
    files.write_atomic(machine.directory / "heartbeat", content, tmp=state.tmp, sync=sync, mtime=seen_time)
    machine.heartbeat_time = seen_time


def _write_usage(state: StateDir, machine: Machine, *, sync: bool) -> None:
    usage = {name: getattr(machine, name) for name in ("cpu_seconds", *_INTEGERS)}
    content = json.dumps(usage).encode("ascii") + b"\n"
    files.write_atomic(machine.directory / "usage.json", content, tmp=state.tmp, sync=sync)


def note_details(state: StateDir, machine: Machine, details: Mapping[str, str]) -> None:
    """Keep what the engine tells of a machine, such as its image's digest and its addresses, beside what it has told.

    On a full disk it isn't kept: people can do without.
    """
    content = json.dumps({**read_details(machine), **details}, indent=1).encode("ascii") + b"\n"
    try:
        files.write_atomic(machine.directory / "details.json", content, tmp=state.tmp, sync=False)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise


def read_details(machine: Machine) -> dict[str, str]:
    """What was kept by note_details; empty if nothing was."""
    try:
        found = json.loads(_content(machine.directory / "details.json") or b"{}")
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def left_process(machine: Machine, settings: Settings) -> LeftProcess | None:
    """What an older Vac has noted of a machine that it left running as a process of this host; None if it is none.

    Our own, which have a machinetype.json, are known by their cgroups.
    """
    file = machine.directory / "pid"
    pid, noted_time = _integer(_text(file)), _mtime(file)
    if machine.finished or not machine.uuid or (machine.directory / "machinetype.json").exists():
        return None
    if machine.model != "singularity" or pid is None or noted_time is None:
        return None
    user, memory_bytes = settings.singularity_user or "nobody", machine.options.mb_per_processor * 1024 * 1024
    return LeftProcess(
        machine.name,
        pid,
        noted_time,
        user,
        machine.processors,
        memory_bytes * machine.processors,
        machine.cpu_seconds,
    )


def lower_shutdown_time(state: StateDir, machine: Machine, shutdown_time: int) -> bool:
    """Move the machine's end closer, in its Machine/Job Features too; False if it ends no later anyway."""
    if shutdown_time >= machine.shutdown_time:
        return False
    content = b"%d" % shutdown_time
    for key in ("machinefeatures/shutdowntime", "jobfeatures/shutdowntime_job"):
        files.write_atomic(machine.directory / key, content, tmp=state.tmp)
    machine.shutdown_time = shutdown_time
    return True


def end_time(machine: Machine) -> float:
    """When it was last seen alive; its start if never since, its creation if it never started."""
    if machine.started_time is None:
        return float(machine.created_time)
    return max(machine.started_time, machine.heartbeat_time or 0.0)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _text(path: Path) -> str | None:
    content = _content(path)
    return None if content is None else content.decode("utf-8", "replace").strip()


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _started_time(path: Path) -> float | None:
    written = _float(_text(path))
    return _mtime(path) if written is None else written


def _float(value: object) -> float | None:
    if not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _integer(value: object) -> int | None:
    number = _float(value)
    return None if number is None else int(number)
