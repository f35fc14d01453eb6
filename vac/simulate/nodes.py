"""Simulated factories: what a daemon would remember, decisions by the daemon's own code, hardware, and polls."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.scheduling.backoff import History, TypeHistory
from vac.scheduling.decide import Memory, decide
from vac.scheduling.eligibility import Situation
from vac.scheduling.model import Decision, Host, MachineEnd, Occupied, SpaceView, TypeReport
from vac.scheduling.space import (
    CAPACITY_SECONDS,
    SILENT_SECONDS,
    Reports,
    SpaceTotals,
    capped_reports,
    own_reports,
    plausible_capacities,
)
from vac.simulate.scenario import Hardware, Scenario
from vac.vacquery.poll import DOUBTFUL_SECONDS, RETRY_SECONDS

PLENTY_BYTES = 10**12
LOAD_SECONDS = (60.0, 300.0, 900.0)
CLASSIC_MACHINES_PER_CYCLE = 1
SNAPSHOT_SECONDS = 1.0
"""Factories answer from a snapshot that is up to this old."""
LEAST_POLL_SECONDS, POLL_SECONDS_PER_FACTORY = 0.02, 0.001
CLASSIC_SECONDS, CLASSIC_LOSSY_SECONDS = 2.0, 8.0
"""Duration of the classic's polls, without and with loss."""
REMEMBERED_SECONDS = SILENT_SECONDS + 30.0
"""Age up to which a factory's reports are remembered: a silent one's last answer counts for SILENT_SECONDS."""
T = TypeVar("T")


class Load:
    """The kernel's load averages of a host on which every processor in use is busy."""

    def __init__(self, now: float) -> None:
        self._time = now
        self._averages = (0.0, 0.0, 0.0)
        self._busy = 0

    def change(self, processors: int, now: float) -> None:
        """Change the number of busy processors from now on."""
        self._averages = self.averages(now)
        self._time = now
        self._busy += processors

    def averages(self, now: float) -> tuple[float, float, float]:
        """Return the 1, 5 and 15 minute averages."""
        one, five, fifteen = (
            self._busy + (average - self._busy) * math.exp((self._time - now) / tau)
            for average, tau in zip(self._averages, LOAD_SECONDS)
        )
        return one, five, fifteen


@dataclass(eq=False)
class Machine:
    """A machine, and what its factory doesn't know of it yet."""

    node: Node
    seen: Occupied
    """As its factory sees it."""
    message: str | None = None
    """The message that it will leave; once it has ended, as it is reported."""
    useful: bool = False
    """True if it has found work."""
    ended_time: float | None = None


@dataclass
class Node:
    """One factory and its memory. Processors are its slots."""

    name: str
    settings: Settings
    machinetypes: Mapping[str, Machinetype]
    factories: tuple[str, ...]
    rng: random.Random
    load: Load
    classic: bool = False
    """True for a classic factory: it looks round once a minute and doesn't count its own aborts."""
    broken: bool = False
    up: bool = False
    """True while its daemon runs."""
    life: int = 0
    """Number of the daemon's starts, to tell what was begun before one from what came after."""
    machines: list[Machine] = field(default_factory=list)
    """Those that haven't ended, as far as this factory has noticed."""
    ended: list[Machine] = field(default_factory=list)
    """Those of them that have ended unnoticed."""
    history: History = field(default_factory=History)
    memory: Memory = field(default_factory=Memory)
    view: SpaceView | None = None
    asked_time: float | None = None
    """When the poll began that the view comes from."""
    answered_time: float | None = None
    """When it ended; the view's age is counted from then, as in the daemon."""
    polling: bool = False
    silent_since: dict[str, float | None] = field(default_factory=dict)
    """Factories that did not answer the last poll, and when they did last."""
    capacity_time: float | None = None
    capacities_of: int = 0
    """Number of factories, in the order of their starts, that had told their capacity by then."""
    alarm: float | None = None
    """When it wakes up by itself, if nothing happens before."""

    @property
    def free(self) -> int:
        """Processors not in use, as far as it has noticed."""
        return self.settings.total_processors - sum([one.seen.processors for one in self.machines])

    @property
    def capacity_hs06(self) -> float:
        """Its max_hs06 in VacQuery."""
        return self.settings.total_processors * self.settings.hs06

    def reports(self, now: float) -> dict[str, TypeReport]:
        """Return its reports of itself."""
        occupied = [one.seen for one in self.machines]
        return own_reports(self.machinetypes, occupied, self.history, self.settings.hs06, now)

    def decide(self, now: float) -> Decision:
        """Make one decision, and remember what the daemon would."""
        assert self.view is not None
        situation = Situation(
            settings=self.settings,
            machinetypes=self.machinetypes,
            occupied=[one.seen for one in self.machines],
            history=self.history,
            space=self.view,
            host=Host(self.load.averages(now), PLENTY_BYTES, self.settings.host_processors),
            engines={one.machine_model: None for one in self.machinetypes.values()},
            now=now,
        )
        decision, self.memory = decide(situation, self.memory, self.rng)
        return decision

    def notice(self, machine: Machine) -> None:
        """Notice that a machine has ended."""
        assert machine.ended_time is not None
        self.ended.remove(machine)
        self.machines.remove(machine)
        seen, fizzle_seconds = machine.seen, self.machinetypes[machine.seen.machinetype].fizzle_seconds
        outcome = MachineEnd(
            seen.machinetype, seen.created_time, seen.started_time, machine.ended_time, machine.message
        )
        past = self.history.get(seen.machinetype).add(outcome, fizzle_seconds)
        if self.classic:  # it remembers the abort time only, which it reports
            past = TypeHistory(
                newest_created=past.newest_created,
                abort_time=past.abort_time,
                abort_says_no_work=past.abort_says_no_work,
            )
        self.history = History({**self.history.types, seen.machinetype: past})

    def forget(self) -> None:
        """Drop what a restarted daemon can't know; the ledger is kept in a file."""
        self.up, self.polling, self.alarm = False, False, None
        self.memory = Memory(ledger=self.memory.ledger)
        self.view = self.asked_time = self.answered_time = self.capacity_time = None
        self.silent_since = {}
        self.life += 1


def make_nodes(scenario: Scenario, now: float) -> list[Node]:
    """Return all factories; the kinds are spread at random, but in exact numbers."""
    space = scenario.space
    rng = random.Random(f"{space.seed} nodes")
    names = tuple(f"vac-{number:04}.example.org" for number in range(space.factories))
    kinds = list((scenario.hardware or {"default": Hardware()}).values())
    hardware = _distributed(kinds, [kind.part for kind in kinds], len(names), rng)
    part = 1.0 if space.policy == "classic" else space.classic
    classic = _distributed([True, False], [part, 1 - part], len(names), rng)
    broken = _distributed([True, False], [space.broken, 1 - space.broken], len(names), rng)
    nodes = []
    for name, kind, old, bad in zip(names, hardware, classic, broken):
        settings = replace(
            scenario.settings,
            factory_name=name,
            factories=names,
            share_policy="classic" if old else "deficit",
            machines_per_cycle=CLASSIC_MACHINES_PER_CYCLE if old else scenario.settings.machines_per_cycle,
            total_processors=kind.processors,
            host_processors=kind.processors,
            hs06_per_processor=kind.hs06_per_processor,
        )
        wanted = kind.machinetypes or tuple(scenario.machinetypes)
        types = {key: one for key, one in scenario.machinetypes.items() if key in wanted}
        own_rng = random.Random(f"{space.seed} {name}")
        nodes.append(Node(name, settings, types, names, own_rng, Load(now), old, bad))
    return nodes


def _distributed(values: Sequence[T], parts: Sequence[float], number: int, rng: random.Random) -> list[T]:
    """Return so many of the values, each as often as its part says; the largest remainders are rounded up."""
    total = sum(parts)
    exact = [part / total * number for part in parts]
    counts = [int(one) for one in exact]
    remainders = sorted(range(len(parts)), key=lambda place: counts[place] - exact[place])
    for place in remainders[: number - sum(counts)]:
        counts[place] += 1
    dealt = [value for value, times in zip(values, counts) for _ in range(times)]
    rng.shuffle(dealt)
    return dealt


class ReportStore:
    """All factories' reports: the last of each, those of the last minutes, and the sum."""

    def __init__(self) -> None:
        self.totals = SpaceTotals()
        self._journal: dict[str, deque[tuple[float, Reports | None]]] = {}

    def post(self, factory: str, reports: Reports | None, now: float) -> None:
        """Set what this factory reports from now on; None: it doesn't answer any more."""
        self.totals.change(factory, self.last(factory), reports)
        journal = self._journal.setdefault(factory, deque())
        journal.append((now, reports))
        while len(journal) > 1 and journal[1][0] < now - REMEMBERED_SECONDS:
            journal.popleft()

    def last(self, factory: str) -> Reports | None:
        """Return this factory's present reports; None if it doesn't answer."""
        journal = self._journal.get(factory)
        return journal[-1][1] if journal else None

    def at(self, factory: str, time: float) -> Reports:
        """Return this factory's reports at a time that is not more than REMEMBERED_SECONDS ago."""
        known = (reports for since, reports in reversed(self._journal.get(factory, ())) if since <= time)
        return next(known, None) or {}

    def without(self, silent: Mapping[str, Reports | None]) -> SpaceTotals:
        """Return the sum as a factory has it that did not hear these others.

        Their last answers take their place, None for one that is too old.
        """
        totals = self.totals.copy()
        for factory, heard in silent.items():
            totals.change(factory, self.last(factory), heard)
        return totals


class Polling:
    """The network of a simulated space: polls with the daemon's retries and time limits.

    Datagrams are lost; factories are silent, and their last answers stand in for a while.
    """

    def __init__(self, scenario: Scenario, nodes: Sequence[Node], rng: random.Random) -> None:
        self._loss = 1 - (1 - scenario.space.loss) ** 2
        self._rng = rng
        self._names = [node.name for node in nodes]
        self._store = ReportStore()
        told = {node.name: node.capacity_hs06 for node in nodes}
        self._plausible = plausible_capacities(self._names, {}, told)
        self._changed: dict[str, Node] = {}
        self._down = set(self._names)
        self._started: list[str] = []
        self._capacities = [0.0]
        """Sums of the first so many factories that started."""
        self._timeout = scenario.settings.udp_timeout_seconds
        self._posted_time = float("-inf")
        self.classic_seconds = CLASSIC_LOSSY_SECONDS if self._loss else CLASSIC_SECONDS

    def started(self, node: Node) -> None:
        """Note that its daemon has started."""
        self._down.discard(node.name)
        if node.name not in self._started:
            self._started.append(node.name)
            self._capacities.append(self._capacities[-1] + self._plausible[node.name])
        self.changed(node)

    def stopped(self, node: Node, now: float) -> None:
        """Note that it doesn't answer any more."""
        self._down.add(node.name)
        self._changed.pop(node.name, None)
        self._store.post(node.name, None, now)

    def changed(self, node: Node) -> None:
        """Note that its reports have changed."""
        if node.up:
            self._changed[node.name] = node

    def ask(self, node: Node, now: float) -> tuple[float, Callable[[], None]]:
        """Let this factory ask all: return how long that takes, and a function that takes in the result."""
        if now - self._posted_time >= SNAPSHOT_SECONDS:
            self._post(now)
        silent = self._down | set(self._lost())
        silent.discard(node.name)
        duration = self._duration(node, silent)
        silent_since = {name: node.silent_since.get(name, node.asked_time) for name in silent}
        totals = self._totals_as_known(silent_since, now) if silent_since else self._store.totals
        own = self._store.last(node.name) or {}
        view = totals.view(node.name, node.factories, self._capacity(node, now), own, silent_since)
        node.silent_since = silent_since

        def take() -> None:
            node.asked_time, node.answered_time = now, now + duration
            node.view = view

        return duration, take

    def _post(self, now: float) -> None:
        for node in self._changed.values():
            said = capped_reports(self._plausible[node.name], node.reports(now))
            self._store.post(node.name, said, now)
        self._changed.clear()
        self._posted_time = now

    def _lost(self) -> Iterator[str]:
        """Yield factories whose answers don't come through, however often they are asked."""
        chance = self._loss ** (len(RETRY_SECONDS) + 1)
        place = -1
        while chance:
            place += 1 + int(math.log(1 - self._rng.random()) / math.log1p(-chance))
            if place >= len(self._names):
                return
            yield self._names[place]

    def _duration(self, node: Node, silent: set[str]) -> float:
        if node.classic:
            return self.classic_seconds
        if silent - node.silent_since.keys():
            return self._timeout
        duration = LEAST_POLL_SECONDS + POLL_SECONDS_PER_FACTORY * len(self._names)
        if self._loss:
            last = math.log(1 - self._rng.random() ** (1 / len(self._names))) / math.log(self._loss)
            duration += sum(RETRY_SECONDS[: int(last)])
        return max(duration, DOUBTFUL_SECONDS) if silent else duration

    def _totals_as_known(self, silent_since: Mapping[str, float | None], now: float) -> SpaceTotals:
        heard = {
            name: self._store.at(name, time) if time is not None and now - time < SILENT_SECONDS else None
            for name, time in silent_since.items()
        }
        differing = {name: one for name, one in heard.items() if one != self._store.last(name)}
        return self._store.without(differing) if differing else self._store.totals

    def _capacity(self, node: Node, now: float) -> float:
        """Return the space's as far as it is known; what factories run that have not told theirs stands in."""
        if node.capacity_time is None or now - node.capacity_time >= CAPACITY_SECONDS:
            node.capacity_time, node.capacities_of = now, len(self._started)
        known = self._capacities[node.capacities_of]
        for name in self._started[node.capacities_of :]:
            known += sum(report.running_hs06 for report in (self._store.last(name) or {}).values())
        return known
