"""How simulated factories hear of each other: polls with the daemon's retries and time limits, lost
datagrams, factories that are silent and whose last answers stand in for a while.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

from vac.scheduling.age import CAPACITY_SECONDS, SILENT_SECONDS
from vac.scheduling.space import believed_capacities, not_above
from vac.simulate.bulletin import Board, Bulletin, Reports, corrected
from vac.simulate.node import Node
from vac.simulate.scenario import Scenario

SNAPSHOT_SECONDS = 1.0
"""Factories answer from a snapshot that is up to this old."""
RETRY_SECONDS = (0.06, 0.1, 0.2, 0.4, 0.8)
"""Pauses before a factory is asked again; the sixth query is the last one."""
DOUBTFUL_SECONDS = 1.0
"""How long is waited for those that were silent the last time."""
LEAST_POLL_SECONDS, POLL_SECONDS_PER_FACTORY = 0.02, 0.001
CLASSIC_SECONDS, CLASSIC_LOSSY_SECONDS = 2.0, 8.0
"""The classic's polls, without and with loss."""


class Polling:
    """The network of a simulated space."""

    def __init__(self, scenario: Scenario, nodes: Sequence[Node], rng: random.Random) -> None:
        self._loss = 1 - (1 - scenario.space.loss) ** 2
        self._rng = rng
        self._names = [node.name for node in nodes]
        self._board = Board(scenario.machinetypes)
        told = {node.name: node.capacity_hs06 for node in nodes}
        self._believed = believed_capacities(self._names, {}, told)
        self._changed: dict[str, Node] = {}
        self._down = set(self._names)
        self._started: list[str] = []
        self._capacities = [0.0]
        """Of the first so many factories that started."""
        self._timeout = scenario.settings.udp_timeout_seconds
        self._posted_time = float("-inf")
        self.classic_seconds = CLASSIC_LOSSY_SECONDS if self._loss else CLASSIC_SECONDS

    def started(self, node: Node) -> None:
        """Its daemon has started."""
        self._down.discard(node.name)
        if not node.started_once:
            node.started_once = True
            self._started.append(node.name)
            self._capacities.append(self._capacities[-1] + self._believed[node.name])
        self.changed(node)

    def stopped(self, node: Node, now: float) -> None:
        """It doesn't answer any more."""
        self._down.add(node.name)
        self._changed.pop(node.name, None)
        self._board.post(node.name, None, now)

    def changed(self, node: Node) -> None:
        """What it says of itself has changed."""
        if node.up:
            self._changed[node.name] = node

    def ask(self, node: Node, now: float) -> tuple[float, Callable[[], None]]:
        """This factory asks all: how long that takes, and what makes it take in the result."""
        if now - self._posted_time >= SNAPSHOT_SECONDS:
            self._post(now)
        bulletin = self._board.bulletin(now)
        own = self._board.said(node.name)
        silent = self._down | set(self._lost())
        silent.discard(node.name)
        seconds = self._seconds(node, silent)
        unheard = {name: node.unheard.get(name, node.asked_time) for name in silent}
        if unheard:
            bulletin = self._as_heard(bulletin, unheard, now)
        capacity = self._capacity(node, now)
        node.unheard = unheard

        def take() -> None:
            node.asked_time, node.answered_time = now, now + seconds
            node.see(bulletin, own, capacity)

        return seconds, take

    def _post(self, now: float) -> None:
        for node in self._changed.values():
            said = not_above(self._believed[node.name], node.reports(now))
            self._board.post(node.name, said, now)
        self._changed.clear()
        self._posted_time = now

    def _lost(self) -> Iterator[str]:
        """Factories whose answers don't come through, however often they are asked."""
        chance = self._loss ** (len(RETRY_SECONDS) + 1)
        place = -1
        while chance:
            place += 1 + int(math.log(1 - self._rng.random()) / math.log1p(-chance))
            if place >= len(self._names):
                return
            yield self._names[place]

    def _seconds(self, node: Node, silent: set[str]) -> float:
        if node.classic:
            return self.classic_seconds
        if silent - node.unheard.keys():
            return self._timeout
        seconds = LEAST_POLL_SECONDS + POLL_SECONDS_PER_FACTORY * len(self._names)
        if self._loss:
            last = math.log(1 - self._rng.random() ** (1 / len(self._names))) / math.log(self._loss)
            seconds += sum(RETRY_SECONDS[: int(last)])
        return max(seconds, DOUBTFUL_SECONDS) if silent else seconds

    def _as_heard(self, bulletin: Bulletin, unheard: dict[str, float | None], now: float) -> Bulletin:
        said: dict[str, Reports] = {name: self._board.said(name) for name in unheard}
        last: dict[str, Reports | None] = {
            name: self._board.said_at(name, time)
            if time is not None and now - time < SILENT_SECONDS
            else None
            for name, time in unheard.items()
        }
        wrong = {name: heard for name, heard in last.items() if said[name] or heard is not None}
        return corrected(bulletin, said, wrong)

    def _capacity(self, node: Node, now: float) -> float:
        """The space's, as far as it is known: what factories run that have not told theirs stands in."""
        if node.capacity_time is None or now - node.capacity_time >= CAPACITY_SECONDS:
            node.capacity_time, node.capacities_of = now, len(self._started)
        unknown = self._started[node.capacities_of :]
        return self._capacities[node.capacities_of] + self._board.running_hs06(unknown)


def alone(node: Node, now: float) -> None:
    """A factory without peers knows its space at any time."""
    node.see(Bulletin(now, {}, frozenset(), 1, 1), {}, node.capacity_hs06)
