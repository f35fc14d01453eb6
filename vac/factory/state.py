"""State that the parts of a factory share: configuration, slots, engines, memories and counters."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

from vac.background import BackgroundWork, Outcome, in_thread
from vac.clock import Clock, Moment
from vac.config.load import Configuration, ConfigurationError
from vac.config.settings import Settings
from vac.drivers import engine as engines
from vac.drivers.base import EngineState, Usage
from vac.drivers.engine import Engine, engine_name
from vac.lifecycle.phases import Empty, Ended, Phase, Preparing, Running, SetAside, Stopping
from vac.logs import OnChange
from vac.machines import machine as machines
from vac.machines import requests
from vac.machines.layout import StateDir, slot_name
from vac.machines.machine import Machine
from vac.machines.status import CountedEvent, Creation, EventCount
from vac.scheduling.backoff import History
from vac.scheduling.model import MachineEnd

REMEMBERED_CREATIONS = 10

log = logging.getLogger(__name__)

OpenEngine = Callable[[str, Settings], Engine]
"""Opens the engine that makes machines of this machine model."""


class Wake:
    """Look at requests and configuration now."""


class Stop:
    """Leave. Machines go on running."""


Message = Union[engines.Message, Wake, Stop, Callable[[], object]]
"""Something for the loop to handle, or to call."""
_T = TypeVar("_T")


@dataclass
class ObservedState:
    """Observations of one machine by this process. Times are by the monotonic clock."""

    alive_time: float | None = None
    """When an engine's listing last showed it running or paused."""
    ended_time: float | None = None
    """When its end was first seen, however long it takes until that is on disk."""
    engine_state: EngineState | None = None
    usage: Usage = field(default_factory=Usage)
    details: Mapping[str, str] = field(default_factory=dict)
    """Facts about it that have been written down."""
    heartbeat_file: tuple[float, float] | None = None
    """Time of its heartbeat_file, Unix seconds, and when that was written at the latest; None: it isn't there."""
    heartbeat_checked_time: float | None = None
    """When its heartbeat_file was last looked at."""
    busy_time: float | None = None
    """When its CPU use was last measured to be enough."""
    disk_used_bytes: int | None = None
    measured_time: float | None = None
    """When a measurement of its disk use was last asked for."""
    unmeasured_time: float | None = None
    """Since when it has had too many files to be measured in time."""
    measure_seconds: float = 300.0
    """From then to the next one; what takes long is measured less often."""


@dataclass
class Slot:
    """One slot: its phase, its present or last machine, and what this process has seen of that."""

    name: str
    """Host name of its machines."""
    phase: Phase
    machine: Machine | None = None
    observed: ObservedState = field(default_factory=ObservedState)

    @property
    def occupied(self) -> bool:
        """True while it holds a machine of which something may be left in its engine."""
        return not isinstance(self.phase, (Empty, Preparing, SetAside))

    @property
    def running(self) -> bool:
        """True while its machine has started and its end is not on disk."""
        return isinstance(self.phase, (Running, Stopping, Ended))

    def put(self, machine: Machine | None) -> None:
        """Replace its machine."""
        self.machine, self.observed = machine, ObservedState()


class Slots:
    """All slots by name, in order."""

    def __init__(self, names: Iterable[str], found: Iterable[Slot], now: float) -> None:
        self._slots = {slot.name: slot for slot in found}
        self.resize(names, now)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, name: str) -> Slot | None:
        """Return the slot of that name."""
        return self._slots.get(name)

    def lowest_free(self, taken: Collection[str]) -> Slot | None:
        """Return the first empty slot whose name isn't taken."""
        for name in self._slots:
            if name in self._wanted and name not in taken and isinstance(self._slots[name].phase, Empty):
                return self._slots[name]
        return None

    def resize(self, names: Iterable[str], now: float) -> None:
        """Replace the names of slots; a slot that is no longer wanted stays until it is empty."""
        before = self._slots
        self._slots = {name: before.pop(name, Slot(name, Empty(now))) for name in names}
        self._wanted = frozenset(self._slots)
        self._slots.update({name: slot for name, slot in before.items() if slot.occupied})


class Counters:
    """Numbers and durations of events since this process began, for metrics."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], tuple[int, float]] = {}
        """By a CountedEvent's value, kind and outcome."""

    def add(self, event: CountedEvent, kind: str, outcome: str, seconds: float) -> None:
        """Record one occurrence and its duration."""
        count, total = self._counts.get((event.value, kind, outcome), (0, 0.0))
        self._counts[event.value, kind, outcome] = count + 1, total + max(0.0, seconds)

    def totals(self, machinetypes: Collection[str]) -> tuple[EventCount, ...]:
        """Return all counts, after dropping ends of machinetypes other than these: pipes bring ever new ones."""
        for key in [key for key in self._counts if key[0] == CountedEvent.END.value]:
            if key[1] not in machinetypes:
                del self._counts[key]
        return tuple(EventCount(*key, *counted) for key, counted in sorted(self._counts.items()))


@dataclass
class FactoryState:
    """One factory's working state. Only the loop's thread touches it."""

    dir: StateDir
    configuration: Configuration
    slots: Slots
    clock: Clock
    rng: random.Random
    open_engine: OpenEngine
    post: Callable[[Message], object]
    """Puts a message into the loop's inbox, from any thread."""
    started: Moment
    """When this process began: a restart must not punish machines for what it didn't see."""
    changes: OnChange
    """Conditions that are logged when they begin and end; troubles and doubts are among them."""
    history: History
    spawn: Callable[[Callable[[], None], str], object] = in_thread
    """Starts the threads of background work."""
    orphans: list[Machine] = field(default_factory=list)
    """Machines that started, are in no slot and have not been accounted for."""
    foreign: dict[str, float] = field(default_factory=dict)
    """By name, since when an engine has shown a machine of this factory that is in no slot."""
    own_uuids: set[str] = field(default_factory=set)
    """Machines that this process has asked engines for."""
    began_empty: bool = False
    """No machine was on disk when this process began: the directory may be the wrong one."""
    engines: dict[str, Engine] = field(default_factory=dict)
    observed: set[str] = field(default_factory=set)
    """Engines that have answered; nothing is created before."""
    unobserved_times: dict[str, float] = field(default_factory=dict)
    """By engine, when it last could not be observed, or its events broke off."""
    created: deque[Creation] = field(default_factory=lambda: deque(maxlen=REMEMBERED_CREATIONS))
    """The last creations, newest first."""
    failed: dict[str, Creation] = field(default_factory=dict)
    """By machinetype, its last creation that failed, until one succeeds."""
    creation_error: str | None = None
    """Reason of the last failure of a creation that this process began, until one succeeds."""
    configuration_problem: str | None = None
    """Problem of the configuration on disk; the last good one is in force then."""
    problems: tuple[str, ...] = ()
    """Mistakes in it, also those that stop only a machinetype or pipe."""
    counters: Counters = field(default_factory=Counters)
    joules: float | None = None
    """Energy that this host has used since this process began, if the kernel tells."""
    pipes: dict[str, str | None] = field(default_factory=dict)
    """By pipe, its problem; None: there is none."""
    drain: requests.Drain | None = None
    """The administrators' order to create nothing."""
    changed: bool = True
    """Something has happened that a decision should take into account."""
    reported: bool = False
    """True: status.json is up to date."""

    @property
    def settings(self) -> Settings:
        """[settings] in force."""
        return self.configuration.settings

    @property
    def troubles(self) -> dict[str, str]:
        """By key, what can't be written or read in state_dir."""
        return self.changes.texts("disk")

    @property
    def doubts(self) -> dict[str, str]:
        """By kind, why factory_name or state_dir may be wrong. While there are any, no machine is made; orphans,
        foreign machines and old directories stay; and nothing is concluded from a machine's absence."""
        return self.changes.texts("doubt")

    @property
    def doubt(self) -> str | None:
        """The first reason why factory_name or state_dir may be wrong."""
        return next(iter(self.doubts.values()), None)

    def background(
        self, name: str, done: Callable[[Outcome[_T]], object], **limits: Any
    ) -> BackgroundWork[_T]:
        """Return work for threads of this name, whose outcomes are handled in the loop's thread."""
        return BackgroundWork(name, done, clock=self.clock.boot, post=self.post, spawn=self.spawn, **limits)

    def engine_of(self, machine_model: str) -> Engine:
        """Return the engine that makes machines of this model, opened when it is needed first."""
        name = engine_name(machine_model)
        if name not in self.engines:
            engine = self.engines[name] = self.open_engine(machine_model, self.settings)
            found = [slot.machine for slot in self.slots_of(name) if slot.machine]
            left = {machine.uuid: machines.left_process(machine, self.settings) for machine in found}
            names = {machine.uuid: machine.name for machine in found}
            engine.adopt(names, {uuid: process for uuid, process in left.items() if process})
            engine.request_observation()
        return self.engines[name]

    def slots_of(self, engine: str) -> list[Slot]:
        """Return the slots whose present or last machine is that engine's."""
        return [slot for slot in self.slots if slot.machine and engine_name(slot.machine.model) == engine]

    def configure(self, configuration: Configuration) -> None:
        """Put a configuration into force."""
        self.changed |= self.configuration_problem is not None
        self.configuration_problem = None
        self.problems = tuple(map(str, configuration.errors))
        self.doubts_about("configuration", None)
        self.changes.clear("configuration")
        if configuration is self.configuration:
            return
        self.configuration = configuration
        self.log_configuration()
        self.slots.resize(slot_names(self.settings), self.clock.boot())
        self.changed = True

    def log_configuration(self) -> None:
        """Log what is wrong with the configuration in force, and its machinetypes."""
        for problem in self.configuration.warnings:
            log.warning("%s", problem)
        for problem in self.configuration.errors:
            log.error("%s", problem)
        log.info("configuration: machinetypes %s", " ".join(self.configuration.machinetypes) or "none")

    def configuration_broken(self, error: ConfigurationError) -> None:
        """Note that the configuration on disk can't be used: nothing is created, all else goes on by the last good
        one."""
        self.problems = tuple(str(problem) for problem in error.problems)
        first = self.problems[0] if self.problems else str(error)
        self.changed |= first != self.configuration_problem
        self.configuration_problem = first
        self.changes.say("configuration", f"the configuration can't be used: {error}", logging.ERROR)

    def remember(self, outcome: MachineEnd, fizzle_seconds: float) -> None:
        """Add the end of a machine to the history."""
        self.history = self.history.add(outcome, fizzle_seconds)
        self.changed = True

    def written(self, key: str, what: str, write: Callable[[], object]) -> bool:
        """Write something, if need be with the reserve; return False and report it if that fails.

        key: the subject. what: what couldn't be done, in words.
        """
        problem = None
        try:
            self.dir.spending_reserve(write)
        except OSError as error:
            problem = f"{what}: {error}"
        self.trouble(key, problem)
        return problem is None

    def trouble(self, key: str, text: str | None) -> None:
        """Report that something in state_dir can't be written or read; None: that it can, now."""
        self.reported &= not self.changes.tell(("disk", key), text, logging.ERROR)

    def doubts_about(self, kind: str, text: str | None) -> None:
        """Note, or no longer, why factory_name or state_dir may be wrong."""
        self.changed |= self.changes.tell(("doubt", kind), text, logging.ERROR)


def slot_names(settings: Settings) -> list[str]:
    """Return the host names of all slots: as many as this host has logical processors."""
    return [slot_name(settings.factory_name, number) for number in range(settings.host_processors)]
