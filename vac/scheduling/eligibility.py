"""Reasons against creating anything (guards), or a machine of one machinetype, apart from free processors for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.scheduling.backoff import History, TypeHistory, classic_hold, deficit_hold, proven_since
from vac.scheduling.model import Host, Occupied, Own, SpaceView, Standing
from vac.text import count, duration

NO_ANSWER = "it has not answered yet"

LEAST_FREE_BYTES = 1000**3
GUARD_NAMES = ("draining", "shutdown", "configuration", "health", "disk", "full", "overload", "engines")
"""Names of all guards."""
ASK_AGAIN_SECONDS = 15
"""Pause after which a load average may have fallen."""
FEW_PROCESSORS = 5
"""The classic overload rule counts all processors while fewer than this run."""


@dataclass(frozen=True)
class Guard:
    """Reason why nothing can be created now."""

    name: str
    """One word, without changing numbers."""
    text: str
    next_time: float | None = None
    """When to ask again."""


@dataclass(frozen=True)
class Situation:
    """Everything that a decision depends on but the memory of the decisions before and chance."""

    settings: Settings
    machinetypes: Mapping[str, Machinetype]
    occupied: Sequence[Occupied]
    """Every slot that isn't free. Machines of the last decision are in it, or have failed."""
    history: History
    space: SpaceView
    host: Host
    engines: Mapping[str, str | None]
    """By machine model, its engine's problem, None if it works. A model that isn't in it has not answered."""
    now: float
    config_problem: str | None = None
    """Reason if the configuration can't be used."""
    drain: str | None = None
    """Reason if this factory was told to drain (`vac drain`)."""


def total_processors(settings: Settings) -> int:
    """Return how many processors may be allocated."""
    return settings.total_processors or settings.host_processors


def find_guard(situation: Situation, used: int) -> Guard | None:
    """Return the first reason against creating anything; used: processors of the machines that there are."""
    settings, host, total = situation.settings, situation.host, total_processors(situation.settings)
    if situation.drain is not None or settings.draining:
        why = situation.drain or "draining is set in the configuration"
        return Guard("draining", f"this factory is draining: {why}")
    if settings.shutdown_time is not None and settings.shutdown_time <= situation.now:
        return Guard("shutdown", "this factory's shutdown_time has passed")
    if situation.config_problem is not None:
        return Guard("configuration", f"the configuration can't be used: {situation.config_problem}")
    if host.health_problem is not None:
        return Guard("health", f"health_command says: {host.health_problem}")
    if host.state_dir_free_bytes < LEAST_FREE_BYTES:
        free = host.state_dir_free_bytes / 1000**3
        return Guard("disk", f"{settings.state_dir} has {free:.2f} GB free; 1 GB is needed")
    if used >= total:
        return Guard("full", f"no free processors: {used} of {total} are in use")
    return _overload(settings, host, used, situation.now)


def engines_guard(machinetypes: Mapping[str, Machinetype], standings: Mapping[str, Standing]) -> Guard | None:
    """Return the guard if only their engines prevent all types that could be created."""
    problems = {}
    for name, one in standings.items():
        if one.engine_problem is not None:
            problems[machinetypes[name].machine_model] = one.engine_problem
        elif one.reason is None or one.until is not None:
            return None
    listed = "; ".join(f"{model}: {problem}" for model, problem in sorted(problems.items()))
    return Guard("engines", f"no engine is available ({listed})") if problems else None


def _overload(settings: Settings, host: Host, running_processors: int, now: float) -> Guard | None:
    factor = settings.overload_per_processor
    if settings.share_policy == "classic":
        processors = running_processors if running_processors >= FEW_PROCESSORS else host.processors
        load, what = max(host.load), "largest load average"
    else:
        processors = host.processors
        load, what = host.load[0] - host.excess_load, "1-minute load"
        if host.excess_load:
            what += " without what machines have beyond their processors"
    most = factor * processors
    if load <= most:
        return None
    text = f"overload: the {what} is {load:.2f}, above {most:.2f} (overload_per_processor × {processors})"
    return Guard("overload", text, now + ASK_AGAIN_SECONDS)


def standing(machinetype: Machinetype, situation: Situation, own: Own) -> Standing:
    """Return the type's standing."""
    settings, space, now = situation.settings, situation.space, situation.now
    never = _never(machinetype, settings, now)
    if never is not None:
        return Standing(never)
    problem = situation.engines.get(machinetype.machine_model, NO_ANSWER)
    if problem is not None:
        reason = f"its engine ({machinetype.machine_model}) is unavailable: {problem}"
        return Standing(reason, engine_problem=problem)
    past = situation.history.get(machinetype.name)
    space_hold = classic_hold if settings.share_policy == "classic" else deficit_hold
    return (
        _failed(past, own, now)
        or _held_here(machinetype, past, own, space, now)
        or space_hold(machinetype, own, space, now)
        or Standing()
    )


def _never(machinetype: Machinetype, settings: Settings, now: float) -> str | None:
    """Return a reason that only another configuration changes."""
    if machinetype.target_share <= 0:
        return "its target_share is 0"
    least, superslot = machinetype.min_processors, settings.processors_per_superslot
    if least > superslot:
        return f"its min_processors is {least}, but processors_per_superslot only {superslot}"
    if least > total_processors(settings):
        total = count(total_processors(settings), "processor")
        return f"its min_processors is {least}, but this factory has only {total}"
    if settings.shutdown_time is not None:
        left = settings.shutdown_time - now
        if machinetype.min_wallclock_seconds >= left:
            least_time = duration(machinetype.min_wallclock_seconds)
            return f"its min_wallclock_seconds is {least_time}, but shutdown_time is in {duration(left)}"
    return None


def _failed(past: TypeHistory, own: Own, now: float) -> Standing | None:
    until = past.last_failure + past.failure_pause_seconds()
    if now >= until or (own.newest_started is not None and own.newest_started > past.last_failure):
        return None
    failed = "its last creation" if past.failures == 1 else f"its last {past.failures} creations"
    reason = f"{failed} failed here: tried again in {duration(until - now)}"
    return Standing(reason, until, owed=past.failures == 1)


def _held_here(
    machinetype: Machinetype, past: TypeHistory, own: Own, space: SpaceView, now: float
) -> Standing | None:
    """Return the hold-back by own aborts; if its machines found no work, others may have found some since."""
    until = past.last_end + past.hold_seconds(machinetype.backoff_seconds)
    if now >= until or (past.no_work and proven_since(past.last_end, machinetype, own, space, now)):
        return None
    times = "an abort or early end" if past.aborts == 1 else f"{past.aborts} aborts or early ends in a row"
    reason = f"held back here after {times} for another {duration(until - now)}"
    return Standing(reason, until, held="here")
