"""The factory's loop: messages from engines and people, timers, a cycle a minute, decisions when they are due.

The inbox is no SimpleQueue: Python 3.9's waits for ever when a timeout is over before the waiting begins.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from typing import Union

from vac.config.load import ConfigurationError, Loader
from vac.drivers import engine as engines
from vac.drivers.engine import ActionKind
from vac.factory.contexts import ContextFailed, ContextMade, ContextMessage, Contexts, Run, in_thread
from vac.factory.creation import Creation
from vac.factory.deciding import Deciding
from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.orders import Orders
from vac.factory.pipes import PipeFetched, Pipes
from vac.factory.reporting import Reporting
from vac.factory.repositories import Repositories
from vac.factory.rules import Rules
from vac.factory.slots import Slot
from vac.factory.space import Answers, Ask, Space
from vac.factory.watching import Watcher
from vac.host.probes import (
    DiskMeasured,
    DiskMessage,
    DiskMeter,
    DiskNotMeasured,
    HealthCheck,
    HealthChecked,
    RepositorySeen,
    RepositoryWatch,
)
from vac.machines.status import Happening
from vac.scheduling.eligibility import NO_ANSWER

log = logging.getLogger(__name__)

CYCLE_SECONDS = 60.0
"""From the end of one cycle to the next."""
LATEST_SECONDS = 5.0
"""The loop goes round at least this often, to notice engines that don't answer."""
HEALTH_SECONDS = 300.0
"""health_command is run this often."""
STUCK_SECONDS = 600.0
"""An engine's thread that hangs so long past its deadline is beyond help: this process has to be replaced."""


class Wake:
    """Look at requests and configuration now."""


class Stop:
    """Leave. Machines go on running."""


class Stuck(Exception):
    """A thread of an engine never returned; only a new process helps."""


Message = Union[
    engines.Message,
    ContextMessage,
    DiskMessage,
    HealthChecked,
    RepositorySeen,
    PipeFetched,
    Answers,
    Wake,
    Stop,
]


class Factory:
    """One factory. All its methods are for one thread; others put messages into its inbox."""

    def __init__(
        self,
        floor: Floor,
        loader: Loader,
        inbox: queue.Queue[Message],
        ask: Ask,
        run: Run = in_thread,
        need: Callable[[str, str], None] = lambda role, purpose: None,
    ) -> None:
        self.floor = floor
        self.inbox = inbox
        self.ending = Ending(floor)
        self.creation = Creation(floor, self.ending, Contexts(inbox.put, run))
        self.watcher = Watcher(floor, self.ending)
        self.rules = Rules(floor, self.ending, DiskMeter(inbox.put))
        self.orders = Orders(floor, self.ending)
        self.space = Space(ask, inbox.put, floor.clock)
        self.repositories = Repositories(floor, RepositoryWatch(inbox.put))
        self.deciding = Deciding(floor, self.creation, self.orders, self.space, self.repositories)
        self.reporting = Reporting(floor, self.deciding)
        self.loader = loader
        self._need = need
        self.pipes = Pipes(floor, inbox.put)
        self.next_cycle_time = floor.clock()
        self._turn_time = self.next_cycle_time
        self.stopping = False
        self.health = HealthCheck(inbox.put)
        self.health_time: float | None = None
        self._unwell: set[str] = set()
        """Engines that have a problem."""
        self._handlers: dict[type, Callable[..., None]] = {
            ContextMade: self._context_made,
            ContextFailed: self.creation.context_failed,
            engines.Observation: self._observed,
            engines.ObservationFailed: self._unseen,
            engines.ActionDone: self._acted,
            engines.Changed: self._changed,
            DiskMeasured: self.rules.measured,
            DiskNotMeasured: self.rules.not_measured,
            HealthChecked: self._health_checked,
            RepositorySeen: self.repositories.seen,
            Answers: self._answered,
            PipeFetched: self._pipe_fetched,
            Wake: self._woken,
            Stop: self._stop,
        }

    def run(self, alive: Callable[[], None], ready: Callable[[], None]) -> None:
        """Go round until a Stop comes. alive is called each time, ready once all has been done once. Raises Stuck."""
        self.turn(0.0)
        ready()
        while not self.stopping:
            alive()
            self.turn(self._wait_seconds())

    def turn(self, wait_seconds: float) -> None:
        """Wait for messages, at most so long; handle them, then what time has brought; then decide if it is due."""
        for message in self._receive(wait_seconds):
            self._handlers[type(message)](message)
        now = self.floor.clock()
        if now < self._turn_time:
            self._clock_was_set_back(now)
        self._turn_time = now
        due = now >= self.next_cycle_time
        if due:
            self._reload()
        if self.stopping:
            return
        if due:
            self._cycle()
        self.pipes.start_due(now)
        self._check_engines()
        self.rules.check(now)
        self.creation.check(now)
        self.deciding.decide_if_due()
        if due:
            self.floor.tallies.add(Happening.CYCLE, "", "", self.floor.clock() - now)
        self.reporting.report_if_due()

    def _clock_was_set_back(self, now: float) -> None:
        """Nothing waits for times that were noted by the wrong clock."""
        self.next_cycle_time = now
        self.floor.changed = True
        self.floor.history = self.floor.history.no_later_than(now)
        for slot in self.floor.slots:
            slot.known_since = min(slot.known_since, now)
            if slot.stopped_time is not None:
                slot.stopped_time = min(slot.stopped_time, now)
        self.rules.look_again()

    def _receive(self, wait_seconds: float) -> list[Message]:
        received: list[Message] = []
        try:
            received.append(self.inbox.get(timeout=max(0.0, wait_seconds)))
            while True:
                received.append(self.inbox.get_nowait())
        except queue.Empty:
            return received

    def _wait_seconds(self) -> float:
        now = self.floor.clock()
        times = (
            self.next_cycle_time,
            self.rules.next_time,
            self.deciding.next_time,
            self.reporting.next_time,
            now + LATEST_SECONDS,
        )
        return min(time for time in times if time is not None) - now

    def _cycle(self) -> None:
        self.orders.look()
        self.orders.obey_shutdown_time()
        for slot in self.floor.slots:
            if slot.machine and slot.occupied:
                self.floor.engine_of(slot.machine.model)
            if slot.removing_since is not None:
                self.ending.retry_release(slot)
        for machine in self.floor.strays:
            self.floor.engine_of(machine.model)
        for engine in self.floor.engines.values():
            engine.request_observation()
        self.rules.measure()
        self._check_health()
        self.repositories.look()
        self.reporting.cycle()
        self._need_page()
        self.next_cycle_time = self.floor.clock() + CYCLE_SECONDS

    def _need_page(self) -> None:
        """The page reads what this factory writes, and is started anew where that or its address changes."""
        settings = self.floor.settings
        address = settings.metrics_listen
        self._need("page", f"{address} {settings.state_dir}" if address else "")

    def _check_health(self) -> None:
        command, now = self.floor.settings.health_command, self.floor.clock()
        if command is None:
            self._health_checked(HealthChecked(None))
        elif self.health_time is None or not 0 <= now - self.health_time < HEALTH_SECONDS:
            if self.health_time is None:
                self._health_checked(HealthChecked(NO_ANSWER))
            self.health_time = now
            self.health.start(command)

    def _health_checked(self, message: HealthChecked) -> None:
        if message.problem != self.deciding.health_problem:
            self.deciding.health_problem = message.problem
            self.floor.changed = True

    def _reload(self) -> None:
        """Take up a changed configuration; a broken one leaves the last good one in force for what runs."""
        try:
            configuration = self.loader.load(self.floor.clock())
        except ConfigurationError as error:
            self.floor.configuration_broken(error)
            return
        settings = configuration.settings
        if (
            settings.state_dir != self.floor.state.root
            or settings.factory_name != self.floor.settings.factory_name
        ):
            log.warning("state_dir or factory_name has changed: starting anew with them")
            self.stopping = True
            return
        self.floor.configure(configuration)

    def _check_engines(self) -> None:
        """An engine that falls ill, or is well again, is a reason to decide and report anew."""
        unwell = set()
        for name, engine in self.floor.engines.items():
            problem = engine.problem()
            if problem is None:
                self.floor.changes.clear(f"engine {name}")
                continue
            unwell.add(name)
            said = "it doesn't answer in time" if engine.stuck_seconds() > 0 else problem
            self.floor.changes.say(f"engine {name}", f"{name}: {said}", logging.WARNING)
            if engine.stuck_seconds() > STUCK_SECONDS:
                raise Stuck(f"{name}: {problem}")
        if unwell != self._unwell:
            self._unwell = unwell
            self.floor.changed = True

    def _look(self, name: str) -> None:
        engine = self.floor.engines.get(name)
        if engine is not None:
            engine.request_observation()

    def _observed(self, message: engines.Observation) -> None:
        if message.engine not in self.floor.engines:
            return
        self.floor.answered(message.engine)
        self.watcher.observed(message)
        self.rules.look_again()

    def _answered(self, message: Answers) -> None:
        self.space.answered(message)
        self.floor.changed = True

    def _unseen(self, message: engines.ObservationFailed) -> None:
        """Nothing is concluded from not seeing."""

    def _context_made(self, message: ContextMade) -> None:
        self.creation.context_made(message, draining=self.orders.drain is not None)

    def _acted(self, message: engines.ActionDone) -> None:
        """The engine may be one whose connection has been given up since: late results may still arrive."""
        kind, name, uuid = message.action
        engine = self.floor.engines.get(message.engine)
        if engine is not None:
            engine.settle(message.action)
        slot = self.floor.slots.get(name)
        if slot is not None and (slot.machine is None or slot.machine.uuid != uuid):
            slot = None
        if kind is ActionKind.CREATE:
            self._created(slot, message)
        elif kind is ActionKind.STOP:
            self._stopped(slot, message)
        else:
            self._destroyed(slot, message)

    def _created(self, slot: Slot | None, message: engines.ActionDone) -> None:
        """An observation asked for earlier tells nothing of the machine, though it may have ended already."""
        if slot is not None and message.problem is None:
            self.creation.created(slot, message)
            self.rules.look_again()
        elif slot is not None:
            self.creation.refused(slot, message)
        if message.problem is None:
            self._look(message.engine)

    def _stopped(self, slot: Slot | None, message: engines.ActionDone) -> None:
        """The next observation shows it as ended; if not, it is asked for again when the rules are next asked."""
        _, name, uuid = message.action
        if message.problem is None:
            self.floor.changes.clear(f"stop {uuid}")
            self._look(message.engine)
            if slot is not None:
                slot.stopped_time = self.floor.clock()
            return
        if slot is not None:
            slot.stopping, slot.stop_failed_time = False, self.floor.clock()
        text = f"{name}: not stopped: {message.problem}"
        self.floor.changes.say(f"stop {uuid}", text, logging.WARNING)

    def _destroyed(self, slot: Slot | None, message: engines.ActionDone) -> None:
        _, name, uuid = message.action
        if message.problem is None:
            self.floor.changes.clear(f"destroy {uuid}")
            self.watcher.gone(message.engine, uuid)
            if slot is not None:
                self.ending.released(slot)
            return
        text = f"{name}: not removed: {message.problem}"
        self.floor.changes.say(f"destroy {uuid}", text, logging.WARNING)
        if slot is not None:
            self.ending.destroyed_or_not(slot, "failed")

    def _changed(self, message: engines.Changed) -> None:
        self._look(message.engine)
        if not message.name:
            self.floor.changed = True

    def _pipe_fetched(self, message: PipeFetched) -> None:
        """Another document is another configuration, which is loaded at once."""
        if self.pipes.fetched(message):
            self.next_cycle_time = self.floor.clock()

    def _woken(self, message: Wake) -> None:
        self.next_cycle_time = self.floor.clock()

    def _stop(self, message: Stop) -> None:
        self.stopping = True
