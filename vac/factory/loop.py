"""The factory's loop: messages from engines and people, timers, a cycle a minute, decisions when they are due.

The inbox is no SimpleQueue: Python 3.9's waits for ever when a timeout is over before the waiting begins. Timers are by
the monotonic clock.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable

from vac.background import BackgroundWork, Outcome
from vac.config.load import ConfigurationError, Loader
from vac.config.machinetype import VM_MODELS
from vac.drivers import engine as engines
from vac.drivers.engine import ActionKind
from vac.factory.admin_requests import AdminRequests
from vac.factory.decisions import Decisions, Repositories
from vac.factory.effects import Effects
from vac.factory.peers import Answers, Ask, Space
from vac.factory.pipes import Pipes
from vac.factory.report import Report
from vac.factory.state import FactoryState, Message, Stop, Wake
from vac.factory.watch import EnergyShares, Rules, Watcher
from vac.host.probes import health_problem
from vac.lifecycle.phases import Empty, Running, SetAside, Stopping
from vac.lifecycle.table import (
    Released,
    ReleaseFailed,
    Started,
    StartFailed,
    StartUnknown,
    Stimulus,
    Stopped,
    Time,
)
from vac.machines.slots import load_slots
from vac.machines.status import CountedEvent
from vac.scheduling.eligibility import NO_ANSWER
from vac.vacquery.signed_json import identity
from vac.vacquery.vacmon import VacMon

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

log = logging.getLogger(__name__)


class Stuck(Exception):
    """A thread of an engine never returned; only a new process helps."""


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
        self._health: BackgroundWork[str | None] = state.background("health", self._health_checked)
        self.health_time: float | None = None
        self._unavailable: set[str] = set()
        """Engines that have a problem."""
        self._handlers: dict[type, Callable[..., None]] = {
            engines.Observation: self._observed,
            engines.Unobserved: self._unobserved,
            engines.ActionDone: self._acted,
            engines.Changed: self._changed,
            Wake: self._woken,
            Stop: self._stop,
        }

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
        for message in self._receive(wait_seconds):
            handle = self._handlers.get(type(message))
            if handle is not None:
                handle(message)
            elif callable(message):
                message()
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

    def _receive(self, wait_seconds: float) -> list[Message]:
        received: list[Message] = []
        try:
            received.append(self.inbox.get(timeout=max(0.0, wait_seconds)))
            while True:
                received.append(self.inbox.get_nowait())
        except queue.Empty:
            return received

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
            self.state.no_trouble(f"slot {slot.name}")
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

    def _health_checked(self, outcome: Outcome[str | None]) -> None:
        self._note_health(outcome.failure or outcome.value)

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
        """Note which engines have become unavailable or available again: a reason to decide and report anew."""
        unavailable = set()
        for name, engine in self.state.engines.items():
            problem = engine.problem()
            if problem is None:
                self.state.changes.clear(f"engine {name}")
                continue
            unavailable.add(name)
            self.state.unobserved_times[name] = self.state.clock.boot()
            said = "it doesn't answer in time" if engine.stuck_seconds() > 0 else problem
            self.state.changes.say(f"engine {name}", f"{name}: {said}", logging.WARNING)
            if engine.stuck_seconds() > STUCK_SECONDS:
                raise Stuck(f"{name}: {problem}")
        if unavailable != self._unavailable:
            self._unavailable = unavailable
            self.state.changed = True

    def _look(self, name: str) -> None:
        engine = self.state.engines.get(name)
        if engine is not None:
            engine.request_observation()

    def _observed(self, message: engines.Observation) -> None:
        if message.engine not in self.state.engines:
            return
        if message.engine not in self.state.observed:
            self.state.observed.add(message.engine)
            self.state.changed = True
        self.watcher.observed(message)
        self.rules.look_again()

    def _unobserved(self, message: engines.Unobserved) -> None:
        """Note that an end may have gone unseen; conclude nothing else."""
        self.state.unobserved_times[message.engine] = message.time

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

    def _changed(self, message: engines.Changed) -> None:
        self._look(message.engine)
        if not message.name:
            self.state.changed = True

    def _woken(self, message: Wake) -> None:
        self.next_cycle_time = self.state.clock.boot()

    def _stop(self, message: Stop) -> None:
        self.stopping = True


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
