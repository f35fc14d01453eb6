"""A logical machine: its directory, mirrored in memory, and what its life writes there.

Its age is measured with a monotonic clock. `started` has the Unix time of its start and `started_boot` the same
moment by that clock; usage.json has how long it had run when it was last seen alive, and when it must end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vac.clock import Moment
from vac.config.machinetype import Machinetype
from vac.config.options import declared
from vac.config.settings import Settings
from vac.decoding import filled
from vac.drivers.base import LeftProcess, Usage
from vac.machines import files
from vac.machines.layout import StateDir, parse_directory_name

SAMPLE_SECONDS = 30.0
"""Recent CPU use is measured over at least so long."""
CHECKPOINT_SECONDS = 600.0
"""Interval at which a machine's usage is made durable: a power failure costs no more."""
CLOCK_TOLERANCE_SECONDS = 2.0
"""Smaller differences between the clocks are drift, not steps."""
MOST_SIGNS = 1000
"""So many of a machine's files are looked at for a sign of life."""
_MIB = 1024 * 1024
_TOTALS = ("peak_memory_bytes", "network_received_bytes", "network_sent_bytes")
_NOTED = ("cpu_seconds", "memory_bytes", *_TOTALS, "alive_seconds", "shutdown_time")
"""Fields in usage.json."""
_NOTED_IF_SET = ("final", "unseen", "ended_by_people", "exit_code", "signal", "joules", "shutoff_reason")
"""Fields that usage.json has unless they are None or False."""
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
    kind: Machinetype
    """Its type when it was made. Only options declared with retained=True are sure: others aren't kept on disk."""
    settings: Settings
    """[settings] when it was made, likewise; without vac_space if a classic factory made it and there is no
    configuration."""
    shutdown_time: int
    """When it must end, by the wall clock as it was set when the machine started."""
    started_time: float | None = None
    started_boot: tuple[str, float] | None = None
    """Boot id and seconds since boot at its start; None: not started, or started by an older Vac."""
    created_boot: tuple[str, float] | None = None
    """The same of its creation."""
    start_written: bool = True
    """False: it has started, and that isn't on disk yet."""
    finished: bool = False
    heartbeat_time: float | None = None
    """When it was last seen alive, by the clock of people."""
    alive_seconds: float | None = None
    """Its age when it was last seen alive; None: never noted."""
    cpu_seconds: float = 0.0
    cpu_percent: float | None = None
    """Recent CPU use, in percent of one processor."""
    memory_bytes: int | None = None
    """When it was last measured."""
    peak_memory_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    joules: float | None = None
    """Its part of this host's energy, by CPU time; None: the kernel doesn't tell."""
    fqan: str | None = None
    """accounting_fqan as it was when the machine was created."""
    final: bool = False
    """Its last heartbeat is written: nothing moves its end any more."""
    unseen: bool = False
    """Nobody saw it end: its end is the latest sign of life, or what its engine tells."""
    ended_by_people: bool = False
    """People have asked for its end."""
    exit_code: int | None = None
    """Exit code of its command; None: it runs, ended by a signal, or nobody knows. VMs have none."""
    signal: int | None = None
    """Number of the signal that ended its command."""
    shutoff_reason: str | None = None
    """How its domain ended, if it was a VM and libvirt has told."""
    sample: tuple[float, float] | None = None
    """Its age and CPU seconds from which recent CPU use is measured."""
    checkpoint_age: float | None = None
    """Its age when usage.json was last made durable."""

    @property
    def model(self) -> str:
        """Its machine model."""
        return self.kind.machine_model

    def age(self, now: Moment) -> float:
        """Return the seconds since its start; 0.0 if it hasn't started."""
        if self.started_time is None:
            return 0.0
        return _since(self.started_time, self.started_boot, now)

    def age_of_creation(self, now: Moment) -> float:
        """Return the seconds since its directory was made."""
        return _since(self.created_time, self.created_boot, now)

    def clock_step(self, now: Moment) -> float:
        """Return how far the wall clock has been set forward since its start, seconds."""
        step = 0.0 if self.started_time is None else now.unix - self.started_time - self.age(now)
        return step if abs(step) > CLOCK_TOLERANCE_SECONDS else 0.0

    def note_clock(self, now: Moment) -> None:
        """Measure its age from now on, if it was started by an older Vac or before the host was booted."""
        if self.started_time is not None and (not self.started_boot or self.started_boot[0] != now.boot_id):
            self.started_boot = (now.boot_id, now.boot - max(0.0, now.unix - self.started_time))

    @property
    def hs06(self) -> float:
        """HS06 of the whole machine."""
        return self.settings.hs06 * self.processors


def _since(unix: float, boot: tuple[str, float] | None, now: Moment) -> float:
    """Return the seconds since a moment of which both clocks may be known; they must not be negative."""
    seconds = now.boot - boot[1] if boot is not None and boot[0] == now.boot_id else now.unix - unix
    return max(0.0, seconds)


def load(
    directory: Path,
    *,
    model: str | None = None,
    machinetypes: Mapping[str, Machinetype] | None = None,
    settings: Settings | None = None,
) -> Machine | None:
    """Return the machine of a directory; None if that isn't one.

    model is what its slot says. Options that machinetype.json doesn't tell (because it is another version's, spoilt by
    hand, torn by a power failure, or missing, as a classic factory's is) are those of the Machine/Job Features and of
    the configuration.
    """
    name = parse_directory_name(directory.name)
    if name is None or not directory.is_dir():
        return None
    features = {key: _text(directory / "jobfeatures" / key) or "" for key in _JOBFEATURES}
    total_cpu = _text(directory / "machinefeatures" / "total_cpu")
    processors = _integer(features["allocated_cpu"]) or _integer(total_cpu) or 1
    fqan = _text(directory / "accounting_fqan") or None
    kind = (machinetypes or {}).get(name.machinetype) or Machinetype(name="")
    settings = settings or Settings()
    kind = dataclasses.replace(
        kind,
        accounting_fqan=fqan,
        machine_model=model or kind.machine_model,
        disk_gb_per_processor=kind.disk_gb_per_processor or settings.disk_gb_per_processor,
    )
    settings = dataclasses.replace(settings, **_settings_from_features(features, processors))
    if kept := _kept(directory / "machinetype.json"):
        kind = filled(kind, {name: kept[name] for name in retained(kind).keys() & kept.keys()})
        settings = filled(settings, {name: kept[name] for name in retained(settings).keys() & kept.keys()})
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
        kind=kind,
        settings=settings,
        shutdown_time=latest_shutdown or name.created_time + kind.max_wallclock_seconds,
        started_time=_started_time(directory / "started"),
        started_boot=_boot_time(directory / "started_boot"),
        created_boot=_boot_time(directory / "created_boot"),
        finished=_mtime(directory / "finished") is not None,
        fqan=fqan,
    )
    return _with_usage(machine)


def retained(section: Machinetype | Settings) -> dict[str, Any]:
    """Return the options that are kept with each machine, so that a changed or broken configuration touches neither its
    watching nor its accounting."""
    options = declared(type(section)).items()
    return {name: getattr(section, name) for name, option in options if option.retained}


def _kept(path: Path) -> dict[str, Any]:
    """Return what machinetype.json holds; nothing if it is missing or damaged."""
    with contextlib.suppress(ValueError):
        kept = json.loads((_content(path) or b"").decode())
        return kept if isinstance(kept, dict) else {}
    return {}


def _settings_from_features(features: Mapping[str, str], processors: int) -> dict[str, Any]:
    """Return settings of which a machine's own jobfeatures tell: they come before the present configuration."""
    numbers = {key: _float(text) for key, text in features.items()}
    told: dict[str, Any] = {}
    if memory_bytes := numbers["max_rss_bytes"]:
        told["mb_per_processor"] = round(memory_bytes / _MIB / processors)
    for name in ("hs06", "hepscore23") if features["job_id"] else ():
        whole = numbers[f"{name}_job"]
        told[f"{name}_per_processor"] = whole / processors if whole else None
    return told


def _with_usage(machine: Machine) -> Machine:
    """Return the machine with what `heartbeat` and usage.json tell."""
    usage = files.read_json(machine.directory / "usage.json")
    names = usage.keys() & {*_NOTED, *_NOTED_IF_SET}
    machine = filled(machine, {name: usage[name] for name in names})
    heartbeat = machine.directory / "heartbeat"
    machine.heartbeat_time = _mtime(heartbeat)
    cpu_seconds, machine.cpu_percent, *_ = *map(_float, (_text(heartbeat) or "").split()), None, None
    machine.cpu_seconds = max(cpu_seconds or 0.0, float(machine.cpu_seconds))
    if machine.alive_seconds is not None:
        machine.sample = (machine.alive_seconds, machine.cpu_seconds)
    return machine


def boot_text(boot: tuple[str, float]) -> bytes:
    """Return the content of `started_boot` or `created_boot`."""
    return "{} {:.3f}\n".format(*boot).encode("ascii")


def mark_started(state: StateDir, machine: Machine, now: Moment) -> None:
    """Write that the machine has started now, in `started_boot` and `started`, and its first heartbeat.

    In memory it has started even if that can't be written: call it again then, at any time.
    """
    if machine.started_time is None:
        whole = now.at(now.boot - now.unix % 1)
        step = now.unix - machine.created_time - machine.age_of_creation(now)
        if abs(step) > CLOCK_TOLERANCE_SECONDS:  # its end is by the clock as it was set then
            whole = whole._replace(unix=whole.unix - round(step))
        machine.started_time, machine.started_boot = whole.unix, (whole.boot_id, whole.boot)
        machine.start_written = False
        machine.sample = (machine.age(now), machine.cpu_seconds)
    if machine.started_boot is not None:
        boot = boot_text(machine.started_boot)
        files.write_atomic(machine.directory / "started_boot", boot, tmp=state.tmp, sync=False)
    files.write_atomic(machine.directory / "started", b"%d\n" % round(machine.started_time), tmp=state.tmp)
    machine.start_written = True
    if machine.heartbeat_time is None:
        _write_heartbeat(state, machine, now.unix, sync=False)


def renew_heartbeat(state: StateDir, machine: Machine, now: Moment, usage: Usage = UNKNOWN) -> None:
    """Write that the machine has been seen alive now, having used so much since its start.

    On a full disk only the time is renewed, which takes no space.
    """
    if machine.final:
        return
    if not machine.start_written:
        mark_started(state, machine, now)
    _take_usage(machine, usage)
    age = machine.age(now)
    machine.alive_seconds = max(machine.alive_seconds or 0.0, age)
    if machine.sample is None:
        machine.sample = (age, machine.cpu_seconds)
    sample_age, sample_cpu = machine.sample
    if age - sample_age >= SAMPLE_SECONDS:
        machine.cpu_percent = 100.0 * (machine.cpu_seconds - sample_cpu) / (age - sample_age)
        machine.sample = (age, machine.cpu_seconds)
    try:
        if machine.checkpoint_age is None or age - machine.checkpoint_age >= CHECKPOINT_SECONDS:
            _write_usage(state, machine)
            machine.checkpoint_age = age
        else:
            files.set_mtime(machine.directory / "usage.json", now.unix, _usage(machine))
        files.set_mtime(machine.directory / "heartbeat", now.unix, _heartbeat(machine))
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise
        files.set_mtime(machine.directory / "heartbeat", now.unix)
    machine.heartbeat_time = now.unix


def note_people(state: StateDir, machine: Machine) -> None:
    """Write that people have asked for the machine's end."""
    if not machine.ended_by_people:
        machine.ended_by_people = True
        _write_usage(state, machine)


def write_final_heartbeat(
    state: StateDir, machine: Machine, now: Moment, usage: Usage = UNKNOWN, *, watched: bool
) -> None:
    """Write final usage and the machine's end: what its engine tells (usage.ended_time), else now if it was watched
    until now, else its latest sign of life.

    Does nothing if that has been done, so that whatever is derived from it stays the same.
    """
    if machine.started_time is None:
        return
    if not machine.final:
        _take_usage(machine, usage)
        machine.alive_seconds, machine.unseen = _lived(machine, now, usage, watched), not watched
        machine.final = True
        try:
            _write_usage(state, machine)
        except OSError:
            machine.final = False
            raise
    ended = end_time(machine)
    if machine.heartbeat_time is None or abs(machine.heartbeat_time - ended) > 0.001:
        _write_heartbeat(state, machine, ended, sync=True)


def _lived(machine: Machine, now: Moment, usage: Usage, watched: bool) -> float:
    """Return how long an ended machine has run, seconds; at least until it was last seen alive.

    The engine's time of its end may be from before or after a step of the wall clock: take what is possible. If neither
    is, it says nothing.
    """
    age, seen = machine.age(now), last_seen(machine)
    if usage.ended_time is not None:
        by_start = usage.ended_time - (machine.started_time or 0.0)
        for lived in (age - (now.unix - usage.ended_time), by_start):
            if seen - CLOCK_TOLERANCE_SECONDS <= lived <= age + CLOCK_TOLERANCE_SECONDS:
                return max(seen, min(lived, age))
    return max(seen, age if watched else _latest_sign(machine, now))


def last_seen(machine: Machine) -> float:
    """Return how long the machine had run when it was last seen alive."""
    if machine.alive_seconds is not None:
        return machine.alive_seconds
    return max(0.0, (machine.heartbeat_time or 0.0) - (machine.started_time or 0.0))


def _latest_sign(machine: Machine, now: Moment) -> float:
    """Return the greatest age of the machine of which a file or its CPU time tells.

    Times of files are Unix times of a clock that may have been set since; those that can't be are passed over.
    """
    started, age, step = machine.started_time or 0.0, machine.age(now), machine.clock_step(now)
    times = [_mtime(machine.directory / "console.log") or 0.0, machine.heartbeat_time or 0.0]
    with contextlib.suppress(OSError), os.scandir(machine.directory / "joboutputs") as entries:
        for entry, _ in zip(entries, range(MOST_SIGNS)):
            times.append(entry.stat(follow_symlinks=False).st_mtime)
    ages = [(time - started, time - started - step) for time in times]
    possible = [next((one for one in pair if 0.0 <= one <= age), 0.0) for pair in ages]
    return max(*possible, min(age, machine.cpu_seconds / machine.processors))


def _take_usage(machine: Machine, usage: Usage) -> None:
    """Take over new usage; totals never shrink, whatever an engine tells after a restart."""
    if usage.cpu_seconds is not None and math.isfinite(usage.cpu_seconds):
        machine.cpu_seconds = max(machine.cpu_seconds, usage.cpu_seconds)
    if usage.memory_bytes is not None:
        machine.memory_bytes = usage.memory_bytes
    for name in _TOTALS:
        told = getattr(usage, name)
        if told is not None:
            setattr(machine, name, max(getattr(machine, name) or 0, told))
    machine.exit_code, machine.signal = usage.exit_code, usage.signal
    machine.shutoff_reason = usage.shutoff_reason


def _heartbeat(machine: Machine) -> bytes:
    return f"{machine.cpu_seconds:.1f} {machine.cpu_percent or 0.0:.1f}\n".encode("ascii")


def _write_heartbeat(state: StateDir, machine: Machine, seen_time: float, *, sync: bool) -> None:
    path, content = machine.directory / "heartbeat", _heartbeat(machine)
    files.write_atomic(path, content, tmp=state.tmp, sync=sync, mtime=seen_time)
    machine.heartbeat_time = seen_time


def _usage(machine: Machine) -> bytes:
    values = {name: getattr(machine, name) for name in (*_NOTED, *_NOTED_IF_SET)}
    usage = {
        name: value
        for name, value in values.items()
        if name in _NOTED or (value is not None and value is not False)
    }
    return json.dumps(usage).encode("ascii") + b"\n"


def _write_usage(state: StateDir, machine: Machine) -> None:
    files.write_atomic(machine.directory / "usage.json", _usage(machine), tmp=state.tmp)


def left_process(machine: Machine, settings: Settings) -> LeftProcess | None:
    """Return the process of a machine that an older Vac left running on this host; None if it is none.

    Our own, which have a machinetype.json, are known by their cgroups.
    """
    file = machine.directory / "pid"
    pid, noted_time = _integer(_text(file)), _mtime(file)
    ours = machine.model != "singularity" or (machine.directory / "machinetype.json").exists()
    if ours or machine.finished or not machine.uuid or pid is None or noted_time is None:
        return None
    return LeftProcess(
        machine.name,
        pid,
        noted_time,
        settings.singularity_user or "nobody",
        machine.processors,
        machine.settings.mb_per_processor * _MIB * machine.processors,
        machine.cpu_seconds,
    )


def lower_shutdown_time(
    state: StateDir, machine: Machine, shutdown_time: int, clock_step: float = 0.0
) -> bool:
    """Move the machine's end closer, in its Machine/Job Features too; False if it ends no later anyway.

    shutdown_time is by the wall clock, which has been set forward by clock_step seconds since the machine started.
    """
    own_time = shutdown_time - int(clock_step)
    if own_time >= machine.shutdown_time:
        return False
    content = b"%d" % shutdown_time
    for key in ("machinefeatures/shutdowntime", "jobfeatures/shutdowntime_job"):
        files.write_atomic(machine.directory / key, content, tmp=state.tmp)
    before, machine.shutdown_time = machine.shutdown_time, own_time
    try:
        _write_usage(state, machine)
    except OSError:
        machine.shutdown_time = before
        raise
    return True


def end_time(machine: Machine) -> float:
    """Return when it was last seen alive, Unix seconds: its start + measured duration; its creation if it never
    started."""
    if machine.started_time is None:
        return float(machine.created_time)
    return machine.started_time + last_seen(machine)


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


def _boot_time(path: Path) -> tuple[str, float] | None:
    words = (_text(path) or "").split()
    boot = _float(words[1]) if len(words) == 2 else None
    return None if boot is None else (words[0], boot)


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
