"""What has to be right before anything at all is created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vac.config.settings import Settings
from vac.scheduling.model import Host

LEAST_FREE_BYTES = 1000**3
NAMES = ("draining", "shutdown", "configuration", "health", "disk", "full", "overload", "engines")
"""All guards' names."""
ASK_AGAIN_SECONDS = 15
"""A load average may have fallen after this time."""
FEW_PROCESSORS = 5
"""The classic overload rule counts all processors while fewer than this run."""


@dataclass(frozen=True)
class Guard:
    """Why nothing can be created now."""

    name: str
    """One word that stays the same while the numbers change."""
    text: str
    next_time: float | None = None
    """When to ask again."""


def total_processors(settings: Settings) -> int:
    """How many processors may be allocated."""
    return settings.total_processors or settings.host_processors


def find_guard(
    settings: Settings,
    host: Host,
    running_processors: int,
    free_processors: int,
    now: float,
    config_problem: str | None = None,
    drain: str | None = None,
) -> Guard | None:
    """The first reason in the way, or None. config_problem and drain are reasons in words, if there are any."""
    if drain is not None or settings.draining:
        return Guard(
            "draining", f"this factory is draining: {drain or 'draining is set in the configuration'}"
        )
    if settings.shutdown_time is not None and settings.shutdown_time <= now:
        return Guard("shutdown", "this factory's shutdown_time has passed")
    if config_problem is not None:
        return Guard("configuration", f"the configuration can't be used: {config_problem}")
    if host.health_problem is not None:
        return Guard("health", f"health_command says: {host.health_problem}")
    if host.state_dir_free_bytes < LEAST_FREE_BYTES:
        free = host.state_dir_free_bytes / 1000**3
        return Guard("disk", f"{settings.state_dir} has {free:.2f} GB free; 1 GB is needed")
    if free_processors <= 0:
        total = total_processors(settings)
        return Guard("full", f"no free processors: {running_processors} of {total} are in use")
    return _overload(settings, host, running_processors, now)


def engines_guard(problems: Mapping[str, str]) -> Guard:
    """The guard for when the engine of every type that could be created is out of reach; by model."""
    listed = "; ".join(f"{model}: {problem}" for model, problem in sorted(problems.items()))
    return Guard("engines", f"no engine can be reached ({listed})")


def _overload(settings: Settings, host: Host, running_processors: int, now: float) -> Guard | None:
    factor = settings.overload_per_processor
    if settings.share_policy == "classic":
        processors = running_processors if running_processors >= FEW_PROCESSORS else host.processors
        load, what = max(host.load), "largest load average"
    else:
        processors = host.processors
        load, what = host.load[0], "1-minute load"
    most = factor * processors
    if load <= most:
        return None
    text = f"overload: the {what} is {load:.2f}, above {most:.2f} (overload_per_processor × {processors})"
    return Guard("overload", text, now + ASK_AGAIN_SECONDS)
