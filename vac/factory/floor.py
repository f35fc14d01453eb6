"""What the parts of a factory share: its configuration, state, slots, engines and what it remembers."""

from __future__ import annotations

import errno
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vac.config.load import Configuration, ConfigurationError
from vac.config.settings import Settings
from vac.drivers.engine import InlineEngine
from vac.drivers.registry import engine_name
from vac.factory.monitor import Monitor
from vac.factory.slots import Slot, Slots
from vac.factory.tallies import Tallies
from vac.logs import OnChange
from vac.machines import files, statefiles
from vac.machines import machine as machines
from vac.machines.layout import StateDir, slot_name
from vac.machines.machine import Machine
from vac.machines.status import Creation, Happening
from vac.machines.sweeping import Sweeper
from vac.scheduling.backoff import History
from vac.scheduling.model import Outcome

REMEMBERED_CREATIONS = 10

log = logging.getLogger(__name__)

OpenEngine = Callable[[str, Settings], InlineEngine]
"""Opens the engine that makes machines of this machine model."""


@dataclass
class Floor:
    """One factory's working state. Only the loop's thread touches it."""

    state: StateDir
    configuration: Configuration
    slots: Slots
    clock: Callable[[], float]
    """Unix seconds."""
    rng: random.Random
    open_engine: OpenEngine
    started_time: float
    """When this process began: a restart must not punish machines for what it didn't see."""
    changes: OnChange
    history: History
    monitor: Monitor
    sweeper: Sweeper
    engines: dict[str, InlineEngine] = field(default_factory=dict)
    created: deque[Creation] = field(default_factory=lambda: deque(maxlen=REMEMBERED_CREATIONS))
    """The last creations, newest first."""
    failed: dict[str, Creation] = field(default_factory=dict)
    """By machinetype, its last creation that failed, until one succeeds."""
    configuration_problem: str | None = None
    """Why the configuration on disk can't be used; then the last good one is in force."""
    sure: bool = True
    """Has the configuration been read as a whole since the start? If not, factory_name or state_dir may be defaults
    that stand in for what could not be read, and engines and directories those of another factory."""
    problems: tuple[str, ...] = ()
    """All that is wrong with it."""
    strays: list[Machine] = field(default_factory=list)
    """Machines that started, are in no slot and have not been accounted for."""
    observed: set[str] = field(default_factory=set)
    """Engines that have been seen to answer; nothing is created before."""
    tallies: Tallies = field(default_factory=Tallies)
    pipes: dict[str, str | None] = field(default_factory=dict)
    """By pipe, what is the matter with it; None: nothing."""
    changed: bool = True
    """Something has happened that a decision should take into account."""
    reported: bool = False
    """What people are shown is up to date."""

    @property
    def settings(self) -> Settings:
        """[settings] in force."""
        return self.configuration.settings

    def engine_of(self, machine_model: str) -> InlineEngine:
        """The engine that makes machines of this model, opened when it is needed first."""
        name = engine_name(machine_model)
        if name not in self.engines:
            engine = self.engines[name] = self.open_engine(machine_model, self.settings)
            found = [slot.machine for slot in self.slots_of(name) if slot.machine]
            engine.adopt({machine.uuid: machine.name for machine in found})
            left = {machine.uuid: machines.left_process(machine, self.settings) for machine in found}
            engine.follow({uuid: process for uuid, process in left.items() if process})
            engine.request_observation()
        return self.engines[name]

    def answered(self, engine: str) -> None:
        """This engine has been seen to answer."""
        if engine not in self.observed:
            self.observed.add(engine)
            self.changed = True

    def slots_of(self, engine: str) -> list[Slot]:
        """Slots whose machine is, or was, that engine's."""
        return [slot for slot in self.slots if slot.machine and engine_name(slot.machine.model) == engine]

    def configure(self, configuration: Configuration) -> None:
        """Put a configuration into force."""
        self.changed |= self.configuration_problem is not None
        self.configuration_problem, self.problems, self.sure = None, (), True
        self.changes.clear("configuration")
        statefiles.clear_error(self.state, statefiles.ErrorKind.CONFIGURATION)
        if configuration is self.configuration:
            return
        before, self.configuration = self.settings, configuration
        for problem in configuration.warnings:
            log.warning("%s", problem)
        log.info("configuration: machinetypes %s", " ".join(configuration.machinetypes) or "none")
        self.slots.resize(slot_names(self.settings))
        if _connections(before) != _connections(self.settings):
            self._close_engines()
        self.changed = True

    def configuration_broken(self, error: ConfigurationError) -> None:
        """The configuration on disk can't be used: nothing is created, all else goes on by the last good one."""
        self.problems = tuple(str(problem) for problem in error.problems)
        first = self.problems[0] if self.problems else str(error)
        if first != self.configuration_problem:
            self.changed = True
        self.configuration_problem = first
        self.changes.say("configuration", f"the configuration can't be used: {error}", logging.ERROR)
        statefiles.set_error(self.state, statefiles.ErrorKind.CONFIGURATION, first)

    def _close_engines(self) -> None:
        now = self.clock()
        for engine in self.engines.values():
            engine.close()
        self.engines.clear()
        self.observed.clear()
        for slot in self.slots:
            slot.creating = slot.stopping = False
            slot.known_since = now

    def remember(self, outcome: Outcome, fizzle_seconds: float) -> None:
        """A machine has ended like this."""
        self.history = self.history.add(outcome, fizzle_seconds)
        self.changed = True

    def creation_failed(self, machinetype: str, reason: str, created_time: float | None = None) -> None:
        """One of this type could not be made, whose creation was begun at that time, if not now."""
        now = self.clock()
        begun = now if created_time is None else created_time
        self.history = self.history.add(Outcome(machinetype, begun, None, now, None), 0.0)
        kind = self.configuration.machinetypes.get(machinetype)
        self.tallies.add(Happening.CREATION, kind.machine_model if kind else "unknown", "failed", now - begun)
        self.failed[machinetype] = Creation(now, machinetype, reason=reason)
        self.changes.say(f"create {machinetype}", f"{machinetype}: not created: {reason}", logging.WARNING)
        statefiles.set_error(self.state, statefiles.ErrorKind.CREATION, f"{machinetype}: {reason}")
        self.changed = True

    def written(self, key: str, what: str, write: Callable[[], object]) -> bool:
        """Write something that matters, if need be with the reserve; False, and said, if the disk is full all the same
        or somebody has removed the directory.

        key is what it is about and what, in words, what it can't be done. Raises other OSErrors.
        """
        try:
            self.state.spending_reserve(write)
        except OSError as error:
            if error.errno not in (*files.NO_SPACE, errno.ENOENT):
                raise
            self.changes.say(f"write {key}", f"{what}: {error}", logging.ERROR)
            return False
        self.changes.clear(f"write {key}")
        return True

    def mark_started(self, machine: Machine, time: float) -> bool:
        """The machine runs, since that time. False: the disk is too full to write that, and it is to be tried again."""
        text = f"{machine.name}: that it runs can't be written"
        return self.written(machine.uuid, text, lambda: machines.mark_started(self.state, machine, time))

    def creation_succeeded(self, machine: Machine) -> None:
        """One of this type has been made."""
        self.failed.pop(machine.machinetype, None)
        self.changes.clear(f"create {machine.machinetype}")
        statefiles.clear_error(self.state, statefiles.ErrorKind.CREATION)
        self.created.appendleft(
            Creation(machine.created_time, machine.machinetype, machine.name, machine.processors)
        )
        self.changed = True


def slot_names(settings: Settings) -> list[str]:
    """The host names of all slots: as many as this host has logical processors."""
    return [slot_name(settings.factory_name, number) for number in range(settings.host_processors)]


def _connections(settings: Settings) -> tuple[object, ...]:
    """The settings by which drivers reach their engines."""
    return settings.docker_host, settings.libvirt_uri, settings.vm_domain_type
