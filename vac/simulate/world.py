"""The simulated space: an event queue in virtual time, factories that decide, machines that live and end."""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from vac.scheduling.age import CYCLE_SECONDS, is_due, is_fresh
from vac.scheduling.backoff import reported_message
from vac.scheduling.model import Create, Occupied
from vac.simulate.measure import Measure
from vac.simulate.node import Node
from vac.simulate.nodes import make_nodes
from vac.simulate.polling import Polling, alone
from vac.simulate.scenario import Scenario, Work, periods, spread

BEGINNING = 1.6e9
"""Unix time at which every simulation begins."""
NOTICE_SECONDS = 0.5
"""After an end, until the engine's event has come and the machine is finished."""


@dataclass
class Machine:
    """A machine that hasn't ended."""

    node: Node
    machinetype: str
    processors: int
    created_time: float
    shutdown_time: float
    started_time: float | None = None
    message: str | None = None
    """What it will leave."""
    useful: bool = False
    """It has found work."""


class Queue:
    """What there is to do for machines of one type, over time."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.periods = periods(work.when)
        self._starts = [BEGINNING + start for start, _ in self.periods]
        self._left = work.jobs or None
        self.lifetime = spread(work.lifetime)
        self.startup = spread(work.startup)
        self.no_work = spread(work.no_work)
        self.no_work_message = None if work.no_work_message == "none" else work.no_work_message

    def has_work(self, now: float) -> bool:
        """Whether a machine that asks now may find some."""
        place = bisect.bisect_right(self._starts, now) - 1
        return self._left != 0 and place >= 0 and now < BEGINNING + self.periods[place][1]

    def ask(self, now: float, rng: random.Random) -> bool:
        """A machine asks for work."""
        found = self.has_work(now) and rng.random() < self.work.probability
        if found and self._left is not None:
            self._left -= 1
        return found


class World:
    """One run. Randomness comes from the scenario's seed alone."""

    def __init__(self, scenario: Scenario) -> None:
        space = scenario.space
        self.now = BEGINNING
        self.end = BEGINNING + space.hours * 3600
        self.scenario = scenario
        self.rng = random.Random(f"{space.seed} world")
        self.nodes = make_nodes(scenario, BEGINNING)
        self.queues = {name: Queue(scenario.work(name)) for name in scenario.machinetypes}
        self.polling = Polling(scenario, self.nodes, random.Random(f"{space.seed} network"))
        self.measure = Measure(scenario, self.nodes, self.queues, BEGINNING)
        self.machines: dict[int, Machine] = {}
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._broken_seconds = spread(space.broken_seconds)
        self._crash_seconds = spread(space.crash_seconds)

    def run(self) -> Measure:
        """Let the time pass; returns what was seen."""
        start = spread(self.scenario.space.start)
        for node in self.nodes:
            self._at(start(self.rng), self._start, node)
        self._at(0.0, self._sample)
        while self._events and self._events[0][0] <= self.end:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        self.now = self.end
        self.measure.finish(self.now)
        return self.measure

    def _at(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), call, arguments))

    def _sample(self) -> None:
        self.measure.sample(self.now)
        self._at(self.scenario.space.sample_seconds, self._sample)

    # Daemons

    def _start(self, node: Node) -> None:
        node.up = True
        self.polling.started(node)
        self._notice(node)
        self.measure.available(node, True, self.now)
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
        self.measure.available(node, False, self.now)
        if self.scenario.space.crash_kills:
            for number in list(node.machines):
                self._end(number)
        self._at(self._crash_seconds(self.rng), self._start, node)

    def _cycle(self, node: Node, life: int) -> None:
        """The classic's round: look, ask the space if there is room, create one, sleep."""
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
        """Something has changed, or time may have changed the answer."""
        if not node.up or node.classic or node.free <= 0:
            return
        if len(self.nodes) == 1:
            alone(node, self.now)
        elif not self._knows(node):
            return
        self._decide(node)

    def _knows(self, node: Node) -> bool:
        """Whether it knows the space well enough to decide; if not, or soon not, it asks."""
        age = None if node.answered_time is None else self.now - node.answered_time
        if is_due(age, len(self.nodes)) and not node.polling:
            self._poll(node)
        return is_fresh(age)

    def _decide(self, node: Node) -> None:
        if node.free <= 0:
            return
        decision = node.decide(self.now)
        for create in decision.creates:
            self._create(node, create)
        node.alarm = None
        if node.free > 0 and not node.classic:
            times = (decision.next_time, self.now + CYCLE_SECONDS)
            node.alarm = min(time for time in times if time is not None)
            self._at(node.alarm - self.now, self._alarm, node, node.alarm)

    # Machines

    def _create(self, node: Node, create: Create) -> None:
        number = next(self._numbers)
        name, processors = create.machinetype, create.processors
        self.machines[number] = Machine(node, name, processors, self.now, create.shutdown_time)
        node.begin(number, Occupied(name, processors, self.now, None, create.shutdown_time))
        self.polling.changed(node)
        self.measure.created(node, name, processors, self.now)
        self._at(self.queues[name].startup(self.rng), self._started, number)

    def _started(self, number: int) -> None:
        machine = self.machines.get(number)
        if machine is None:
            return
        node, queue = machine.node, self.queues[machine.machinetype]
        machine.started_time = self.now
        node.load.change(machine.processors, self.now)
        node.started(number, self.now)
        self.polling.changed(node)
        left = max(0.0, machine.shutdown_time - self.now)
        if node.broken:
            life = self._broken_seconds(self.rng)
        elif queue.ask(self.now, self.rng):
            machine.useful, machine.message = True, "200 Success"
            self.measure.found(machine.machinetype, self.now)
            life = queue.lifetime(self.rng)
        else:
            machine.message = queue.no_work_message
            life = queue.no_work(self.rng)
        if life >= left:
            life, machine.message = left, "100 Shutdown time has come"
        self._at(life, self._end, number)
        fizzle_seconds = node.machinetypes[machine.machinetype].fizzle_seconds
        if life > fizzle_seconds:
            self._at(fizzle_seconds, self.polling.changed, node)
        self._wake(node)

    def _end(self, number: int) -> None:
        machine = self.machines.pop(number, None)
        if machine is None:
            return
        node, started = machine.node, machine.started_time
        self.measure.ended(
            node, machine.machinetype, machine.processors, machine.created_time, machine.useful, self.now
        )
        message = None
        if started is not None:
            node.load.change(-machine.processors, self.now)
            fizzle_seconds = node.machinetypes[machine.machinetype].fizzle_seconds
            message = reported_message(machine.message, started, self.now, fizzle_seconds)
        node.ended.append((number, self.now, message))
        if not node.classic:
            self._at(NOTICE_SECONDS, self._seen, node)

    def _seen(self, node: Node) -> None:
        if node.up and node.ended:
            self._notice(node)
            self._wake(node)

    def _notice(self, node: Node) -> None:
        for number, time, message in node.ended:
            node.notice(number, time, message)
        if node.ended:
            self.polling.changed(node)
        node.ended = []
