"""The simulated space: an event queue in virtual time, factories that decide, machines that live and end."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from vac.scheduling.backoff import reported_message
from vac.scheduling.model import Create, Occupied, SpaceView
from vac.scheduling.shares import LONGEST_STEP_SECONDS
from vac.scheduling.space import CYCLE_SECONDS, is_due, is_fresh
from vac.simulate.measure import Measure
from vac.simulate.nodes import Machine, Node, Polling, make_nodes
from vac.simulate.scenario import Queue, Scenario, spread

BEGINNING = 1.6e9
"""Unix time at which every simulation begins."""
NOTICE_SECONDS = (0.2, 2.0)
"""Time from an end until the engine's event has come and the machine is finished. Each end is noticed by itself."""
FULL_SECONDS = 600.0
"""Pause between the decisions of a full factory with peers, whose ledger needs to know what runs elsewhere."""


class World:
    """One run. Randomness comes from the scenario's seed alone."""

    def __init__(self, scenario: Scenario) -> None:
        space = scenario.space
        self.now = BEGINNING
        self.end = BEGINNING + space.hours * 3600
        self.scenario = scenario
        self.rng = random.Random(f"{space.seed} world")
        self.nodes = make_nodes(scenario, BEGINNING)
        self.queues = {name: Queue(scenario.work(name), BEGINNING) for name in scenario.machinetypes}
        self.polling = Polling(scenario, self.nodes, random.Random(f"{space.seed} network"))
        self.measure = Measure(scenario, self.nodes, self.queues, BEGINNING)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._broken_seconds = spread(space.broken_seconds)
        self._crash_seconds = spread(space.crash_seconds)

    def run(self) -> Measure:
        """Let the time pass and return what was measured."""
        start = spread(self.scenario.space.start)
        for node in self.nodes:
            self._at(start(self.rng), self._start, node)
        self._at(0.0, self._sample)
        while self._events and self._events[0][0] <= self.end:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        self.now = self.end
        self.measure.advance(self.now)
        return self.measure

    def _at(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), call, arguments))

    def _sample(self) -> None:
        self.measure.sample(self.now)
        self._at(self.scenario.space.sample_seconds, self._sample)

    # Daemons

    def _start(self, node: Node) -> None:
        node.up = True
        if len(self.nodes) == 1:
            node.view = SpaceView(node.name, node.factories, node.capacity_hs06)
        self.polling.started(node)
        self._notice(node)
        self.measure.changed(node, self.now)
        rate = self.scenario.space.crashes_per_day / 86400
        if rate:
            self._at(self.rng.expovariate(rate), self._crash, node)
        if node.classic:
            self._cycle(node, node.life)
        else:
            self._wake(node)

    def _crash(self, node: Node) -> None:
        node.forget()
        self.polling.stopped(node, self.now)
        self.measure.changed(node, self.now)
        if self.scenario.space.crash_kills:
            for machine in node.machines:
                self._end(machine)
        self._at(self._crash_seconds(self.rng), self._start, node)

    def _cycle(self, node: Node, life: int) -> None:
        """Do the classic's round: look, ask the space if there is room, create one, sleep."""
        if life != node.life:
            return
        if node.free > 0 or node.ended:
            self._poll(node)
        else:
            self._at(CYCLE_SECONDS + self.polling.classic_seconds, self._cycle, node, life)

    def _poll(self, node: Node) -> None:
        node.polling = True
        seconds, take = self.polling.ask(node, self.now)
        self._at(seconds, self._polled, node, node.life, take)

    def _polled(self, node: Node, life: int, take: Callable[[], None]) -> None:
        if life != node.life:
            return
        node.polling = False
        take()
        if node.classic:
            self._notice(node)
            self._decide(node)
            self._at(CYCLE_SECONDS, self._cycle, node, life)
        else:
            self._wake(node)

    def _alarm(self, node: Node, time: float) -> None:
        if node.alarm == time:
            self._wake(node)

    def _wake(self, node: Node) -> None:
        """Decide, since something has changed or time may have changed the answer."""
        if node.up and not node.classic and (len(self.nodes) == 1 or self._knows(node)):
            self._decide(node)

    def _knows(self, node: Node) -> bool:
        """Return True if it knows the space well enough to decide; if not, or soon not, it asks."""
        age = None if node.answered_time is None else self.now - node.answered_time
        if is_due(age, len(self.nodes)) and not node.polling:
            self._poll(node)
        return is_fresh(age)

    def _decide(self, node: Node) -> None:
        if node.classic and node.free <= 0:
            return
        decision = node.decide(self.now)
        for create in decision.creates:
            self._create(node, create)
        node.alarm = None
        if node.classic:
            return
        full_seconds = FULL_SECONDS if len(self.nodes) > 1 else LONGEST_STEP_SECONDS
        node.alarm = self.now + (CYCLE_SECONDS if node.free > 0 else full_seconds)
        if node.free > 0 and decision.next_time is not None:
            node.alarm = min(node.alarm, decision.next_time)
        self._at(node.alarm - self.now, self._alarm, node, node.alarm)

    # Machines

    def _create(self, node: Node, create: Create) -> None:
        name = create.machinetype
        machine = Machine(node, Occupied(name, create.processors, self.now, None, create.shutdown_time))
        node.machines.append(machine)
        self.polling.changed(node)
        self.measure.created(machine, self.now)
        self._at(self.queues[name].startup(self.rng), self._started, machine)

    def _started(self, machine: Machine) -> None:
        if machine.ended_time is not None:
            return
        node, name, queue = machine.node, machine.seen.machinetype, self.queues[machine.seen.machinetype]
        machine.seen = replace(machine.seen, started_time=self.now)
        node.load.change(machine.seen.processors, self.now)
        self.polling.changed(node)
        left = max(0.0, machine.seen.shutdown_time - self.now)
        if node.broken:
            life = self._broken_seconds(self.rng)
        elif queue.ask(self.now, self.rng):
            machine.useful, machine.message = True, "200 Success"
            self.measure.found(name, self.now)
            life = queue.lifetime(self.rng)
        else:
            machine.message = queue.no_work_message
            life = queue.no_work(self.rng)
        if life >= left:
            life, machine.message = left, "100 Shutdown time has come"
        self._at(life, self._end, machine)
        fizzle_seconds = node.machinetypes[name].fizzle_seconds
        if life > fizzle_seconds:
            self._at(fizzle_seconds, self.polling.changed, node)
        if node.free > 0:
            self._wake(node)

    def _end(self, machine: Machine) -> None:
        if machine.ended_time is not None:
            return
        node, seen = machine.node, machine.seen
        machine.ended_time = self.now
        self.measure.ended(machine, self.now)
        if seen.started_time is not None:
            node.load.change(-seen.processors, self.now)
            fizzle_seconds = node.machinetypes[seen.machinetype].fizzle_seconds
            machine.message = reported_message(machine.message, seen.started_time, self.now, fizzle_seconds)
        node.ended.append(machine)
        if not node.classic:
            self._at(self.rng.uniform(*NOTICE_SECONDS), self._seen, machine)

    def _seen(self, machine: Machine) -> None:
        if machine.node.up and machine in machine.node.ended:
            machine.node.notice(machine)
            self.polling.changed(machine.node)
            self._wake(machine.node)

    def _notice(self, node: Node) -> None:
        """Notice all that has ended, as a daemon that starts or a classic one that looks round."""
        for machine in list(node.ended):
            node.notice(machine)
            self.polling.changed(node)
