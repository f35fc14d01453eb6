"""A factory with simulated engines in virtual time, which tests can kill and start again."""

from __future__ import annotations

import os
import queue
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fake_driver import FakeEngine, FakeMachine, InlineEngine, Script
from vac.accounting.records import message_fields
from vac.background import Outcome
from vac.clock import Clock
from vac.config.ini import Problem
from vac.config.load import Configuration, ConfigurationError, Loader
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import Driver, MachineSpec
from vac.drivers.engine import Action, Changed, engine_name
from vac.factory import watch
from vac.factory.loop import Factory
from vac.factory.peers import Answers, Ask
from vac.factory.process import first_configuration, open_factory
from vac.factory.state import Message, Slot, Wake
from vac.host.probes import DiskUse
from vac.machines import layout, requests
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.status import Status

START = 1_800_000_000.0
FACTORY = "f1.example.com"
BOOTED = 1000.0


class VirtualClock(Clock):
    """Clocks that tests move: forward both, backward the wall clock alone."""

    def __init__(self) -> None:
        self.boot_id = "boot-1"
        self._boot = BOOTED
        self._offset = START - self._boot

    def unix(self) -> float:
        return self._boot + self._offset

    def boot(self) -> float:
        return self._boot

    def steady(self) -> float:
        """Return what the wall clock would show if it had never been set: the engines' time."""
        return self._boot + START - BOOTED

    def set(self, seconds: float) -> None:
        """Set the wall clock forward by so much."""
        self._offset += seconds

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self.unix()

    @now.setter
    def now(self, unix: float) -> None:
        passed = unix - self.unix()
        if passed >= 0:
            self._boot += passed
        else:
            self.set(passed)


class Meter:
    """In place of vac.host.probes.measure_disk: keeps what it is asked for, and knows nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.directories: dict[str, Sequence[Path]] = {}

    def __call__(self, uuid: str, directories: Sequence[Path]) -> DiskUse:
        self.asked.append(uuid)
        self.directories[uuid] = directories
        raise OSError("not simulated")


def simulate_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run faster, without root and without processes: no owners, no fsync, no du, little reserve."""

    def nothing(*arguments: object, **keywords: object) -> None:
        """In place of a system call."""

    for call in ("chown", "fchown", "fsync"):
        monkeypatch.setattr(os, call, nothing)
    monkeypatch.setattr(layout, "RESERVE_BYTES", 4096)
    monkeypatch.setattr(watch, "measure_disk", Meter())


def one_type(name: str = "t", **options: Any) -> Machinetype:
    """A machinetype whose machines have to live for 100 s."""
    values: dict[str, Any] = {
        "target_share": 1.0,
        "machine_model": "docker",
        "fizzle_seconds": 100,
        "machines_dir_days": 0.0,
        "machinegroup": name,
        **options,
    }
    return Machinetype(name, **values)


def broken(text: str = "no such model", settings: Settings | None = None) -> ConfigurationError:
    """Return an error such as the loader raises."""
    return ConfigurationError(
        [Problem("vac.conf", "machinetype t", "machine_model", text)], settings=settings
    )


class Configured(Loader):
    """A loader whose configuration is an attribute."""

    def __init__(self, choose: Callable[[], Configuration]) -> None:
        self._choose = choose

    def load(self, now: float) -> Configuration:
        return self._choose()


def _at_once(work: Callable[[], None], name: str) -> None:
    work()


class HoldingEngine(InlineEngine):
    """Carries out at once what it is asked for, unless the world holds actions back: then release() does."""

    def __init__(self, world: World, name: str, driver: Driver) -> None:
        super().__init__(name, lambda: driver, world.inbox.put, world.clock.boot)
        self._world = world

    def _submit(self, action: Action, call: Callable[[Driver], None]) -> None:
        if self._world.hold:
            self._world.held.append(lambda: super(HoldingEngine, self)._submit(action, call))
        else:
            super()._submit(action, call)


class World:
    """One state_dir, its engines, and the factory that works there at present.

    All attributes may be changed at any time. Engines are made when they are first used, by registry name.
    """

    def __init__(self, root: Path, *types: Machinetype, slots: int = 2, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.state = StateDir(root)
        self.types: tuple[Machinetype, ...] = types or (one_type(),)
        self.settings = Settings(
            **{
                "vac_space": "space.example.org",
                "factory_name": FACTORY,
                "factories": (FACTORY,),
                "state_dir": root,
                "host_processors": slots,
                "total_processors": slots,
                "overload_per_processor": 1e6,
                "gocdb_sitename": "SITE",
                "hs06_per_processor": 10.0,
                **settings,
            }
        )
        self.configuration_error: ConfigurationError | None = None
        self.scripts: Callable[[MachineSpec], Script] = lambda spec: Script()
        self.hook: Callable[[str, str], None] = lambda call, moment: None
        self.engines: dict[str, FakeEngine] = {}
        self.made: list[MachineSpec] = []
        """All machines that an engine was asked for and has not refused."""
        self.ask_peers: Ask = lambda *_: Answers(0.0)
        """Tells, in a thread, what peers say; of use if settings have more than one factory."""
        self.spawn: Callable[[Callable[[], None], str], object] = _at_once
        """Starts background work: at once, unless a test puts something else there."""
        self.wrong_directory = False
        """An empty state_dir is the wrong one, not new."""
        self.hold = False
        """Engines don't begin what they are asked for …"""
        self.held: list[Callable[[], None]] = []
        """… but keep it here."""
        self._heard: dict[str, int] = {}
        self._starts = 0
        self._configuration: Configuration | None = None
        self.inbox: queue.Queue[Message] = queue.Queue()
        self.factory: Factory

    def configuration(self) -> Configuration:
        """The configuration at present: the same object as long as nothing in it changes."""
        if self.configuration_error is not None:
            raise self.configuration_error
        types = {one.name: one for one in self.types}
        last = self._configuration
        if last is None or last.settings is not self.settings or last.machinetypes != types:
            self._configuration = last = Configuration(self.settings, types, {}, {}, ())
        return last

    def engine(self, name: str = "docker") -> FakeEngine:
        """The engine of this name, which outlives factories."""
        if name not in self.engines:

            def script(spec: MachineSpec) -> Script:
                chosen = self.scripts(spec)
                if chosen.failure is None:
                    self.made.append(spec)
                return chosen

            self.engines[name] = FakeEngine(self.clock.steady, script, self._called)
        return self.engines[name]

    def _called(self, call: str, moment: str) -> None:
        self.hook(call, moment)

    def open_engine(self, machine_model: str, settings: Settings) -> InlineEngine:
        """See vac.factory.state.OpenEngine."""
        name = engine_name(machine_model)
        return HoldingEngine(self, name, self.engine(name).driver())

    def start(self) -> Factory:
        """Start a factory, as the process does; the one before is no more."""
        self.inbox = queue.Queue()
        self._starts += 1
        configuration, error = first_configuration(self.configuration)
        assert configuration is not None
        self.state.prepare()
        self.factory = open_factory(
            self.state,
            configuration,
            Configured(self.configuration),
            self.inbox,
            error,
            clock=self.clock,
            rng=random.Random(self._starts),
            open_engine=self.open_engine,
            ask=self.ask_peers,
            spawn=self.spawn,
        )
        if not self.wrong_directory:
            self.factory.state.began_empty = False
        return self.factory

    def turn(self) -> None:
        """Let the factory do all there is to do at this moment."""
        while True:
            self.factory.turn(0.0)
            self._tell_changes()
            if self.inbox.empty():
                return

    def run(self, seconds: float, step: float = 5.0) -> None:
        """Let time pass in steps."""
        end = self.clock.now + seconds
        self.turn()
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + step)
            self.turn()

    def wake(self) -> None:
        """As a command does after leaving a request; the factory takes its turn."""
        self.inbox.put(Wake())
        self.turn()

    def release(self) -> None:
        """Engines do what was held back; the factory takes its turn."""
        self.hold = False
        held, self.held = self.held, []
        for act in held:
            act()
        self.turn()

    def fill(self) -> None:
        """Start a factory and let it create what it can."""
        self.start()
        self.run(120.0)

    def measured(self, machine: Machine, used_bytes: int | None, seconds: float = 0.1) -> None:
        """A measurement of a machine's disk use comes."""
        outcome = Outcome(machine.uuid, DiskUse(used_bytes, seconds))
        self.inbox.put(lambda: self.factory.rules.measured(outcome))

    def told_of_changes(self, engine: str) -> None:
        """The factory knows of all that has changed at this engine until now."""
        self._heard[engine] = len(self.engines[engine].changes)

    def _tell_changes(self) -> None:
        for name, engine in self.engines.items():
            engine.wake()
            if self._heard.get(name) != len(engine.changes) and engine.unavailable is None:
                self.told_of_changes(name)
                self.inbox.put(Changed(name, ""))

    # What there is

    def slot(self, number: int = 0) -> Slot:
        """A slot of the present factory."""
        slot = self.factory.state.slots.get(f"f1-{number:02d}.example.com")
        assert slot is not None
        return slot

    def machine(self, number: int = 0) -> Machine:
        """The machine in it."""
        machine = self.slot(number).machine
        assert machine is not None
        return machine

    def directories(self) -> list[Path]:
        """Machines' directories, oldest first."""
        return sorted(self.state.machines.iterdir())

    def stranger(self, name: str, uuid: str, engine: str = "docker") -> None:
        """Let an engine have a machine of this factory that the factory doesn't know of."""
        directory = self.state.root / "nowhere"
        kind = one_type("lost", machine_model={"docker": "docker", "libvirt": "vm-raw"}[engine])
        spec = MachineSpec(name, uuid, kind, self.settings, 1, 2**31, directory, directory)
        self.engine(engine).machines[uuid] = FakeMachine(spec, Script(), self.clock.steady())

    def engine_machines(self) -> list[FakeMachine]:
        """Return the machines of all engines."""
        return [machine for engine in self.engines.values() for machine in engine.machines.values()]

    def running(self) -> list[str]:
        """Uuids of machines that run in an engine, in order of creation."""
        now = self.clock.steady()
        return [one.spec.uuid for one in self.engine_machines() if not (one.end_time() or 1e99) <= now]

    def records(self, directory: Path | None = None) -> list[Mapping[str, str]]:
        """The fields of each record in the archive, or below another directory."""
        paths = sorted((directory or self.state.apel_archive).glob("*/*"))
        return [message_fields(path.read_text(encoding="ascii")) for path in paths]

    def status(self) -> Status:
        """Return the factory's last report."""
        found = statuses.read(self.state)
        assert found is not None
        return found

    def error(self) -> str | None:
        """First line of factory-error, if there is one."""
        if not self.state.factory_error.exists():
            return None
        return self.state.factory_error.read_text(encoding="utf-8").splitlines()[0]

    def ask(self, action: str, machine: Machine, uuid: str | None = None) -> None:
        """Leave a request, as `vac finish` and `vac destroy` do."""
        requests.ask(self.state, requests.Request(action, machine.name, uuid or machine.uuid))

    def asked(self) -> list[requests.Request]:
        """Requests that have not been carried out."""
        return requests.pending(self.state)
