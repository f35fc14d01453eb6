"""Openings for machines, and superslots: groups of processors that all end at one time, so that room for a
multi-processor machine appears at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.scheduling.model import Occupied

TOGETHER_SECONDS = 120
"""Machines that should end at one time are seen to end within this time."""
LEAST_JOIN_SECONDS = 600
"""Least remaining time with which a superslot is joined; a machine that lives no longer than this can join earlier."""


@dataclass(frozen=True)
class Opening:
    """Free processors for one machine."""

    processors: int
    end: int | None = None
    """When the superslot ends that it would join, Unix seconds; None: it would be the first of its own."""
    kept: int = 0
    """Processors besides that are kept for one machinetype."""
    kept_for: str | None = None


@dataclass(frozen=True)
class Kept:
    """Free processors that wait for a machinetype that needs more than there are."""

    processors: int
    until: int
    """When the last superslot ends that they wait for, Unix seconds."""


@dataclass(frozen=True)
class Openings:
    """Places where a machine could go, the first choice first."""

    openings: tuple[Opening, ...]
    kept: Kept | None = None
    notes: tuple[str, ...] = ()
    """Superslots that are not waited for any longer, in words for the log."""
    next_time: float | None = None
    """When time alone changes what fits the superslots, or what is kept."""


def find_openings(
    occupied: Iterable[Occupied],
    free: int,
    total_processors: int,
    processors_per_superslot: int,
    machinetypes: Iterable[Machinetype],
    now: float,
    waiting: str | None = None,
    keep_seconds: float = 0.0,
) -> Openings:
    """Divide the free processors: those that incomplete superslots lack, from the earliest, then those for a new one.

    Machines with equal end form superslots; their processors modulo processors_per_superslot are the incomplete
    one. What it lacks is reserved as long as one of the machinetypes (all that have a share) still fits. Then it is
    kept free for a type that needs more processors and is waiting for its share, if the superslot ends within
    keep_seconds; in any case while the superslot's machines are ending one by one, if a type needs more processors.

    Where total_processors isn't a multiple, one superslot (the last to end) can only ever have the remainder, and
    lacks nothing with that: else it would take apart each superslot that ends, and leave no room for a large machine.
    """
    if free <= 0:
        return Openings(())
    if processors_per_superslot == 1:
        return Openings((Opening(1),))
    types = list(machinetypes)
    openings: list[Opening] = []
    notes: list[str] = []
    times: list[float] = []
    kept, until = 0, 0
    for end, lacking in _incomplete(occupied, total_processors, processors_per_superslot):
        if not lacking or not free:
            continue
        opening = Opening(min(lacking, free), end)
        times += [end - one.max_wallclock_seconds for one in types]
        times += [end - _least_left(one) + 1 for one in types]
        if any(fits(one, opening, now) for one in types):
            openings.append(opening)
        elif _keeps(opening, types, now, waiting, keep_seconds):
            kept, until = kept + opening.processors, max(until, end)
            times += [end - keep_seconds + 1, end + TOGETHER_SECONDS]
        else:
            times += [end - TOGETHER_SECONDS, end - keep_seconds]
            notes.append(
                f"the superslot that ends at {end} lacks {lacking} processors that no machinetype fits any longer: "
                "they are used elsewhere"
            )
            continue
        free -= opening.processors
    if free or kept:
        processors = min(free, processors_per_superslot)
        openings.append(Opening(processors, None, min(kept, processors_per_superslot - processors), waiting))
    next_time = min((time for time in times if time > now), default=None)
    return Openings(tuple(openings), Kept(kept, until) if kept else None, tuple(notes), next_time)


def _incomplete(
    occupied: Iterable[Occupied], total_processors: int, processors_per_superslot: int
) -> Sequence[tuple[int, int]]:
    """Return the ends of incomplete superslots and the processors that these lack, earliest first."""
    ends: dict[int, int] = {}
    for one in occupied:
        end = int(one.shutdown_time)
        ends[end] = ends.get(end, 0) + one.processors
    remainder = total_processors % processors_per_superslot
    smaller = [end for end in ends if remainder and ends[end] % processors_per_superslot == remainder]
    if smaller:
        del ends[max(smaller)]
    return [(end, -ends[end] % processors_per_superslot) for end in sorted(ends)]


def _keeps(
    opening: Opening, types: Sequence[Machinetype], now: float, waiting: str | None, keep_seconds: float
) -> bool:
    assert opening.end is not None
    left = opening.end - now
    if left <= -TOGETHER_SECONDS or not any(one.min_processors > opening.processors for one in types):
        return False
    return left <= TOGETHER_SECONDS or (waiting is not None and left <= keep_seconds)


def _least_left(machinetype: Machinetype) -> int:
    """Return the least remaining time with which a machine of this type joins a superslot."""
    least = min(LEAST_JOIN_SECONDS, machinetype.max_wallclock_seconds)
    return max(machinetype.min_wallclock_seconds, least)


def fits(machinetype: Machinetype, opening: Opening, now: float) -> bool:
    """Return True if a machine of this type can go there.

    A superslot that has begun within this second can be joined by a type that has to live as long as it may.
    """
    if machinetype.min_processors > _processors(machinetype, opening):
        return False
    if opening.end is None:
        return True
    return _least_left(machinetype) - 1 < opening.end - now <= machinetype.max_wallclock_seconds


def size(machinetype: Machinetype, opening: Opening) -> int:
    """Return how many processors a machine of this type takes there."""
    return min(machinetype.max_processors, _processors(machinetype, opening))


def _processors(machinetype: Machinetype, opening: Opening) -> int:
    kept = opening.kept if machinetype.name == opening.kept_for else 0
    return opening.processors + kept


def end_time(machinetype: Machinetype, opening: Opening, shutdown_time: int | None, now: float) -> int:
    """Return when a machine of this type must end that goes there now, Unix seconds."""
    end = int(now + machinetype.max_wallclock_seconds) if opening.end is None else opening.end
    return end if shutdown_time is None else min(end, shutdown_time)
