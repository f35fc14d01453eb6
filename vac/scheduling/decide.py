"""The decision: what to create now, and for every machinetype that was passed over the reason.

Pure: the same code runs in the daemon, in the tests and in the simulator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vac.scheduling import superslots
from vac.scheduling.eligibility import Situation, engines_guard, find_guard, standing, total_processors
from vac.scheduling.model import Create, Decision, Occupied
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
STEP_SECONDS = 15
REPLACE_SECONDS = 60
"""Time within which the place of a machine that ended may be taken without waiting for a step."""
PACE_SECONDS = 60
"""The cycle of machines_per_cycle."""


@dataclass(frozen=True)
class RampState:
    """Memory from one decision to the next; a new one does for a start of the factory."""

    step_time: float | None = None
    """When the last step (or cycle, with machines_per_cycle) began."""
    machines: Mapping[str, int] = field(default_factory=dict)
    """Machines by type after the last decision, those just created included."""
    freed_times: tuple[float, ...] = ()
    """When machines were found to have ended whose places have not been taken since."""
    created: int = 0
    """Machines created since step_time; used with machines_per_cycle."""


@dataclass(frozen=True)
class Memory:
    """Memory from one decision to the next; the ledger outlives a restart of the factory."""

    ramp: RampState = field(default_factory=RampState)
    ledger: Ledger = field(default_factory=Ledger)


def decide(situation: Situation, memory: Memory, rng: random.Random) -> tuple[Decision, Memory]:
    """Return what to create now, and the memory for the next decision."""
    work = _Work(situation, memory, rng)
    guard = find_guard(situation, work.used) or engines_guard(situation.machinetypes, work.standings)
    if guard is None:
        work.fill()
        passed, next_time = work.passed, work.next_time()
        reasons = {name: one.reason for name, one in work.standings.items() if one.reason is not None}
    else:
        passed, next_time = {}, guard.next_time
        reasons = {name: one.reason or guard.text for name, one in work.standings.items()}
    held: dict[str, dict[str, float]] = {"here": {}, "space": {}}
    for name, one in work.standings.items():
        if one.held is not None and one.until is not None:
            held[one.held][name] = one.until
    decision = Decision(
        tuple(work.creates),
        None if guard is None else guard.text,
        None if guard is None else guard.name,
        {**reasons, **passed},
        held["here"],
        held["space"],
        work.notes,
        next_time,
    )
    return decision, Memory(work.ramp.state(), work.next_ledger())


class _Work:
    """One decision while it is being made."""

    def __init__(self, situation: Situation, memory: Memory, rng: random.Random) -> None:
        types, settings, space, now = (
            situation.machinetypes,
            situation.settings,
            situation.space,
            situation.now,
        )
        self.situation, self.settings, self.now, self.rng = situation, settings, now, rng
        self.own = survey(types, situation.occupied, situation.history, settings.hs06, now)
        self.standings = {name: standing(one, situation, self.own[name]) for name, one in types.items()}
        reports = {name: one.report for name, one in self.own.items()}
        machines = {name: one.running_machines for name, one in reports.items() if one.running_machines}
        known = frozenset(filter(self._is_known, types))
        self.ramp = Ramp(memory.ramp, machines, known, settings.machines_per_cycle, now)
        # No debt grows beyond a superslot (or machine) that lives as long as it may.
        largest = settings.processors_per_superslot * settings.hs06
        limits = {
            name: largest * one.max_wallclock_seconds for name, one in types.items() if one.target_share > 0
        }
        self.ledger = memory.ledger.advance(now, limits)
        self.at_first = {name: one.running_hs06 for name, one in reports.items()}
        """Running HS06 in the space by machinetype: the peers' as last heard, and this factory's present ones."""
        for name in space.types:
            self.at_first[name] = self.at_first.get(name, 0.0) + space.others(name).running_hs06
        self.running = dict(self.at_first)
        """The same with what is created now, here and by the concurrent factories."""
        self.total = total_processors(settings)
        self.used = sum(one.processors for one in situation.occupied)
        self.free = self.total - self.used
        self.occupied = list(situation.occupied)
        self.candidates = {name: types[name] for name, one in self.standings.items() if one.reason is None}
        self.probes = {name: one.one_only for name, one in self.standings.items() if one.one_only is not None}
        """Candidates of which only one may be created, with the reason."""
        self.capacity = max(space.capacity_hs06, self.total * settings.hs06)
        self.concurrent_factories = 1.0
        """Number of factories that probably do the same now: the space's free capacity, in units of what is free here.
        1 by the classic policy, which looks at what runs only."""
        if settings.share_policy != "classic" and self.free > 0:
            concurrent = (self.capacity - sum(self.running.values())) / (self.free * settings.hs06)
            self.concurrent_factories = max(1.0, min(concurrent, len(space.factories)))
        self.creates: list[Create] = []
        self.passed: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.openings_time: float | None = None
        """When what fits the superslots changes by time alone."""
        self.step_time: float | None = None
        """When the next step is due, or a type may have become known, if one waits for that."""

    def _is_known(self, name: str) -> bool:
        """Return True if the type has outlived fizzle_seconds here lately, or runs well on most peers."""
        past, space = self.situation.history.get(name), self.situation.space
        if past.aborts or past.failures:
            return False
        if past.proven(self.now) or self.own[name].newest_outlived is not None:
            return True
        return space.others(name).outlived_factories * 2 > len(space.factories) - 1

    def fill(self) -> None:
        """Create until nothing is free, nothing may be, or nothing fits; then note why the rest was passed over."""
        while self.free > 0 and self.candidates:
            create = self._next()
            if create is None:
                return
            name = create.machinetype
            self.creates.append(create)
            self.free -= create.processors
            self.occupied.append(Occupied(name, create.processors, self.now, None, create.shutdown_time))
            concurrent = 1.0 if name in self.probes else self.concurrent_factories
            self.running[name] += create.processors * self.settings.hs06 * concurrent
            self.ramp.take(name)
            if name in self.probes:
                self.passed[name] = self.probes[name]
                del self.candidates[name]
        text = "no processor is free any more: what was free has been given out"
        self.passed.update(dict.fromkeys(self.candidates, text))

    def next_time(self) -> float | None:
        """Return when time alone may change the decision."""
        times = [self.step_time, self.openings_time, self.settings.shutdown_time]
        if self.free > 0:
            times += [one.until for one in self.standings.values()]
        return min((time for time in times if time is not None and time > self.now), default=None)

    def next_ledger(self) -> Ledger:
        """Return the ledger with the types that count from now on: those that are neither held back nor probing.

        The short pause after one failed creation counts, too, or each failure would cost its type some of its share.
        """
        counted = {
            name: self.situation.machinetypes[name].target_share
            for name, one in self.standings.items()
            if one.owed or (one.reason is None and one.one_only is None)
        }
        for create in self.creates:
            self.at_first[create.machinetype] += create.processors * self.settings.hs06
        return self.ledger.counting(counted, self.at_first)

    def _next(self) -> Create | None:
        """Return the next machine, or None, with the reasons in self.passed."""
        waiting = self._waiting()
        found = find_openings(
            self.occupied,
            self.free,
            self.total,
            self.settings.processors_per_superslot,
            [one for one in self.situation.machinetypes.values() if one.target_share > 0],
            self.now,
            waiting,
            self.settings.superslot_keep_seconds,
        )
        self.notes, self.openings_time, self.step_time = found.notes, found.next_time, None
        for opening in found.openings:
            growing = None
            for ranked in self._order(opening):
                name = ranked.machinetype
                if not superslots.fits(self.candidates[name], opening, self.now):
                    self.passed[name] = self._no_fit(name, found.kept, waiting)
                elif not self.ramp.allows(name):
                    self.passed[name] = self._wait_for_step(name)
                    if ranked.lacking_hs06 and growing is None:
                        growing = name
                elif growing is not None and not ranked.lacking_hs06:
                    self.passed[name] = (
                        f"has its share; what is free is kept for {growing}, which grows by steps"
                    )
                else:
                    return self._create(ranked, opening)
        return None

    def _waiting(self) -> str | None:
        """Return a type that needs several processors at once and lacks some of its share, if there is one."""
        whole = self.settings.processors_per_superslot
        large = [name for name, one in self.candidates.items() if one.min_processors > 1]
        if whole == 1 or self.settings.share_policy == "classic" or not large:
            return None
        candidates = self._candidates(Opening(whole))
        lacks = lacking(candidates, self._reached_by(candidates))
        return max((name for name in large if lacks[name] > 0), key=lacks.__getitem__, default=None)

    def _candidates(self, opening: Opening) -> list[Candidate]:
        """Return the candidates for this opening.

        The first machine gets the whole superslot; one that joins has no more than its own processors.
        """
        hs06 = self.settings.hs06
        whole = (opening.processors + opening.kept) * hs06
        return [
            Candidate(
                name,
                one.machinegroup or name,
                one.target_share,
                self.running[name],
                whole if opening.end is None else superslots.size(one, opening) * hs06,
                0.0 if name in self.probes else self.ledger.debts[name],
                name in self.probes,
            )
            for name, one in self.candidates.items()
        ]

    def _order(self, opening: Opening) -> Iterator[RankedType]:
        candidates, space = self._candidates(opening), self.situation.space
        point = stratified_point(space.factories, space.factory, self.now, len(self.creates), self.rng)
        order = ORDERS[self.settings.share_policy]
        return order(candidates, self._reached_by(candidates), self._growth(), point, self.rng)

    def _growth(self) -> float:
        """Return the HS06 that this step can add in the space, if the concurrent factories do as this one.

        A step of so many machines is taken to have as many of each type as its share asks for.
        """
        growth: float = self.free
        machines = self.ramp.left(self.candidates)
        if machines < self.free:
            whole, types = Opening(self.settings.processors_per_superslot), self.candidates.values()
            parts = sum(one.target_share / superslots.size(one, whole) for one in types)
            growth = min(self.free, machines * (sum(one.target_share for one in types) / parts))
        left = max(0.0, self.capacity - sum(self.running.values()))
        return min(left, growth * self.settings.hs06 * self.concurrent_factories)

    def _reached_by(self, candidates: Sequence[Candidate]) -> float:
        """Return the HS06 that the candidates will have soon, after this step.

        Shares of all the capacity would let types that are free to grow run ahead of those whose steps are small yet.
        """
        total = sum(self.running.values())
        others = total - sum(one.running_hs06 for one in candidates)
        return max(0.0, total + self._growth() - others)

    def _create(self, ranked: RankedType, opening: Opening) -> Create:
        name, machinetype = ranked.machinetype, self.candidates[ranked.machinetype]
        end = superslots.end_time(machinetype, opening, self.settings.shutdown_time, self.now)
        lacks = f"lacks {ranked.lacking_hs06:.1f} HS06 of its share"
        reason = self.probes.get(name) or (lacks if ranked.lacking_hs06 else "has most room below its share")
        if opening.end is not None:
            reason += f"; joins the superslot that ends in {duration(opening.end - self.now)}"
        return Create(name, superslots.size(machinetype, opening), end, reason)

    def _wait_for_step(self, name: str) -> str:
        step_time = self.ramp.next_time()
        self.step_time = min(self.step_time or step_time, step_time, self.own[name].young_until or step_time)
        wait = duration(step_time - self.now)
        if self.settings.machines_per_cycle:
            return f"machines_per_cycle are created in this cycle already: goes on in {wait}"
        return f"fills this factory in steps that double, until it is known here: the next is in {wait}"

    def _no_fit(self, name: str, kept: Kept | None, waiting: str | None) -> str:
        if kept is not None and name != waiting:
            for_whom = "until all machines of their superslot have ended"
            if waiting:
                for_whom = f"for {waiting}, which needs {self.candidates[waiting].min_processors} at once"
            until = duration(kept.until - self.now)
            return (
                f"{count(kept.processors, 'free processor')} kept {for_whom} (the superslot ends in {until})"
            )
        needed = count(self.candidates[name].min_processors, "processor")
        return f"needs {needed} at once for its wall-clock time: {self.free} free, partly kept for superslots"


class Ramp:
    """The number of machines that one decision may create, since types that aren't known to be good may kill them.

    A known type needs no steps. Of the others a step creates at most as many machines as run here, and of one type as
    many as run of it, at least one; steps are at least STEP_SECONDS apart. 64 empty slots are full in a minute and a
    half, and a machinetype that kills its machines at once is seen after a handful, while known types go on. A machine
    that ended is replaced at once, by whatever type.
    """

    def __init__(
        self,
        state: RampState,
        machines: Mapping[str, int],
        known: Collection[str],
        machines_per_cycle: int,
        now: float,
    ) -> None:
        """Take the machines that there are now and the types known to be good.

        machines_per_cycle above 0 replaces the steps.
        """
        self._now = now
        self._known = known
        self._machines = dict(machines)
        self._per_cycle = machines_per_cycle
        self._freed_times = [time for time in state.freed_times if now - REPLACE_SECONDS < time <= now]
        for name, before in state.machines.items():
            self._freed_times.extend([now] * (before - machines.get(name, 0)))
        self._pause = PACE_SECONDS if machines_per_cycle else STEP_SECONDS
        self._step_time = state.step_time
        self._due = state.step_time is None or not state.step_time <= now < state.step_time + self._pause
        self._growth = max(1, sum(machines.values())) if self._due else 0
        self._growth_of: dict[str, int] = {}
        self._created = 0 if self._due else state.created

    def left(self, machinetypes: Collection[str]) -> float:
        """Return how many machines of these types together may be created now."""
        if self._per_cycle:
            return max(0, self._per_cycle - self._created)
        if any(name in self._known for name in machinetypes):
            return math.inf
        return len(self._freed_times) + self._growth

    def allows(self, machinetype: str) -> bool:
        """Return True if one more machine of this type may be created now."""
        if self._per_cycle or self._freed_times or machinetype in self._known:
            return self.left((machinetype,)) > 0
        return self._growth > 0 and self._growth_left(machinetype) > 0

    def take(self, machinetype: str) -> None:
        """Count one machine that is being created."""
        if self._per_cycle:
            if self._due and not self._created:
                self._step_time = self._now
            self._created += 1
        elif self._freed_times:
            self._freed_times.pop(0)
        elif machinetype not in self._known:
            self._growth -= 1
            self._growth_of[machinetype] = self._growth_left(machinetype) - 1
            self._step_time = self._now
        self._machines[machinetype] = self._machines.get(machinetype, 0) + 1

    def next_time(self) -> float:
        """Return when the next step begins."""
        return self._now if self._step_time is None else self._step_time + self._pause

    def state(self) -> RampState:
        """Return the memory for the next decision."""
        return RampState(self._step_time, self._machines, tuple(self._freed_times), self._created)

    def _growth_left(self, machinetype: str) -> int:
        return self._growth_of.get(machinetype, max(1, self._machines.get(machinetype, 0)))
