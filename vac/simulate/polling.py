"""Polls between simulated factories, with the daemon's retries and time limits: lost datagrams, and factories that are
silent and whose last answers stand in for a while.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from vac.scheduling.space import (
    CAPACITY_SECONDS,
    SILENT_SECONDS,
    Reports,
    SpaceTotals,
    capped_reports,
    plausible_capacities,
)
from vac.simulate.nodes import Node
from vac.simulate.scenario import Scenario

SNAPSHOT_SECONDS = 1.0
"""Factories answer from a snapshot that is up to this old."""
RETRY_SECONDS = (0.06, 0.1, 0.2, 0.4, 0.8)
"""Pauses before a factory is asked again; the sixth query is the last one."""
DOUBTFUL_SECONDS = 1.0
"""Time limit for those that were silent the last time."""
LEAST_POLL_SECONDS, POLL_SECONDS_PER_FACTORY = 0.02, 0.001
CLASSIC_SECONDS, CLASSIC_LOSSY_SECONDS = 2.0, 8.0
"""Duration of the classic's polls, without and with loss."""
REMEMBERED_SECONDS = SILENT_SECONDS + 30.0
"""Age up to which a factory's reports are remembered: a silent one's last answer counts for SILENT_SECONDS."""


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
    """The network of a simulated space."""

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
