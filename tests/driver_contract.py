"""The contract of drivers (vac.drivers.base) as tests, for each driver on an engine of its own.

A test module subclasses DriverContract and has a fixture `site`.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineState,
    EngineUnavailable,
    MachineSpec,
    Observed,
    Usage,
)

FACTORY = "f1.example.com"
NAMES = ("f1-00.example.com", "f1-01.example.com")
ALIVE = (EngineState.RUNNING, EngineState.PAUSED)


class ContractSite(ABC):
    """An engine, and drivers of one factory for it."""

    settings = Settings(vac_space="vac.example.com", factory_name=FACTORY)
    machinetype: Machinetype
    keeps_remains = True
    """An ended machine is listed until it is destroyed, also by another driver."""
    can_be_unavailable = True
    tells_start = False
    """The engine knows when a machine has started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.driver = self.successor()

    @abstractmethod
    def successor(self) -> Driver:
        """Another driver of the same factory, as after a restart."""

    @abstractmethod
    def end(self, spec: MachineSpec) -> None:
        """Have the machine end by itself."""

    @abstractmethod
    def break_creations(self) -> None:
        """Have the engine refuse to make machines."""

    def break_engine(self) -> None:  # noqa: B027  optional
        """Make the engine unavailable, if it can be."""

    def spec(self, name: str = NAMES[0]) -> MachineSpec:
        """A new machine with its directory."""
        own = str(uuid.uuid4())
        directory = self.directory / own
        for each in ("machinefeatures", "jobfeatures", "joboutputs", "mnt"):
            (directory / each).mkdir(parents=True)
        (directory / "user_data").write_text("#!/bin/sh\nexec sleep 600\n")
        (directory / "user_data").chmod(0o600)
        (directory / "jobfeatures/job_id").write_text(own)
        return MachineSpec(
            name, own, self.machinetype, self.settings, 1, 2**26, directory, self.directory, "169.254.169.0"
        )

    def create(self, name: str = NAMES[0]) -> MachineSpec:
        """A machine that runs, made as soon as what it needs is there."""
        spec = self.spec(name)
        waiting = threading.Event()
        for _ in range(6000):
            if self.driver.prepare(spec.machinetype, self.settings, spec.files) is None:
                break
            waiting.wait(0.01)
        self.driver.create(spec)
        return spec

    def seen(self, spec: MachineSpec, driver: Driver | None = None) -> Observed | None:
        """The machine as it is listed."""
        return {each.uuid: each for each in (driver or self.driver).list()}.get(spec.uuid)

    def close(self) -> None:
        """End everything."""
        self.driver.close()


def details_of(driver: Driver, uuid: str) -> dict[str, str]:
    """Return what is known of the machine now; {} if it isn't listed."""
    return {each.uuid: dict(each.details) for each in driver.list()}.get(uuid, {})


def usages(driver: Driver) -> dict[str, Usage]:
    """Return usage by uuid of all machines."""
    return {each.uuid: each.usage for each in driver.list()}


class DriverContract:
    """Behaviour of every driver."""

    def test_a_machine_runs_with_its_usage_once_it_is_created(self, site: ContractSite) -> None:
        assert [*site.driver.list()] == []
        one, other = site.create(), site.create(NAMES[1])
        seen = {each.uuid: (each.name, each.state in ALIVE) for each in site.driver.list()}
        assert seen == {one.uuid: (one.name, True), other.uuid: (other.name, True)}
        assert usages(site.driver).keys() == seen.keys()

    def test_a_successor_finds_the_machine(self, site: ContractSite) -> None:
        begun = time.time()
        spec = site.create()
        made = time.time()
        site.driver.close()
        site.driver = site.successor()
        seen = site.seen(spec)
        assert seen is not None and seen.state in ALIVE
        started = usages(site.driver)[spec.uuid].started_time
        assert (started is not None) == site.tells_start
        assert started is None or int(begun) <= started <= made
        site.driver.destroy(spec.name, spec.uuid)
        assert site.seen(spec) is None

    def test_a_stopped_machine_keeps_its_usage(self, site: ContractSite) -> None:
        spec = site.create()
        site.driver.list()
        site.driver.stop(spec.name, spec.uuid)
        seen = site.seen(spec)
        assert seen is not None and seen.state is EngineState.ENDED
        assert seen.usage.ended_time is not None
        site.driver.stop(spec.name, spec.uuid)
        site.driver.destroy(spec.name, spec.uuid)
        assert [*site.driver.list()] == []

    def test_a_machine_that_ends_by_itself_is_listed_as_ended(self, site: ContractSite) -> None:
        spec = site.create()
        site.driver.list()
        site.end(spec)
        seen = site.seen(spec)
        assert seen is not None and seen.state is EngineState.ENDED
        assert seen.usage.ended_time is not None

    def test_an_end_is_remembered_by_the_engine_or_unknown(self, site: ContractSite) -> None:
        spec = site.create()
        site.end(spec)
        seen = site.seen(spec, site.successor())
        assert (seen is not None) is site.keeps_remains
        assert seen is None or seen.state is EngineState.ENDED

    def test_destroying_a_running_machine_ends_it(self, site: ContractSite) -> None:
        spec = site.create()
        site.driver.destroy(spec.name, spec.uuid)
        assert site.seen(spec) is None

    def test_what_is_not_there_is_no_error(self, site: ContractSite) -> None:
        absent = str(uuid.uuid4())
        site.driver.stop(NAMES[0], absent)
        site.driver.destroy(NAMES[0], absent)

    def test_a_namesake_with_another_uuid_is_left_alone(self, site: ContractSite) -> None:
        spec = site.create()
        for end in (site.driver.stop, site.driver.destroy):
            end(spec.name, str(uuid.uuid4()))
        seen = site.seen(spec)
        assert seen is not None and seen.state in ALIVE

    def test_a_refused_creation_has_a_reason_and_leaves_nothing(self, site: ContractSite) -> None:
        site.create(NAMES[1])
        site.break_creations()
        spec = site.spec()
        with pytest.raises(CreationFailed, match=r"[a-z]"):
            site.driver.create(spec)
        seen = site.seen(spec)
        assert seen is None or seen.state is EngineState.HALF_MADE
        site.driver.destroy(spec.name, spec.uuid)
        assert site.seen(spec) is None

    def test_an_unavailable_engine_never_lists_nothing(self, site: ContractSite) -> None:
        if not site.can_be_unavailable:
            return  # such as the kernel
        spec = site.create()
        site.break_engine()
        driver = site.successor()
        for call in (
            driver.list,
            lambda: driver.create(site.spec(NAMES[1])),
            lambda: driver.stop(spec.name, spec.uuid),
            lambda: driver.destroy(spec.name, spec.uuid),
        ):
            with pytest.raises(EngineUnavailable, match=r"[a-z]"):
                call()
        driver.close()

    def test_an_end_is_an_event_and_closing_ends_the_listening(self, site: ContractSite) -> None:
        spec = site.create()
        told: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def listen() -> None:
            for name in site.driver.events():
                told.put(name)
            told.put(None)

        threading.Thread(target=listen, daemon=True).start()
        site.driver.list()
        site.end(spec)
        assert told.get(timeout=60) in (spec.name, ""), "the latter if the end was before the first event"
        site.driver.close()
        while told.get(timeout=60) is not None:
            pass
