"""The rules for a machine that runs: when it has to be ended, with which shutdown message, and when to look again."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Seen(enum.Enum):
    """How its engine last showed a machine."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    UNKNOWN = "unknown"
    """The engine can't be asked: nothing is concluded."""


@dataclass(frozen=True)
class CpuSample:
    """How much CPU time a machine had used at one moment."""

    time: float
    cpu_seconds: float


@dataclass(frozen=True)
class Watched:
    """One machine and what its type wants of it. Options have the names and units of [machinetype]."""

    seen: Seen
    now: float
    started_time: float
    shutdown_time: float
    """When it must end, lowered as may be."""
    factory_started_time: float
    """When the factory began to watch: heartbeat rules wait for fizzle_seconds after it."""
    processors: int
    fizzle_seconds: float
    max_wallclock_seconds: float
    heartbeat_file: str | None = None
    heartbeat_seconds: float = 0.0
    heartbeat_time: float | None = None
    """When heartbeat_file was last changed; None: it isn't there."""
    disk_used_bytes: int | None = None
    """None: not measured."""
    disk_limit_bytes: int | None = None
    """None: no limit, or one that the engine keeps."""
    idle_cpu_percent: float | None = None
    """Of the machine's processors, 100 being all of them busy. None: off."""
    idle_seconds: float = 3600.0
    cpu_samples: Sequence[CpuSample] = ()
    """Oldest first; see keep_samples."""


@dataclass(frozen=True)
class End:
    """The machine is to be destroyed."""

    message: str
    """Its shutdown message, unless it wrote one itself."""


@dataclass(frozen=True)
class Watch:
    """What comes of looking at a machine."""

    end: End | None
    next_check_time: float | None
    """When time alone may end it; None: not foreseeable."""


def watch(machine: Watched) -> Watch:
    """Look at one machine now."""
    if machine.seen in (Seen.STARTING, Seen.UNKNOWN):
        return Watch(None, None)
    end = _end(machine)
    if end is not None:
        return Watch(end, None)
    times = [_last_time(machine), *_heartbeat_deadlines(machine).values()]
    return Watch(None, min(times))


def lowered_shutdown_time(shutdown_time: float, wanted_time: float, grace_secs: float, now: float) -> float:
    """A machine's new end when it is wanted by wanted_time: never closer than grace_secs from now, never later."""
    return min(shutdown_time, max(wanted_time, now + grace_secs))


def keep_samples(
    samples: Sequence[CpuSample], sample: CpuSample, idle_seconds: float
) -> tuple[CpuSample, ...]:
    """The samples with a new one, without those that are too old to matter for idle_seconds."""
    since = sample.time - idle_seconds
    kept = [one for one in samples if one.time < sample.time]
    while len(kept) > 1 and kept[1].time <= since:
        kept.pop(0)
    return (*kept, sample)


def _end(machine: Watched) -> End | None:
    if machine.seen is Seen.PAUSED:
        return End("700 Machine paused")
    if machine.now >= _last_time(machine):
        return End("100 Shutdown time passed")
    for message, deadline in _heartbeat_deadlines(machine).items():
        if machine.now >= deadline:
            return End(message)
    if (
        machine.disk_limit_bytes is not None
        and machine.disk_used_bytes is not None
        and machine.disk_used_bytes > machine.disk_limit_bytes
    ):
        return End("700 Disk limit")
    if _idle(machine):
        return End("700 Idle")
    return None


def _last_time(machine: Watched) -> float:
    return min(machine.shutdown_time, machine.started_time + machine.max_wallclock_seconds)


def _heartbeat_deadlines(machine: Watched) -> dict[str, float]:
    """When the machine would be ended for its heartbeat file as it is now, by message."""
    if machine.heartbeat_file is None or machine.fizzle_seconds <= 0:
        return {}
    judged_from = max(machine.started_time, machine.factory_started_time) + machine.fizzle_seconds
    if machine.heartbeat_time is None:
        return {"700 Heartbeat file not created": judged_from}
    if machine.heartbeat_seconds <= 0:
        return {}
    return {
        "700 Heartbeat file not updated": max(
            machine.heartbeat_time + machine.heartbeat_seconds,
            machine.factory_started_time + machine.fizzle_seconds,
        )
    }


def _idle(machine: Watched) -> bool:
    """Whether in each interval between samples during the last idle_seconds too little CPU time was used.

    A counter that goes backwards says nothing and so counts as use.
    """
    if machine.idle_cpu_percent is None or machine.now < machine.started_time + machine.fizzle_seconds:
        return False
    least = machine.idle_cpu_percent / 100 * machine.processors
    samples = machine.cpu_samples
    for later, earlier in zip(reversed(samples[1:]), reversed(samples[:-1])):
        used = later.cpu_seconds - earlier.cpu_seconds
        if used < 0 or used >= least * (later.time - earlier.time):
            return False
        if samples[-1].time - earlier.time >= machine.idle_seconds:
            return True
    return False
