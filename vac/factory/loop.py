"""The factory's loop: messages from engines and people, timers, a cycle a minute, decisions when they are due.

The inbox is no SimpleQueue: Python 3.9's waits for ever when a timeout is over before the waiting begins. Timers are by
the monotonic clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import queue
from collections.abc import Callable

from vac.background import BackgroundWork
from vac.config.load import ConfigurationError, Loader
from vac.config.machinetype import VM_MODELS
from vac.drivers import engine as engines
from vac.drivers.engine import ActionKind
from vac.factory.decisions import Decisions, Repositories
from vac.factory.effects import Effects
from vac.factory.peers import Answers, Ask, Space
from vac.factory.pipes import Pipes
from vac.factory.report import Report
from vac.factory.state import FactoryState, Message, Slot, Stop, Wake
from vac.factory.watch import EnergyShares, Rules, Watcher
from vac.host.probes import health_problem
from vac.lifecycle.phases import Empty, Running, SetAside, Starting, StopOrder, Stopping, Uncertain
from vac.lifecycle.table import (
    EndLowered,
    Released,
    ReleaseFailed,
    Started,
    StartFailed,
    StartUnknown,
    Stimulus,
    StopOrdered,
    Stopped,
    Time,
)
from vac.machines import requests
from vac.machines.slots import load_slots
from vac.machines.status import CountedEvent
from vac.scheduling.eligibility import NO_ANSWER
from vac.vacquery.signed_json import identity
from vac.vacquery.snapshot import VacMon

CYCLE_SECONDS = 60.0
"""From the end of one cycle to the next."""
LATEST_SECONDS = 5.0
"""Longest pause between two turns, so that engines that don't answer are noticed."""
HEALTH_SECONDS = 300.0
"""health_command is run this often."""
STUCK_SECONDS = 600.0
"""Time past its deadline after which a hanging thread of an engine has this process replaced."""
FIXED_SETTINGS = ("state_dir", "factory_name", "docker_host", "libvirt_uri", "vm_domain_type")
"""Another process begins with these if they change; machines run on."""
CLOCK_STEP_SECONDS = 2.0
"""A greater change of the wall clock between two turns is a step, and logged."""

DESTROYED = StopOrder("100 Destroyed by the administrator", by_people=True)

log = logging.getLogger(__name__)


class Stuck(Exception):
    """A thread of an engine never returned; only a new process helps."""


class AdminRequests:
    """Administrators' requests: draining, finishing, destroying; and the site's shutdown time."""

    def __init__(self, state: FactoryState, effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self.waiting = False
        """True while a machine is to be destroyed whose engine hasn't reported its creation yet."""

    def look(self) -> None:
        """Read what is asked and do it. Each request is removed after it has been carried out."""
        self._look_at_drain()
        self.waiting = False
        try:
            pending = requests.pending(self.state.dir)
        except OSError as error:
            self.state.trouble("requests", f"{self.state.dir.requests} can't be read: {error}")
            return
        self.state.trouble("requests", None)
        for request in pending:
            if self._carry_out(request):
                text = f"{request.machine}: the request to {request.action} it can't be removed"
                remove = functools.partial(requests.done, self.state.dir, request)
                self.state.written("requests", text, remove)

    def _look_at_drain(self) -> None:
        now, before = self.state.clock.unix(), self.state.drain
        order = requests.draining(self.state.dir, now)
        if before is not None and order == dataclasses.replace(before, since=now):
            order = before  # the request doesn't say since when it is in force
        if before != order:
            self.state.drain, self.state.changed = order, True
            log.info("%s", f"draining: {order.reason or 'as asked'}" if order else "no longer draining")

    def _carry_out(self, request: requests.Request) -> bool:
        """Carry out one request. Return True when it is done or can't be; a destruction, when the machine has ended."""
        slot = self.state.slots.get(request.machine)
        if slot is None or slot.machine is None or slot.machine.uuid != request.uuid or slot.machine.finished:
            return True
        if request.action == "finish":
            log.info("%s: asked to finish", slot.name)
            return self._lower(slot, self.state.clock.unix())
        self.waiting |= isinstance(slot.phase, (Starting, Uncertain))
        self.effects.handle(slot, StopOrdered(DESTROYED))
        return False

    def obey_shutdown_time(self) -> None:
        """Lower the end of every machine to the site's shutdown_time."""
        shutdown_time = self.state.settings.shutdown_time
        if shutdown_time is not None:
            for slot in self.state.slots:
                if slot.occupied:
                    self._lower(slot, shutdown_time)

    def _lower(self, slot: Slot, wanted: float) -> bool:
        """Lower a machine's end; return False if it has to be tried again."""
        self.effects.handle(slot, EndLowered(wanted))
        return slot.machine is None or f"end {slot.machine.uuid}" not in self.state.troubles


class Factory:
    """One factory. All its methods are for one thread; others put messages into its inbox."""

    def __init__(
        self,
        state: FactoryState,
        vacmon: VacMon,
        loader: Loader,
        inbox: queue.Queue[Message],
        ask: Ask,
        need: Callable[[str, str], None] = lambda role, purpose: None,
    ) -> None:
        self.state = state
        self.inbox = inbox
        self.effects = Effects(state, vacmon)
        self.watcher = Watcher(state, self.effects)
        self.rules = Rules(state, self.effects)
        self.energy = EnergyShares(state)
        self.requests = AdminRequests(state, self.effects)
        self.space = Space(ask, lambda answers: state.post(lambda: self._answered(answers)), state.clock.unix)
        self.repositories = Repositories(state)
        self.decisions = Decisions(state, self.effects, self.space, self.repositories)
        self.report = Report(state, self.decisions, self.effects)
        self.loader = loader
        self._need = need
        self.pipes = Pipes(state)
        now = state.clock.moment()
        self.next_cycle_time = now.boot
        self._clock_offset = now.unix - now.boot
        self.stopping = False
        self.must_restart = False
        """True: it stops because another process is to begin with a changed configuration."""
        self._health: BackgroundWork[str | None] = state.background(
            "health", lambda outcome: self._note_health(outcome.failure or outcome.value)
        )
        self.health_time: float | None = None

    def run(self, alive: Callable[[], None], ready: Callable[[], None]) -> None:
        """Take turns until a Stop comes. alive is called each time, ready after the first one. Raises Stuck."""
        self.turn(0.0)
        ready()
        while not self.stopping:
            alive()
            self.turn(self._wait_seconds())
        self._note_last_observed()

    def turn(self, wait_seconds: float) -> None:
        """Wait for messages, at most so long; handle them, then what time has brought; then decide if it is due."""
        received: list[Message] = []
        with contextlib.suppress(queue.Empty):
            received.append(self.inbox.get(timeout=max(0.0, wait_seconds)))
            while True:
                received.append(self.inbox.get_nowait())
        for message in received:
            self._handle(message)
        now = self.state.clock.moment()
        self._check_clock()
        due = now.boot >= self.next_cycle_time
        if due:
            self._reload()
        if self.stopping:
            return
        if due:
            self._cycle()
        elif self.requests.waiting:
            self.requests.look()
        self.pipes.start_due(now.unix)
        self._check_engines()
        self.rules.check(now)
        for slot in self.state.slots:
            self.effects.handle(slot, Time())
        self.decisions.decide_if_due()
        if due:
            self.state.counters.add(CountedEvent.CYCLE, "", "", self.state.clock.boot() - now.boot)
        self.report.report_if_due()

    def _check_clock(self) -> None:
        """Reset deadlines that were noted by the wall clock after it has been set."""
        now = self.state.clock.moment()
        step, self._clock_offset = now.unix - now.boot - self._clock_offset, now.unix - now.boot
        if abs(step) > CLOCK_STEP_SECONDS:
            log.warning("the host's clock was set by %+.0f s; machines' ages are measured by another", step)
            self.state.history = self.state.history.no_later_than(now.unix)
            self.decisions.clock_was_set()
            self.rules.look_again()
            self.next_cycle_time = now.boot

    def _handle(self, message: Message) -> None:
        if isinstance(message, engines.Observation):
            self._observed(message)
        elif isinstance(message, engines.Unobserved):
            # an end may have gone unseen; no more is concluded
            self.state.unobserved_times[message.engine] = message.time
        elif isinstance(message, engines.ActionDone):
            self._acted(message)
        elif isinstance(message, engines.Changed):
            if message.engine in self.state.engines:
                self.state.engines[message.engine].request_observation()
            self.state.changed |= not message.name
        elif isinstance(message, Wake):
            self.next_cycle_time = self.state.clock.boot()
        elif isinstance(message, Stop):
            self.stopping = True
        else:
            message()

    def _wait_seconds(self) -> float:
        now = self.state.clock.boot()
        times = (
            self.next_cycle_time,
            self.rules.next_time,
            self.decisions.due_time,
            self.report.next_time,
            now + LATEST_SECONDS,
        )
        return min(time for time in times if time is not None) - now

    def _cycle(self) -> None:
        self.requests.look()
        self.requests.obey_shutdown_time()
        self._read_set_aside()
        for slot in self.state.slots:
            if slot.machine and slot.occupied:
                self.state.engine_of(slot.machine.model)
        for machine in self.state.orphans:
            self.state.engine_of(machine.model)
        for engine in self.state.engines.values():
            engine.request_observation()
        self.rules.measure()
        self.energy.divide()
        self._check_health()
        self.repositories.look()
        self.report.cycle()
        self._need_roles()
        self.next_cycle_time = self.state.clock.boot() + CYCLE_SECONDS

    def _read_set_aside(self) -> None:
        """Read the files of machines again that could not be read before."""
        aside = [slot for slot in self.state.slots if isinstance(slot.phase, SetAside)]
        if not aside:
            return
        now = self.state.clock.moment()
        try:
            found = load_slots(self.state.dir, self.state.configuration.machinetypes, self.state.settings)
        except OSError:
            return
        for slot in aside:
            if slot.name in found.unreadable:
                continue
            machine, phase = found.slots.get(slot.name, (None, Empty))
            if machine is not None:
                machine.note_clock(now)
            slot.put(machine)
            slot.phase = phase(now.boot)
            self.state.trouble(f"slot {slot.name}", None)
            self.state.changed = True

    def _note_last_observed(self) -> None:
        """Write when machines were last seen alive, since they go on running unobserved."""
        for slot in self.state.slots:
            machine = slot.machine
            if machine is not None and isinstance(slot.phase, (Running, Stopping)):
                engine = self.state.engine_of(machine.model)
                if slot.observed.alive_time is not None and engine.answers():
                    slot.observed.alive_time = self.state.clock.boot()
                self.effects.renew_heartbeat(slot)

    def _need_roles(self) -> None:
        """Have the other processes restarted where the configuration by which they work changes."""
        settings = self.state.settings
        address, place = settings.metrics_listen, f"{settings.factory_name} in {settings.state_dir}"
        port = identity(settings.vacquery_port, settings.vacquery_key_file)
        self._need("responder", f"{port} for {place}")
        self._need("page", f"{address} for {place}" if address else "")
        configured = {one.machine_model for one in self.state.configuration.machinetypes.values()}
        present = {slot.machine.model for slot in self.state.slots if slot.machine and slot.occupied}
        for role in ("metadata", "mjf"):
            self._need(role, f"VMs of {place}" if (configured | present).intersection(VM_MODELS) else "")

    def _check_health(self) -> None:
        command, now = self.state.settings.health_command, self.state.clock.boot()
        if command is None:
            self._note_health(None)
        elif self.health_time is None or now - self.health_time >= HEALTH_SECONDS:
            if self.health_time is None:
                self._note_health(NO_ANSWER)
            self.health_time = now
            self._health.start("health", lambda: health_problem(command))

    def _note_health(self, problem: str | None) -> None:
        if problem != self.decisions.health_problem:
            self.decisions.health_problem = problem
            self.state.changed = True

    def _reload(self) -> None:
        """Put a changed configuration into force; if it is broken, the last good one stays in force for what runs."""
        try:
            configuration = self.loader.load(self.state.clock.unix())
        except ConfigurationError as error:
            self.state.configuration_broken(error)
            return
        before, after = self.state.settings, configuration.settings
        changed = [name for name in FIXED_SETTINGS if getattr(after, name) != getattr(before, name)]
        if changed:
            log.warning("%s: changed; starting anew", " and ".join(changed))
            self.stopping = self.must_restart = True
        else:
            self.state.configure(configuration)

    def _check_engines(self) -> None:
        """Note engines' problems: each new one, or its end, is a reason to decide and report anew."""
        for name, engine in self.state.engines.items():
            problem = engine.problem()
            said = "it doesn't answer in time" if engine.stuck_seconds() > 0 else problem
            self.state.changed |= self.state.changes.tell(f"engine {name}", problem and f"{name}: {said}")
            if problem is not None:
                self.state.unobserved_times[name] = self.state.clock.boot()
                if engine.stuck_seconds() > STUCK_SECONDS:
                    raise Stuck(f"{name}: {problem}")

    def _observed(self, message: engines.Observation) -> None:
        if message.engine not in self.state.engines:
            return
        if message.engine not in self.state.observed:
            self.state.observed.add(message.engine)
            self.state.changed = True
        self.watcher.observed(message)
        self.rules.look_again()

    def _acted(self, message: engines.ActionDone) -> None:
        """Take in an engine's answer; it may be one whose connection has been given up since."""
        kind, name, uuid = message.action
        engine = self.state.engines.get(message.engine)
        if engine is not None:
            engine.settle(message.action)
        self._log_action(message)
        if kind is ActionKind.DESTROY and message.problem is None:
            self.watcher.released(message.engine, uuid)
        slot = self.state.slots.get(name)
        stimulus = _answer(message)
        if stimulus is not None and slot and slot.machine and slot.machine.uuid == uuid:
            self.effects.handle(slot, stimulus)
            self.rules.look_again()

    def _log_action(self, message: engines.ActionDone) -> None:
        kind, name, uuid = message.action
        key = f"{kind.value} {uuid}"
        if message.problem is None:
            self.state.changes.clear(key)
        elif kind is not ActionKind.CREATE:
            done = "stopped" if kind is ActionKind.STOP else "removed"
            self.state.changes.say(key, f"{name}: not {done}: {message.problem}", logging.WARNING)
        elif message.unavailable:
            log.warning("%s: not known whether it was created: %s", name, message.problem)

    def _answered(self, message: Answers) -> None:
        self.space.answered(message)
        self.state.changed = True


def _answer(message: engines.ActionDone) -> Stimulus | None:
    """Return what an engine's answer is to the slot; None where only a listing counts."""
    kind, problem = message.action.kind, message.problem
    if kind is ActionKind.CREATE:
        if problem is None:
            return Started(message.time)
        return StartUnknown(problem) if message.unavailable else StartFailed(problem)
    if kind is ActionKind.STOP:
        return Stopped() if problem is None else None
    return Released() if problem is None else ReleaseFailed(problem)
