"""The rules for machines that run: when one is ended, and with what message.

A machine that can't be seen is not judged. Times are seconds since boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

UNMEASURED_SECONDS = 3600.0
"""A machine with a disk limit may have more files than can be counted in time for so long."""


@dataclass(frozen=True)
class Limits:
    """Limits of a machine: options of its type as they were when it was made. 0 or None: no rule."""

    fizzle_seconds: float = 0
    heartbeat_file: str | None = None
    heartbeat_seconds: float = 0
    idle_cpu_percent: float | None = None
    idle_seconds: float = 3600
    disk_bytes: int | None = None


@dataclass(frozen=True)
class Watched:
    """A machine that its engine lists."""

    started_time: float
    shutdown_time: float
    paused: bool = False
    heartbeat_file_time: float | None = None
    """When the machine last wrote its heartbeat_file; None: it isn't there, or isn't a file."""
    disk_used_bytes: int | None = None
    """None: not known."""
    disk_unmeasured_time: float | None = None
    """Since when it has had too many files to be measured in time."""
    busy_time: float | None = None
    """When its CPU use was last seen not to be below idle_cpu_percent; None: never since this factory started."""


@dataclass(frozen=True)
class Verdict:
    """Result of the rules now, and when time alone may change it."""

    message: str | None = None
    """Shutdown message with which it is ended; None: it goes on."""
    next_time: float | None = None


def judge(watched: Watched, limits: Limits, factory_started_time: float, now: float) -> Verdict:
    """Return the first rule that a machine breaks.

    The factory's own start delays rules about what it must have seen.
    """
    rules = [*_rules(watched, limits, factory_started_time)]
    for due_time, message in rules:
        if now >= due_time:
            return Verdict(message)
    return Verdict(None, min(due_time for due_time, _ in rules))


def _rules(watched: Watched, limits: Limits, factory_started_time: float) -> Iterator[tuple[float, str]]:
    """Yield the times from which messages apply, with these."""
    if watched.paused:
        yield watched.started_time, "700 Paused"
    yield watched.shutdown_time, "100 Shutdown time reached"
    used = watched.disk_used_bytes
    if limits.disk_bytes and used is not None and used > limits.disk_bytes:
        yield watched.started_time, "700 Disk limit"
    if limits.disk_bytes and watched.disk_unmeasured_time is not None:
        yield watched.disk_unmeasured_time + UNMEASURED_SECONDS, "700 Disk use takes too long to measure"
    if limits.heartbeat_file and limits.fizzle_seconds > 0:
        earliest = max(watched.started_time, factory_started_time) + limits.fizzle_seconds
        if watched.heartbeat_file_time is None:
            yield earliest, "700 Heartbeat file not created"
        elif limits.heartbeat_seconds > 0:
            late = watched.heartbeat_file_time + limits.heartbeat_seconds
            yield max(earliest, late), "700 Heartbeat file not updated"
    if limits.idle_cpu_percent is not None:
        fizzled_time = watched.started_time + limits.fizzle_seconds
        since = max(fizzled_time, factory_started_time, watched.busy_time or 0.0)
        yield since + limits.idle_seconds, "700 Idle"
