"""Whether a machine of a machinetype could be created on this factory now, apart from there being room for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.scheduling.backoff import History, TypeHistory
from vac.scheduling.guards import total_processors
from vac.scheduling.holdback import SpaceHold, classic_hold, deficit_hold, proven_since
from vac.scheduling.model import SpaceView
from vac.scheduling.own import Own
from vac.scheduling.wording import count, seconds

SPACE_HOLDS: Mapping[str, SpaceHold] = {"deficit": deficit_hold, "classic": classic_hold}
"""How aborts in the space hold back, by share_policy."""
NO_ANSWER = "it has not answered yet"


@dataclass(frozen=True)
class Standing:
    """How one machinetype stands."""

    reason: str | None = None
    """Why none can be created; None: one can."""
    until: float | None = None
    """When time alone may change that."""
    one_only: str | None = None
    """If only one can be created now (a probe), why."""
    engine_problem: str | None = None
    """Set if nothing but its engine, and perhaps a hold-back, is in the way."""
    held_here: float | None = None
    """Until when this factory's own aborts hold it back."""
    held_in_space: float | None = None
    """Until when aborts in the space hold it back."""


def standing(
    machinetype: Machinetype,
    settings: Settings,
    engines: Mapping[str, str | None],
    history: History,
    own: Own,
    space: SpaceView,
    now: float,
) -> Standing:
    """How the type stands; engines has each machine model's problem, None if it works."""
    never = _never(machinetype, settings, now)
    if never is not None:
        return Standing(never)
    problem = engines.get(machinetype.machine_model, NO_ANSWER)
    if problem is not None:
        reason = f"its engine ({machinetype.machine_model}) can't be reached: {problem}"
        return Standing(reason, engine_problem=problem)
    past = history.get(machinetype.name)
    return (
        _failed(past, own, now)
        or _held_here(machinetype, past, own, space, now)
        or _held_in_space(machinetype, settings, own, space, now)
        or _FREE
    )


_FREE = Standing()


def _never(machinetype: Machinetype, settings: Settings, now: float) -> str | None:
    """What only another configuration changes."""
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
            least_time = seconds(machinetype.min_wallclock_seconds)
            return f"its min_wallclock_seconds is {least_time}, but shutdown_time is in {seconds(left)}"
    return None


def _failed(past: TypeHistory, own: Own, now: float) -> Standing | None:
    until = past.last_failure + past.failure_pause_seconds()
    if now >= until or (own.newest_started is not None and own.newest_started > past.last_failure):
        return None
    failed = "its last creation" if past.failures == 1 else f"its last {past.failures} creations"
    return Standing(f"{failed} failed here: tried again in {seconds(until - now)}", until)


def _held_here(
    machinetype: Machinetype, past: TypeHistory, own: Own, space: SpaceView, now: float
) -> Standing | None:
    """This factory's own aborts; if its machines found no work, the space may know better by now."""
    until = past.last_end + past.hold_seconds(machinetype.backoff_seconds)
    if now >= until or (past.no_work and proven_since(past.last_end, machinetype, own, space, now)):
        return None
    times = "an abort or early end" if past.aborts == 1 else f"{past.aborts} aborts or early ends in a row"
    reason = f"held back here after {times} for another {seconds(until - now)}"
    return Standing(reason, until, held_here=until)


def _held_in_space(
    machinetype: Machinetype, settings: Settings, own: Own, space: SpaceView, now: float
) -> Standing | None:
    hold = SPACE_HOLDS[settings.share_policy](machinetype, own, space, now)
    if hold is None:
        return None
    if hold.probing:
        return Standing(one_only=hold.reason)
    return Standing(hold.reason, hold.until, held_in_space=hold.until)
