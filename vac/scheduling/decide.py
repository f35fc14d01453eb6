"""The decision: what to create now, and for every machinetype that was passed over the reason.

Pure: the same code runs in the daemon, in the tests and in the simulator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.scheduling import superslots
from vac.scheduling.backoff import History
from vac.scheduling.eligibility import Standing, standing
from vac.scheduling.guards import Guard, engines_guard, find_guard, total_processors
from vac.scheduling.model import Create, Decision, Host, Occupied, SpaceView, TypeReport
from vac.scheduling.own import Own, survey
from vac.scheduling.ramp import Ramp, RampState
from vac.scheduling.shares import Candidate, Order, Turn, classic_order, deficit_order
from vac.scheduling.superslots import Room
from vac.scheduling.wording import count, seconds

ORDERS: Mapping[str, Order] = {"deficit": deficit_order, "classic": classic_order}
"""How the next machinetype is chosen, by share_policy."""


@dataclass(frozen=True)
class Situation:
    """Everything that a decision depends on but the ramp's state and chance."""

    settings: Settings
    machinetypes: Mapping[str, Machinetype]
    occupied: Sequence[Occupied]
    """Every slot that isn't free. What was created by the last decision is in it, or has failed."""
    history: History
    space: SpaceView
    host: Host
    engines: Mapping[str, str | None]
    """By machine model: why its engine can't be used, None if it can. A model that isn't in it has not answered."""
    now: float
    config_problem: str | None = None
    """Why the configuration can't be used, if so."""
    drain: str | None = None
    """Why this factory is draining, if it was told to (`vac drain`)."""


@dataclass
class _Work:
    """What changes while one decision is being made."""

    situation: Situation
    ramp: Ramp
    rng: random.Random
    free: int
    occupied: list[Occupied]
    candidates: dict[str, Machinetype]
    probes: dict[str, str]
    """Candidates of which only one may be created, with the reason."""
    running: dict[str, float]
    """Running HS06 in the space by machinetype, this factory's as they are now."""
    capacity: float
    alike: float
    """How many factories probably do the same now: the space's free capacity, in units of what is free here. 1 by the
    classic policy, which looks at what runs only."""
    creates: list[Create] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rooms_turn_time: float | None = None
    """When what fits the superslots changes by time alone."""
    waits_for_step: bool = False


def decide(situation: Situation, ramp_state: RampState, rng: random.Random) -> tuple[Decision, RampState]:
    """What to create now, and the ramp's state for the next decision."""
    settings, now = situation.settings, situation.now
    own = survey(situation.machinetypes, situation.occupied, situation.history, settings.hs06, now)
    standings = {
        name: standing(
            machinetype,
            settings,
            situation.engines,
            situation.history,
            own[name],
            situation.space,
            now,
        )
        for name, machinetype in situation.machinetypes.items()
    }
    machines = {name: one.report.running_machines for name, one in own.items() if one.report.running_machines}
    ramp = Ramp(ramp_state, machines, settings.machines_per_cycle, now)
    used = sum(one.processors for one in situation.occupied)
    free = total_processors(settings) - used
    guard = find_guard(
        settings, situation.host, used, free, now, situation.config_problem, situation.drain
    ) or _engines(situation.machinetypes, standings)
    if guard is not None:
        return _guarded(guard, standings), ramp.state()
    work = _start(situation, ramp, rng, own, standings, free)
    _fill(work)
    return _decision(work, standings), ramp.state()


def _engines(machinetypes: Mapping[str, Machinetype], standings: Mapping[str, Standing]) -> Guard | None:
    """The guard if nothing but their engines is in the way of all types that could be created."""
    problems = {}
    for name, one in standings.items():
        if one.engine_problem is not None:
            problems[machinetypes[name].machine_model] = one.engine_problem
        elif one.reason is None or one.until is not None:
            return None
    return engines_guard(problems) if problems else None


def _guarded(guard: Guard, standings: Mapping[str, Standing]) -> Decision:
    held_here, held_in_space = _held(standings)
    return Decision(
        guard=guard.text,
        guard_name=guard.name,
        passed_over={name: one.reason or guard.text for name, one in standings.items()},
        held_here=held_here,
        held_in_space=held_in_space,
        next_time=guard.next_time,
    )


def _start(
    situation: Situation,
    ramp: Ramp,
    rng: random.Random,
    own: Mapping[str, Own],
    standings: Mapping[str, Standing],
    free: int,
) -> _Work:
    space, settings = situation.space, situation.settings
    running = {name: one.report.running_hs06 for name, one in own.items()}
    for name, totals in space.types.items():
        elsewhere = totals.running_hs06 - space.own.get(name, _NO_REPORT).running_hs06
        running[name] = running.get(name, 0.0) + max(0.0, elsewhere)
    allowed = {name: one for name, one in standings.items() if one.reason is None}
    capacity = max(space.capacity_hs06, total_processors(settings) * settings.hs06)
    alike = 1.0
    if settings.share_policy != "classic":
        alike = (capacity - sum(running.values())) / (free * settings.hs06)
    return _Work(
        situation,
        ramp,
        rng,
        free,
        occupied=list(situation.occupied),
        candidates={name: situation.machinetypes[name] for name in allowed},
        probes={name: one.one_only for name, one in allowed.items() if one.one_only is not None},
        running=running,
        capacity=capacity,
        alike=max(1.0, min(alike, len(space.factories))),
    )


_NO_REPORT = TypeReport()


def _fill(work: _Work) -> None:
    """Create until nothing is free, nothing may be, or nothing fits; then say why the rest was passed over."""
    while work.free > 0 and work.candidates:
        if work.ramp.exhausted():
            work.waits_for_step = True
            work.passed.update({name: _ramp_reason(work, name) for name in work.candidates})
            return
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
    alike = 1.0 if name in work.probes else work.alike
    work.running[name] += create.processors * work.situation.settings.hs06 * alike
    work.ramp.take(name)
    if name in work.probes:
        work.passed[name] = work.probes[name]
        del work.candidates[name]


def _next(work: _Work) -> Create | None:
    """The next machine, or None, with the reasons in work.passed."""
    situation = work.situation
    sharing = [one for one in situation.machinetypes.values() if one.target_share > 0]
    found = superslots.find_rooms(
        work.occupied,
        work.free,
        total_processors(situation.settings),
        situation.settings.processors_per_superslot,
        sharing,
        situation.now,
    )
    work.notes = found.notes
    work.rooms_turn_time = found.next_time
    work.waits_for_step = False
    for room in found.rooms:
        kept_for = None
        for turn in _order(work, room):
            name = turn.machinetype
            if not superslots.fits(work.candidates[name], room, situation.now):
                work.passed[name] = _no_fit(work, name)
            elif not work.ramp.allows(name):
                work.waits_for_step = True
                work.passed[name] = _ramp_reason(work, name)
                if turn.lacking_hs06 and kept_for is None:
                    kept_for = name
            elif kept_for is not None and not turn.lacking_hs06:
                work.passed[name] = (
                    f"has its share; what is free is kept for {kept_for}, which grows by steps"
                )
            else:
                return _create(work, turn, room)
    return None


def _order(work: _Work, room: Room) -> Iterator[Turn]:
    """Types for this room. Who begins a superslot has all of it; who joins one has no more than his machine."""
    candidates = [
        Candidate(
            name,
            one.machinegroup or name,
            one.target_share,
            work.running[name],
            1 if room.end is None else superslots.size(one, room),
        )
        for name, one in work.candidates.items()
    ]
    others = sum(work.running.values()) - sum(one.running_hs06 for one in candidates)
    choose = ORDERS[work.situation.settings.share_policy]
    return choose(candidates, max(0.0, _reached(work) - others), work.rng)


def _reached(work: _Work) -> float:
    """The part of the capacity that will be in use soon: after this step, if those alike do as this factory.

    Shares of all of it would let types that are free to grow run ahead of those whose steps are small yet.
    """
    growth = min(work.free, work.ramp.left() * _mean_size(work)) * work.situation.settings.hs06
    return min(work.capacity, sum(work.running.values()) + growth * work.alike)


def _mean_size(work: _Work) -> float:
    """Processors of a machine on average, if there are as many of each type as its share asks for."""
    whole = Room(work.situation.settings.processors_per_superslot)
    candidates = work.candidates.values()
    machines = sum(one.target_share / superslots.size(one, whole) for one in candidates)
    return sum(one.target_share for one in candidates) / machines


def _create(work: _Work, turn: Turn, room: Room) -> Create:
    situation = work.situation
    machinetype = work.candidates[turn.machinetype]
    end = superslots.end_time(machinetype, room, situation.settings.shutdown_time, situation.now)
    if turn.machinetype in work.probes:
        reason = work.probes[turn.machinetype]
    elif turn.lacking_hs06:
        reason = f"lacks {turn.lacking_hs06:.1f} HS06 of its share"
    else:
        reason = "runs least for its share"
    if room.end is not None:
        reason += f"; joins the superslot that ends in {seconds(room.end - situation.now)}"
    return Create(turn.machinetype, superslots.size(machinetype, room), end, reason)


def _ramp_reason(work: _Work, name: str) -> str:
    wait = seconds(work.ramp.next_time() - work.situation.now)
    if work.situation.settings.machines_per_cycle:
        return f"machines_per_cycle are created in this cycle already: goes on in {wait}"
    return f"this factory fills in steps that double: the next is in {wait}"


def _no_fit(work: _Work, name: str) -> str:
    needed = count(work.candidates[name].min_processors, "processor")
    return f"needs {needed} at once for its wall-clock time: {work.free} free, partly kept for superslots"


def _decision(work: _Work, standings: Mapping[str, Standing]) -> Decision:
    now = work.situation.now
    held_here, held_in_space = _held(standings)
    times = [one.until for one in standings.values() if one.until is not None] if work.free > 0 else []
    if work.waits_for_step:
        times.append(work.ramp.next_time())
    times += [
        time for time in (work.rooms_turn_time, work.situation.settings.shutdown_time) if time is not None
    ]
    reasons = {name: one.reason for name, one in standings.items() if one.reason is not None}
    return Decision(
        creates=tuple(work.creates),
        passed_over={**reasons, **work.passed},
        held_here=held_here,
        held_in_space=held_in_space,
        notes=work.notes,
        next_time=min((time for time in times if time > now), default=None),
    )


def _held(standings: Mapping[str, Standing]) -> tuple[dict[str, float], dict[str, float]]:
    here = {name: one.held_here for name, one in standings.items() if one.held_here is not None}
    space = {name: one.held_in_space for name, one in standings.items() if one.held_in_space is not None}
    return here, space
