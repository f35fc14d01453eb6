"""The decision: what to create now, and for every machinetype that was passed over the reason.

Pure: the same code runs in the daemon, in the tests and in the simulator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vac.scheduling import superslots
from vac.scheduling.eligibility import Situation, engines_guard, find_guard, standing, total_processors
from vac.scheduling.model import Create, Decision, Occupied, Own, SpaceView, Standing
from vac.scheduling.ramp import Ramp, RampState
from vac.scheduling.shares import (
    Candidate,
    Ledger,
    Order,
    RankedType,
    classic_order,
    deficit_order,
    lacking,
    stratified_point,
)
from vac.scheduling.space import survey
from vac.scheduling.superslots import Kept, Opening, find_openings
from vac.text import count, duration

ORDERS: Mapping[str, Order] = {"deficit": deficit_order, "classic": classic_order}
"""Order of machinetypes by share_policy."""


@dataclass(frozen=True)
class Memory:
    """Memory from one decision to the next; the ledger outlives a restart of the factory."""

    ramp: RampState = field(default_factory=RampState)
    ledger: Ledger = field(default_factory=Ledger)


def decide(situation: Situation, memory: Memory, rng: random.Random) -> tuple[Decision, Memory]:
    """Return what to create now, and the memory for the next decision."""
    settings, now = situation.settings, situation.now
    own = survey(situation.machinetypes, situation.occupied, situation.history, settings.hs06, now)
    standings = {name: standing(one, situation, own[name]) for name, one in situation.machinetypes.items()}
    machines = {name: one.report.running_machines for name, one in own.items() if one.report.running_machines}
    known = frozenset(name for name in standings if _is_known(name, situation, own[name]))
    ramp = Ramp(memory.ramp, machines, known, settings.machines_per_cycle, now)
    ledger = memory.ledger.advance(now, _debt_limits(situation))
    running = _running(situation.space, own)
    used = sum(one.processors for one in situation.occupied)
    guard = find_guard(situation, used) or engines_guard(situation.machinetypes, standings)
    if guard is not None:
        decision = Decision(
            guard=guard.text,
            guard_name=guard.name,
            passed_over={name: one.reason or guard.text for name, one in standings.items()},
            next_time=guard.next_time,
        )
    else:
        work = _Work(situation, ramp, ledger, rng, own, standings, running, used)
        _fill(work)
        decision = _decision(work, standings)
        for create in decision.creates:
            running[create.machinetype] += create.processors * settings.hs06
    decision = replace(decision, held_here=_held("here", standings), held_in_space=_held("space", standings))
    return decision, Memory(ramp.state(), _recount(ledger, situation, standings, running))


def _held(where: str, standings: Mapping[str, Standing]) -> dict[str, float]:
    return {name: one.until for name, one in standings.items() if one.held == where and one.until is not None}


def _is_known(name: str, situation: Situation, own: Own) -> bool:
    """Return True if the type has outlived fizzle_seconds here lately, or runs well on most peers."""
    past = situation.history.get(name)
    if past.aborts or past.failures:
        return False
    if past.proven(situation.now) or own.newest_outlived is not None:
        return True
    return situation.space.others(name).outlived_factories * 2 > len(situation.space.factories) - 1


def _debt_limits(situation: Situation) -> dict[str, float]:
    """Return by type the HS06·s of a superslot (or machine) that lives as long as it may."""
    settings = situation.settings
    hs06 = settings.processors_per_superslot * settings.hs06
    return {
        name: hs06 * one.max_wallclock_seconds
        for name, one in situation.machinetypes.items()
        if one.target_share > 0
    }


def _running(space: SpaceView, own: Mapping[str, Own]) -> dict[str, float]:
    """Return the running HS06 by type: those of the peers as last heard, and this factory's as they are now."""
    running = {name: one.report.running_hs06 for name, one in own.items()}
    for name in space.types:
        running[name] = running.get(name, 0.0) + space.others(name).running_hs06
    return running


def _recount(
    ledger: Ledger, situation: Situation, standings: Mapping[str, Standing], running: Mapping[str, float]
) -> Ledger:
    """Return the ledger with the types that count from now on: those that are neither held back nor probing.

    The short pause after one failed creation counts, too, or each failure would cost its type some of its share.
    """
    counted = {
        name: situation.machinetypes[name].target_share
        for name, one in standings.items()
        if one.owed or (one.reason is None and one.one_only is None)
    }
    return ledger.counting(counted, running)


class _Work:
    """One decision while it is being made."""

    def __init__(
        self,
        situation: Situation,
        ramp: Ramp,
        ledger: Ledger,
        rng: random.Random,
        own: Mapping[str, Own],
        standings: Mapping[str, Standing],
        running: Mapping[str, float],
        used: int,
    ) -> None:
        space, settings = situation.space, situation.settings
        self.situation, self.ramp, self.ledger, self.rng, self.own = situation, ramp, ledger, rng, own
        self.free = total_processors(settings) - used
        self.occupied = list(situation.occupied)
        self.candidates = {
            name: situation.machinetypes[name] for name, one in standings.items() if one.reason is None
        }
        self.probes = {name: one.one_only for name, one in standings.items() if one.one_only is not None}
        """Candidates of which only one may be created, with the reason."""
        self.running = dict(running)
        """Running HS06 in the space by machinetype, with this factory's present ones."""
        self.capacity = max(space.capacity_hs06, total_processors(settings) * settings.hs06)
        self.concurrent_factories = 1.0
        """Number of factories that probably do the same now: the space's free capacity, in units of what is free here.
        1 by the classic policy, which looks at what runs only."""
        if settings.share_policy != "classic":
            concurrent = (self.capacity - sum(running.values())) / (self.free * settings.hs06)
            self.concurrent_factories = max(1.0, min(concurrent, len(space.factories)))
        self.creates: list[Create] = []
        self.passed: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.openings_time: float | None = None
        """When what fits the superslots changes by time alone."""
        self.step_time: float | None = None
        """When the next step is due, or a type may have become known, if one waits for that."""


def _fill(work: _Work) -> None:
    """Create until nothing is free, nothing may be, or nothing fits; then note why the rest was passed over."""
    while work.free > 0 and work.candidates:
        create = _next(work)
        if create is None:
            return
        _take(work, create)
    work.passed.update(
        dict.fromkeys(work.candidates, "no processor is free any more: what was free has been given out")
    )


def _take(work: _Work, create: Create) -> None:
    name, now = create.machinetype, work.situation.now
    work.creates.append(create)
    work.free -= create.processors
    work.occupied.append(Occupied(name, create.processors, now, None, create.shutdown_time))
    concurrent = 1.0 if name in work.probes else work.concurrent_factories
    work.running[name] += create.processors * work.situation.settings.hs06 * concurrent
    work.ramp.take(name)
    if name in work.probes:
        work.passed[name] = work.probes[name]
        del work.candidates[name]


def _next(work: _Work) -> Create | None:
    """Return the next machine, or None, with the reasons in work.passed."""
    situation = work.situation
    waiting = _waiting(work)
    found = find_openings(
        work.occupied,
        work.free,
        total_processors(situation.settings),
        situation.settings.processors_per_superslot,
        [one for one in situation.machinetypes.values() if one.target_share > 0],
        situation.now,
        waiting,
        situation.settings.superslot_keep_seconds,
    )
    work.notes = found.notes
    work.openings_time = found.next_time
    work.step_time = None
    for opening in found.openings:
        growing = None
        for ranked in _order(work, opening):
            name = ranked.machinetype
            if not superslots.fits(work.candidates[name], opening, situation.now):
                work.passed[name] = _no_fit(work, name, found.kept, waiting)
            elif not work.ramp.allows(name):
                work.passed[name] = _wait_for_step(work, name)
                if ranked.lacking_hs06 and growing is None:
                    growing = name
            elif growing is not None and not ranked.lacking_hs06:
                work.passed[name] = f"has its share; what is free is kept for {growing}, which grows by steps"
            else:
                return _create(work, ranked, opening)
    return None


def _waiting(work: _Work) -> str | None:
    """Return a type that needs several processors at once and lacks some of its share, if there is one."""
    settings = work.situation.settings
    large = [name for name, one in work.candidates.items() if one.min_processors > 1]
    if settings.processors_per_superslot == 1 or settings.share_policy == "classic" or not large:
        return None
    candidates = _candidates(work, Opening(settings.processors_per_superslot))
    lacks = lacking(candidates, _reached_by(work, candidates))
    return max((name for name in large if lacks[name] > 0), key=lacks.__getitem__, default=None)


def _candidates(work: _Work, opening: Opening) -> list[Candidate]:
    """Return the candidates for this opening.

    The first machine gets the whole superslot; one that joins has no more than its own processors.
    """
    hs06 = work.situation.settings.hs06
    whole = (opening.processors + opening.kept) * hs06
    return [
        Candidate(
            name,
            one.machinegroup or name,
            one.target_share,
            work.running[name],
            whole if opening.end is None else superslots.size(one, opening) * hs06,
            0.0 if name in work.probes else work.ledger.debts[name],
            name in work.probes,
        )
        for name, one in work.candidates.items()
    ]


def _order(work: _Work, opening: Opening) -> Iterator[RankedType]:
    candidates = _candidates(work, opening)
    choose = ORDERS[work.situation.settings.share_policy]
    space, now = work.situation.space, work.situation.now
    point = stratified_point(space.factories, space.factory, now, len(work.creates), work.rng)
    return choose(candidates, _reached_by(work, candidates), _growth(work), point, work.rng)


def _growth(work: _Work) -> float:
    """Return the HS06 that this step can add in the space, if the concurrent factories do as this one."""
    machines = work.ramp.left(work.candidates)
    growth = work.free if machines >= work.free else min(work.free, machines * _mean_size(work))
    left = max(0.0, work.capacity - sum(work.running.values()))
    return min(left, growth * work.situation.settings.hs06 * work.concurrent_factories)


def _reached_by(work: _Work, candidates: Sequence[Candidate]) -> float:
    """Return the HS06 that the candidates will have soon, after this step.

    Shares of all the capacity would let types that are free to grow run ahead of those whose steps are small yet.
    """
    total = sum(work.running.values())
    others = total - sum(one.running_hs06 for one in candidates)
    return max(0.0, total + _growth(work) - others)


def _mean_size(work: _Work) -> float:
    """Return the mean processors of a machine, if there are as many of each type as its share asks for."""
    whole = Opening(work.situation.settings.processors_per_superslot)
    candidates = work.candidates.values()
    machines = sum(one.target_share / superslots.size(one, whole) for one in candidates)
    return sum(one.target_share for one in candidates) / machines


def _create(work: _Work, ranked: RankedType, opening: Opening) -> Create:
    situation = work.situation
    machinetype = work.candidates[ranked.machinetype]
    end = superslots.end_time(machinetype, opening, situation.settings.shutdown_time, situation.now)
    if ranked.machinetype in work.probes:
        reason = work.probes[ranked.machinetype]
    elif ranked.lacking_hs06:
        reason = f"lacks {ranked.lacking_hs06:.1f} HS06 of its share"
    else:
        reason = "has most room below its share"
    if opening.end is not None:
        reason += f"; joins the superslot that ends in {duration(opening.end - situation.now)}"
    return Create(ranked.machinetype, superslots.size(machinetype, opening), end, reason)


def _wait_for_step(work: _Work, name: str) -> str:
    step_time = work.ramp.next_time()
    work.step_time = min(work.step_time or step_time, step_time, work.own[name].young_until or step_time)
    wait = duration(step_time - work.situation.now)
    if work.situation.settings.machines_per_cycle:
        return f"machines_per_cycle are created in this cycle already: goes on in {wait}"
    return f"fills this factory in steps that double, until it is known here: the next is in {wait}"


def _no_fit(work: _Work, name: str, kept: Kept | None, waiting: str | None) -> str:
    if kept is not None and name != waiting:
        needs = (
            f" {waiting}, which needs {work.candidates[waiting].min_processors} at once" if waiting else ""
        )
        for_whom = f"for{needs}" if waiting else "until all machines of their superslot have ended"
        until = duration(kept.until - work.situation.now)
        return f"{count(kept.processors, 'free processor')} kept {for_whom} (the superslot ends in {until})"
    needed = count(work.candidates[name].min_processors, "processor")
    return f"needs {needed} at once for its wall-clock time: {work.free} free, partly kept for superslots"


def _decision(work: _Work, standings: Mapping[str, Standing]) -> Decision:
    times = [work.step_time, work.openings_time, work.situation.settings.shutdown_time]
    if work.free > 0:
        times += [one.until for one in standings.values()]
    reasons = {name: one.reason for name, one in standings.items() if one.reason is not None}
    return Decision(
        creates=tuple(work.creates),
        passed_over={**reasons, **work.passed},
        notes=work.notes,
        next_time=min(
            (time for time in times if time is not None and time > work.situation.now), default=None
        ),
    )
