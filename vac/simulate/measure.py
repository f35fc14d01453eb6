"""Measurement of a simulated space from outside: everything at once, as no factory in it could see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vac.simulate.nodes import Machine, Node
from vac.simulate.scenario import Queue, Scenario

FULL = 0.99
"""Part of the healthy capacity in use from which on the space is called full."""
ARRIVED = 0.9
"""Part of its share that a machinetype has when it is back."""


@dataclass
class Sample:
    """The space at one moment; parts are of the healthy factories' HS06."""

    seconds: float
    """Since the beginning."""
    used: float
    parts: dict[str, float]
    wanted: dict[str, float]
    """Shares of types that have work; the capacity that others occupy is left out."""
    error: float
    """The largest distance of a type from its wanted part."""
    filling_error: float
    """The same, from its wanted part of what is running yet."""
    had: dict[str, float]
    """HS06·s that each type has had since the beginning."""
    due: dict[str, float]
    """HS06·s that each would have had if all that ran with work had been divided as wanted all the time."""


@dataclass
class Return:
    """A machinetype has work again after a time without; times in seconds after that, None: not yet."""

    machinetype: str
    start_seconds: float
    """When that was, since the beginning."""
    wanted_hs06: float
    freed_hs06: float
    """HS06 that it could have had by now: free at the return or since."""
    found_seconds: float | None = None
    """Until the first machine found some."""
    possible_seconds: float | None = None
    """Until enough had become free for 90 % of its share."""
    arrived_seconds: float | None = None
    """Until it had that."""


@dataclass(eq=False)
class Kind:
    """Nodes that have the same machinetypes configured."""

    machinetypes: frozenset[str]
    hs06: float = 0.0
    idle_processors: int = 0
    """Those that are free where the daemon runs."""
    idle_seconds: float = 0.0
    """Their processor-seconds, of times with work only."""


class Measure:
    """Counters while the simulation runs."""

    def __init__(
        self, scenario: Scenario, nodes: Sequence[Node], queues: Mapping[str, Queue], beginning: float
    ) -> None:
        self.scenario = scenario
        self.queues = queues
        self.beginning = beginning
        self.samples: list[Sample] = []
        names = scenario.machinetypes
        self.creations: dict[str, list[float]] = {name: [] for name in names}
        """By type, when machines were created."""
        self.returns: list[Return] = []
        self.filled_time: float | None = None
        self.idle_at_fill = 0.0
        """Idle processor-seconds by then."""
        self.useless_seconds = 0.0
        """Processor-seconds of machines on healthy factories that found no work."""
        self.waits: dict[str, float] = {}
        """By type, the longest time with work and without a machine on a healthy factory, seconds."""
        self.running = dict.fromkeys(names, 0.0)
        """HS06 in use on healthy factories."""
        self.overbooked = 0
        """Processors in use beyond those that a factory has, at most."""
        self.used_processors = {node.name: 0 for node in nodes}
        self.had = dict.fromkeys(names, 0.0)
        self.due = dict.fromkeys(names, 0.0)
        self._without: dict[str, float] = {}
        """By type that has work and no machine, since when."""
        self._time = beginning
        healthy = [node for node in nodes if not node.broken]
        self.capacity = sum(node.capacity_hs06 for node in healthy) or 1.0
        self.processors = sum(node.settings.total_processors for node in healthy) or 1
        self._with_work: frozenset[str] = frozenset()
        self._targets: dict[str, float] = {}
        kinds: dict[frozenset[str], Kind] = {}
        self._kind_of: dict[str, Kind] = {}
        for node in healthy:
            types = frozenset(node.machinetypes)
            kind = self._kind_of[node.name] = kinds.setdefault(types, Kind(types))
            kind.hs06 += node.capacity_hs06
        self._kinds = list(kinds.values())

    # Events

    def changed(self, node: Node, now: float) -> None:
        """Note that a factory's daemon has started or stopped."""
        if not node.broken:
            self.advance(now)
            free = node.settings.total_processors - self.used_processors[node.name]
            self._kind_of[node.name].idle_processors += free if node.up else -free

    def created(self, machine: Machine, now: float) -> None:
        """Note that a machine is being made."""
        self.creations[machine.seen.machinetype].append(now)
        self._use(machine, machine.seen.processors, now)

    def ended(self, machine: Machine, now: float) -> None:
        """Note that a machine has ended."""
        node, seen = machine.node, machine.seen
        self._use(machine, -seen.processors, now)
        if node.broken:
            return
        if not machine.useful:
            self.useless_seconds += seen.processors * (now - seen.created_time)
        freed = seen.processors * node.settings.hs06
        passed, created = now - self.beginning, seen.created_time - self.beginning
        for one in self.returns:
            is_other = created < one.start_seconds and seen.machinetype != one.machinetype
            if is_other and one.possible_seconds is None:
                if one.machinetype in node.machinetypes:
                    one.freed_hs06 += freed
                if one.freed_hs06 >= ARRIVED * one.wanted_hs06:
                    one.possible_seconds = passed - one.start_seconds

    def _use(self, machine: Machine, processors: int, now: float) -> None:
        """Count so many processors more, or less, as used by machines like this."""
        node = machine.node
        self.used_processors[node.name] += processors
        used = self.used_processors[node.name]
        self.overbooked = max(self.overbooked, used - node.settings.total_processors)
        if node.broken:
            return
        self.advance(now)
        self.running[machine.seen.machinetype] += processors * node.settings.hs06
        if node.up:
            self._kind_of[node.name].idle_processors -= processors

    def advance(self, now: float) -> None:
        """Add the time since the last change: idle processors, and the HS06·s that types have and should have had."""
        passed = now - self._time
        self._time = now
        for kind in self._kinds:
            if kind.machinetypes & self._with_work:
                kind.idle_seconds += kind.idle_processors * passed
        wanted = sum(self._targets.values())
        running = sum(self.running[name] for name in self._targets)
        for name, hs06 in self.running.items():
            self.had[name] += hs06 * passed
            if name in self._targets:
                self.due[name] += (self._targets[name] / wanted * running if wanted else 0.0) * passed
            else:
                self.due[name] += hs06 * passed

    def found(self, machinetype: str, now: float) -> None:
        """Note that a machine of this type has found work."""
        for one in self.returns:
            if one.machinetype == machinetype and one.found_seconds is None:
                one.found_seconds = now - self.beginning - one.start_seconds

    # Samples

    def sample(self, now: float) -> None:
        """Take a sample of everything."""
        self.advance(now)
        with_work = frozenset(
            name
            for name, queue in self.queues.items()
            if self.scenario.machinetypes[name].target_share > 0 and queue.has_work(now)
        )
        came = with_work - self._with_work
        self._with_work = with_work
        occupied = sum(hs06 for name, hs06 in self.running.items() if name not in with_work)
        self._targets = targets(self._kinds, self._shares(with_work), self.capacity - occupied)
        if now > self.beginning:
            for name in sorted(came):
                self._came_back(name, now)
        for back in self.returns:
            waiting = back.arrived_seconds is None and back.machinetype in with_work
            if waiting and self.running[back.machinetype] >= ARRIVED * back.wanted_hs06:
                back.arrived_seconds = now - self.beginning - back.start_seconds
        self._look_at_waits(now)
        self.samples.append(self._take(now))
        if self.filled_time is None and self.samples[-1].used >= FULL:
            self.filled_time, self.idle_at_fill = now, self.idle_seconds

    def _shares(self, with_work: frozenset[str]) -> dict[str, float]:
        return {name: self.scenario.machinetypes[name].target_share for name in with_work}

    def _take(self, now: float) -> Sample:
        total = sum(self._targets.values())
        running = sum(self.running[name] for name in self._targets)
        error = way = 0.0
        for name, wanted in self._targets.items():
            error = max(error, abs(self.running[name] - wanted))
            way = max(way, abs(self.running[name] - wanted / total * running) if total else 0.0)
        return Sample(
            now - self.beginning,
            sum(self.running.values()) / self.capacity,
            {name: hs06 / self.capacity for name, hs06 in self.running.items()},
            {name: wanted / self.capacity for name, wanted in self._targets.items()},
            error / self.capacity,
            way / self.capacity,
            dict(self.had),
            dict(self.due),
        )

    def _came_back(self, name: str, now: float) -> None:
        wanted = targets(self._kinds, self._shares(self._with_work), self.capacity)[name]
        idle = sum(kind.idle_processors for kind in self._kinds if name in kind.machinetypes)
        free = idle * (self.capacity / self.processors)
        back = Return(name, now - self.beginning, wanted, self.running[name] + free)
        if back.freed_hs06 >= ARRIVED * wanted:
            back.possible_seconds = 0.0
        self.returns.append(back)

    def _look_at_waits(self, now: float) -> None:
        for name, hs06 in self.running.items():
            if name in self._with_work and hs06 <= 0:
                since = self._without.setdefault(name, now)
                self.waits[name] = max(self.waits.get(name, 0.0), now - since)
            else:
                self._without.pop(name, None)

    @property
    def idle_seconds(self) -> float:
        """Processor-seconds for which processors of healthy factories were free despite work."""
        return sum(kind.idle_seconds for kind in self._kinds)


def targets(kinds: Sequence[Kind], shares: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Return HS06 by type: by share, but no set of types more than the nodes that can run any of them.

    Where nodes limit a set of types, it gets all of these nodes, and the others divide the rest (max-min
    fair). The sets considered are those of the types that only some kinds of nodes can run. capacity
    may be less than that of all nodes; what is missing is taken from each kind alike.
    """
    total = sum(kind.hs06 for kind in kinds)
    scale = capacity / total if total else 0.0
    left = dict(shares)
    found: dict[str, float] = {}
    while left:
        levels = {names: _level(names, kinds, left, found, scale) for names in _sets(kinds, left)}
        tightest = min(levels, key=levels.__getitem__)
        for name in tightest:
            found[name] = left.pop(name) * levels[tightest]
    return found


def _level(
    names: frozenset[str],
    kinds: Sequence[Kind],
    left: Mapping[str, float],
    found: Mapping[str, float],
    scale: float,
) -> float:
    """Return the HS06 per share that these types could have."""
    usable = [kind for kind in kinds if kind.machinetypes & names]
    hs06 = scale * sum(kind.hs06 for kind in usable)
    for name, taken in found.items():
        if all(kind in usable for kind in kinds if name in kind.machinetypes):
            hs06 -= taken
    return max(0.0, hs06) / sum(left[name] for name in names)


def _sets(kinds: Sequence[Kind], left: Mapping[str, float]) -> set[frozenset[str]]:
    where = {name: frozenset(kind for kind in kinds if name in kind.machinetypes) for name in left}
    places = set(where.values())
    places |= {one | other for one in places for other in places}
    return {names for place in places if (names := frozenset(name for name in left if where[name] <= place))}
