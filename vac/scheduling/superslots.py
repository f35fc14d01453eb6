"""Room for machines, and superslots: groups of processors that all end at one time, so that room for a
multi-processor machine appears at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.scheduling.model import Occupied


@dataclass(frozen=True)
class Room:
    """Free processors for one machine."""

    processors: int
    end: int | None = None
    """When the superslot ends that it would join, Unix seconds; None: it would be the first of its own."""


@dataclass(frozen=True)
class Rooms:
    """Where a machine could go, the first choice first."""

    rooms: tuple[Room, ...]
    notes: tuple[str, ...] = ()
    """Superslots that are not waited for any longer, in words for the log."""
    next_time: float | None = None
    """When a machinetype begins or ceases to fit one of the superslots, by time alone."""


def find_rooms(
    occupied: Iterable[Occupied],
    free: int,
    total_processors: int,
    processors_per_superslot: int,
    machinetypes: Iterable[Machinetype],
    now: float,
) -> Rooms:
    """Divide the free processors: what incomplete superslots lack, from the earliest, then room for a new one.

    Machines with equal end form superslots; their processors modulo processors_per_superslot are the incomplete
    one. What it lacks is reserved as long as one of the machinetypes (all that have a share) still fits. Where
    total_processors isn't a multiple, one superslot (the last to end) can only ever have the remainder, and lacks
    nothing with that: else it would take apart each superslot that ends, and leave no room for a large machine.
    """
    if free <= 0:
        return Rooms(())
    if processors_per_superslot == 1:
        return Rooms((Room(1),))
    ends: dict[int, int] = {}
    for one in occupied:
        end = int(one.shutdown_time)
        ends[end] = ends.get(end, 0) + one.processors
    rooms, notes = [], []
    types = list(machinetypes)
    remainder = total_processors % processors_per_superslot
    smaller = [end for end in ends if remainder and ends[end] % processors_per_superslot == remainder]
    if smaller:
        del ends[max(smaller)]
    for end in sorted(ends):
        lacking = -ends[end] % processors_per_superslot
        room = Room(min(lacking, free), end)
        if not room.processors:
            continue
        if any(fits(one, room, now) for one in types):
            rooms.append(room)
            free -= room.processors
        else:
            notes.append(
                f"the superslot that ends at {end} lacks {lacking} processors that no machinetype fits any longer: "
                "they are used elsewhere"
            )
    if free:
        rooms.append(Room(min(free, processors_per_superslot)))
    times = [time for room in rooms if room.end for one in types for time in _turning_times(one, room.end)]
    return Rooms(tuple(rooms), tuple(notes), min((time for time in times if time > now), default=None))


def _turning_times(machinetype: Machinetype, end: int) -> tuple[int, int]:
    """From when on a type fits a superslot with that end, and from when on (to the second) it doesn't any more."""
    return end - machinetype.max_wallclock_seconds, end - machinetype.min_wallclock_seconds + 1


def fits(machinetype: Machinetype, room: Room, now: float) -> bool:
    """Whether a machine of this type can go there."""
    if machinetype.min_processors > room.processors:
        return False
    if room.end is None:
        return True
    return machinetype.min_wallclock_seconds <= room.end - now <= machinetype.max_wallclock_seconds


def size(machinetype: Machinetype, room: Room) -> int:
    """How many processors a machine of this type takes there."""
    return min(machinetype.max_processors, room.processors)


def end_time(machinetype: Machinetype, room: Room, shutdown_time: int | None, now: float) -> int:
    """When a machine of this type must end that goes there now, Unix seconds."""
    end = int(now + machinetype.max_wallclock_seconds) if room.end is None else room.end
    return end if shutdown_time is None else min(end, shutdown_time)
