"""How aborts anywhere in the space hold a machinetype back on this factory, and in which order factories probe.

The deficit policy holds back after the second-newest of the factories' abort times (the newest in a space of one),
so that one node's troubles stay that node's. Then factories probe in an order that is different for each abort and
that all of them know: first one, then two, four, eight…, each with one machine at a time, until one of them has
outlived fizzle_seconds. Where factories start more than probes, more of them must abort.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from vac.config.machinetype import Machinetype
from vac.scheduling.model import MOST_YOUNG, SpaceView, TypeReport, TypeTotals
from vac.scheduling.own import Own
from vac.scheduling.space import beyond_probe
from vac.scheduling.wording import seconds

LEAST_WINDOW_SECONDS = 30
"""A window is no shorter than the age up to which a view of the space is used: sooner than that, those who are next
could not know what came of the probes before them."""
PROBE_SECONDS = 120
"""Nor than most probes take to start, find no work and end, or fizzle_seconds if that is less."""
BELIEVED = 2
"""So many factories have to abort: one node's troubles are that node's."""
YOUNG_PER_ABORT = 4
"""So many machines before fizzle that aren't probes outweigh one aborting factory."""


@dataclass(frozen=True)
class Hold:
    """A machinetype is held back by aborts in the space."""

    reason: str
    until: float | None = None
    """When time alone may change that."""
    probing: bool = False
    """One machine of it may be created now."""


_NO_REPORT = TypeReport()
_NO_TOTALS = TypeTotals()

SpaceHold = Callable[[Machinetype, Own, SpaceView, float], "Hold | None"]


def deficit_hold(machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> Hold | None:
    """The hold-back with ordered probing; None: the type isn't held back."""
    abort_time = last_abort(machinetype, own, space, now)
    if abort_time is None or proven_since(abort_time, machinetype, own, space, now):
        return None
    opens = abort_time + machinetype.backoff_seconds
    rank = probing_rank(machinetype.name, abort_time, own, space)
    mine = opens + rank.bit_length() * window_seconds(len(space.factories), machinetype)
    if now < mine:
        turn = f"then {rank} other factories may probe it first, " if rank else ""
        if now < opens:
            return Hold(
                f"held back in the space after aborts, backoff for another {seconds(opens - now)}; {turn}"
                f"this one in {seconds(mine - now)}",
                mine,
            )
        return Hold(
            f"held back in the space after aborts: {rank} other factories may probe it first, "
            f"this one in {seconds(mine - now)}",
            mine,
        )
    if own.report.before_fizzle:
        return Hold(
            "being probed after aborts in the space: one at a time here until one has outlived "
            f"fizzle_seconds ({machinetype.fizzle_seconds})",
            own.young_until,
        )
    return Hold("being probed after aborts in the space: one at a time", None, probing=True)


def classic_hold(machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> Hold | None:
    """The classic hold-back: after the newest abort time that any factory reports."""
    totals = space.types.get(machinetype.name, _NO_TOTALS)
    times = [time for time, name in totals.aborts[:2] if name != space.factory]
    if own.report.abort_time is not None:
        times.append(own.report.abort_time)
    if not times:
        return None
    opens = max(times) + machinetype.backoff_seconds
    if now < opens:
        return Hold(f"held back in the space after an abort for another {seconds(opens - now)}", opens)
    ends = opens + machinetype.fizzle_seconds
    if now < ends and _young(totals, own, space, machinetype.name):
        return Hold(
            "held back in the space after an abort while a machine of it is younger than fizzle_seconds, "
            f"for another {seconds(ends - now)} at most",
            ends,
        )
    return Hold("being tried after an abort in the space", None, probing=True) if now < ends else None


def last_abort(machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> float | None:
    """The abort time that counts for the deficit policy; None: there are too few aborts.

    Where factories have several young machines, and so do more than probe, more of the others must have aborted
    lately, that is since these or those before them were created.
    """
    totals = space.types.get(machinetype.name, _NO_TOTALS)
    believed = min(BELIEVED, len(space.factories))
    before = space.own.get(machinetype.name, _NO_REPORT)
    busy = totals.beyond_probes - beyond_probe(before) + beyond_probe(own.report)
    needed = believed + busy // YOUNG_PER_ABORT
    elsewhere = (time for time, name in totals.aborts if name != space.factory and name not in space.failing)
    times = list(islice(elsewhere, needed))
    if own.report.abort_time is not None and space.factory not in space.failing:
        times.append(own.report.abort_time)
        times.sort(reverse=True)
    if len(times) < needed:
        return None
    old = times[needed - 1] < _lately(machinetype, now)
    return None if needed > believed and old else times[believed - 1]


def _lately(machinetype: Machinetype, now: float) -> float:
    """Aborts since then tell something about machines that are young now, or those before them."""
    return now - 2 * machinetype.backoff_seconds - machinetype.fizzle_seconds


def proven_since(time: float, machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> bool:
    """Whether a machine of the type that was created after this time has outlived fizzle_seconds.

    Known exactly of this factory's own. Of the others' it is concluded when some have outlived fizzle_seconds and
    there has been time for two factories to probe and abort, as nobody creates any before the backoff is over.
    """
    if own.newest_outlived is not None and own.newest_outlived > time:
        return True
    backoff = machinetype.backoff_seconds
    wait = backoff + window_seconds(len(space.factories), machinetype) + machinetype.fizzle_seconds
    return now >= time + wait and runs_elsewhere(machinetype.name, space)


def runs_elsewhere(machinetype: str, space: SpaceView) -> bool:
    """Whether another factory runs machines of the type that have outlived fizzle_seconds."""
    totals = space.types.get(machinetype, _NO_TOTALS)
    before = space.own.get(machinetype, _NO_REPORT)
    return totals.outlived_factories - (before.running_machines > before.before_fizzle) > 0


def window_seconds(factories: int, machinetype: Machinetype) -> float:
    """How long one, two, four… factories have for probing.

    All have their turn after another backoff_seconds, unless windows would become shorter than a probe takes.
    """
    doublings = (factories - 1).bit_length()
    least = max(LEAST_WINDOW_SECONDS, min(PROBE_SECONDS, machinetype.fizzle_seconds))
    return max(machinetype.backoff_seconds / doublings, least) if doublings else 0.0


def probing_rank(machinetype: str, abort_time: float, own: Own, space: SpaceView) -> int:
    """How many factories probe before this one: by sha256 of `FACTORY MACHINETYPE LAST_ABORT` (whole seconds), those
    whose own last outcome is an abort after all the others.
    """
    aborted = space.types.get(machinetype, _NO_TOTALS).aborted_factories
    if (own.report.abort_time is not None) != (space.factory in aborted):
        aborted ^= {space.factory}
    return _ranks(space.factories, machinetype, int(abort_time), aborted)[space.factory]


@lru_cache(maxsize=256)
def _ranks(
    factories: tuple[str, ...], machinetype: str, abort_time: int, aborted: frozenset[str]
) -> Mapping[str, int]:
    order = sorted(_sha256_order(factories, machinetype, abort_time), key=aborted.__contains__)
    return {name: place for place, name in enumerate(order)}


@lru_cache(maxsize=256)
def _sha256_order(factories: tuple[str, ...], machinetype: str, abort_time: int) -> tuple[str, ...]:
    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{name} {machinetype} {abort_time}".encode()).digest()

    return tuple(sorted(factories, key=digest))


def _young(totals: TypeTotals, own: Own, space: SpaceView, machinetype: str) -> int:
    """Machines before fizzle in the space, this factory's as they are now."""
    before = min(space.own.get(machinetype, _NO_REPORT).before_fizzle, MOST_YOUNG)
    return totals.before_fizzle - before + min(own.report.before_fizzle, MOST_YOUNG)


def broken_here(held_here: Iterable[str], space: SpaceView) -> dict[str, str]:
    """Warnings by machinetype: it is held back by this factory's own aborts while other factories run it."""
    return {
        name: f"{name} keeps failing on this factory while others run it: this node is probably broken"
        for name in held_here
        if runs_elsewhere(name, space)
    }
