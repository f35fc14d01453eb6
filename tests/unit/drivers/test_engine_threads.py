"""An engine's threads: what they post, and that a call that hangs holds up nobody else."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.fake_driver import FakeDriver, FakeEngine, Script
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers import registry
from vac.drivers.base import EngineState, EngineUnavailable, MachineSpec
from vac.drivers.engine import Action, ActionKind, Deadlines, Engine, InlineEngine
from vac.drivers.messages import (
    Changed,
    Created,
    CreationRefused,
    Destroyed,
    DestructionFailed,
    Message,
    Observation,
    ObservationFailed,
    StopFailed,
    Stopped,
)

PATIENCE = 60.0


class Clock:
    """A clock that tests move, and a timer that doesn't move with it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.elapsed = 0.0

    def __call__(self) -> float:
        return self.now


class Factory:
    """The loop's side of an engine: its queue."""

    def __init__(
        self,
        clock: Clock,
        driver: FakeDriver,
        retry_seconds: float = 600.0,
        apart: Collection[ActionKind] = (),
    ) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.engine = Engine(
            "fake",
            driver,
            self.messages.put,
            clock,
            Deadlines(retry_seconds=retry_seconds),
            timer=lambda: clock.elapsed,
            apart=apart,
        )

    def next(self, *kinds: type) -> Message:
        """The next message of these kinds; others are dropped."""
        while True:
            message = self.messages.get(timeout=PATIENCE)
            if isinstance(message, kinds):
                return message


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeEngine:
    return FakeEngine(clock)


@pytest.fixture
def factory(clock: Clock, fake: FakeEngine) -> Iterator[Factory]:
    factory = Factory(clock, fake.driver())
    yield factory
    factory.engine.close()


def spec(
    name: str = "f1-00.example.com", uuid: str = "u0", directory: Path = Path("/nowhere")
) -> MachineSpec:
    return MachineSpec(name, uuid, Machinetype("t"), Settings(), 1, 2**31, directory, directory)


def wait_until_blocked(driver_call: threading.Event, engine: InlineEngine) -> None:
    deadline = time.monotonic() + PATIENCE
    while not engine._outstanding():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not driver_call.is_set()


def test_observation_tells_machines_usage_and_when_it_was_asked(
    factory: Factory, fake: FakeEngine, clock: Clock
) -> None:
    fake.script = lambda spec: Script(processors_used=0.5)
    factory.engine.create(spec())
    factory.next(Created)
    clock.now += 10
    factory.engine.request_observation()
    seen = factory.next(Observation)
    assert isinstance(seen, Observation)
    assert [(m.name, m.uuid, m.state) for m in seen.machines] == [
        ("f1-00.example.com", "u0", EngineState.RUNNING)
    ]
    assert seen.usage["u0"].cpu_seconds == 5.0
    assert (seen.engine, seen.asked_time, seen.time) == ("fake", 1010.0, 1010.0)


def test_observation_that_was_asked_before_a_creation_says_so(
    factory: Factory, fake: FakeEngine, clock: Clock
) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    clock.now = 1005.0
    factory.engine.create(spec())
    created = factory.next(Created)
    gate.set()
    seen = factory.next(Observation)
    assert isinstance(created, Created)
    assert isinstance(seen, Observation)
    assert seen.asked_time < created.time


def test_requests_during_an_observation_make_one_more(factory: Factory, fake: FakeEngine) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    for _ in range(5):
        factory.engine.request_observation()
    gate.set()
    assert factory.next(Observation)
    assert factory.next(Observation)
    factory.engine.create(spec())
    assert isinstance(factory.next(Created, Observation), Created)


@pytest.mark.parametrize("engine", ["libvirt", "processes"])
def test_stops_that_take_their_time_hold_up_neither_each_other_nor_creations(
    fake: FakeEngine, clock: Clock, engine: str
) -> None:
    factory = Factory(clock, fake.driver(), apart=registry.APART[engine])
    names = [f"f1-0{number}.example.com" for number in range(3)]
    for name in names:
        factory.engine.create(spec(name, name))
        factory.next(Created)
    gate = fake.hang("stop")
    for name in names:
        factory.engine.stop(name, name)
    deadline = time.monotonic() + PATIENCE
    while len(factory.engine._outstanding()) < len(names):
        assert time.monotonic() < deadline, "all stops are under way"
        time.sleep(0.001)
    factory.engine.create(spec("f1-03.example.com", "u3"))
    assert isinstance(factory.next(Created, Stopped), Created)
    gate.set()
    stopped = [factory.next(Stopped) for _ in names]
    assert {message.name for message in stopped if isinstance(message, Stopped)} == set(names)
    factory.engine.close()


def test_life_of_a_machine_is_reported_step_by_step(factory: Factory) -> None:
    factory.engine.create(spec())
    factory.engine.stop("f1-00.example.com", "u0")
    factory.engine.destroy("f1-00.example.com", "u0")
    results = [factory.next(Created, Stopped, Destroyed) for _ in range(3)]
    assert [type(result) for result in results] == [Created, Stopped, Destroyed]


def test_hung_engine_does_not_hold_up_another(clock: Clock, fake: FakeEngine, factory: Factory) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    other = Factory(clock, FakeEngine(clock).driver())
    other.engine.request_observation()
    assert other.next(Observation)
    other.engine.close()
    gate.set()


def test_hung_observation_does_not_hold_up_creations(factory: Factory, fake: FakeEngine) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    factory.engine.create(spec())
    assert factory.next(Created)
    gate.set()


def test_of_independent_machines_one_that_hangs_holds_up_no_other(clock: Clock, fake: FakeEngine) -> None:
    factory = Factory(clock, fake.driver(), apart=ActionKind)
    gate = fake.hang("create")
    factory.engine.create(spec())
    wait_until_blocked(gate, factory.engine)
    factory.engine.destroy("f1-00.example.com", "u0")
    factory.engine.destroy("f1-01.example.com", "u1")
    other = factory.next(Created, Destroyed)
    assert isinstance(other, Destroyed) and other.uuid == "u1"
    gate.set()
    assert isinstance(factory.next(Created, Destroyed), Created), (
        "what is done to one machine keeps its order"
    )
    last = factory.next(Created, Destroyed)
    assert isinstance(last, Destroyed) and last.uuid == "u0"
    factory.engine.create(spec(uuid="u2"))
    assert factory.next(Created), "its line can be used again"
    factory.engine.close()


def test_engine_is_late_after_its_deadline_and_stuck_from_then(
    factory: Factory, fake: FakeEngine, clock: Clock
) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    clock.now += 86400  # somebody sets the clock
    clock.elapsed = 30.0
    assert not factory.engine.late()
    assert factory.engine.problem() is None
    clock.elapsed = 34.0
    assert factory.engine.late()
    assert factory.engine.problem() == "no answer for 34 s"
    clock.elapsed = 640.0
    assert factory.engine.stuck_seconds() == 610.0
    clock.elapsed = 700.0
    gate.set()
    assert factory.next(Observation)
    assert factory.engine.problem() is None
    assert factory.engine.stuck_seconds() == 0.0


def test_late_creation_is_named(factory: Factory, fake: FakeEngine, clock: Clock) -> None:
    gate = fake.hang("create")
    factory.engine.create(spec())
    wait_until_blocked(gate, factory.engine)
    clock.elapsed = 400.0
    assert factory.engine.problem() == "no answer for 400 s to create f1-00.example.com"
    gate.set()


def test_unavailable_engine_is_a_problem_until_it_answers_again(factory: Factory, fake: FakeEngine) -> None:
    fake.unavailable = "cannot connect"
    factory.engine.request_observation()
    failed = factory.next(ObservationFailed)
    assert isinstance(failed, ObservationFailed)
    assert failed.reason == "cannot connect"
    assert factory.engine.problem() == "cannot connect"
    fake.unavailable = None
    factory.engine.request_observation()
    assert factory.next(Observation)
    assert factory.engine.problem() is None


def test_observation_that_failed_is_made_again_without_being_asked_for(
    clock: Clock, fake: FakeEngine
) -> None:
    factory = Factory(clock, fake.driver(), retry_seconds=0.01)
    fake.unavailable = "cannot connect"
    factory.engine.request_observation()
    assert factory.next(ObservationFailed) and factory.next(ObservationFailed)
    fake.unavailable = None
    assert factory.next(Observation)
    assert factory.engine.problem() is None
    factory.engine.close()


@pytest.mark.parametrize(
    ("script", "unavailable", "reason", "unknown"),
    [
        (Script(failure="no such image"), None, "no such image", False),
        (Script(), "cannot connect", "cannot connect", True),
    ],
)
def test_refused_creation_has_its_reason(
    factory: Factory, fake: FakeEngine, script: Script, unavailable: str | None, reason: str, unknown: bool
) -> None:
    fake.script = lambda spec: script
    fake.unavailable = unavailable
    factory.engine.create(spec())
    refused = factory.next(CreationRefused)
    assert isinstance(refused, CreationRefused)
    assert (refused.reason, refused.unavailable) == (reason, unknown)


def test_failed_end_has_its_reason(factory: Factory, fake: FakeEngine) -> None:
    fake.unavailable = "cannot connect"
    factory.engine.stop("f1-00.example.com", "u0")
    factory.engine.destroy("f1-00.example.com", "u0")
    for kind in (StopFailed, DestructionFailed):
        failed = factory.next(kind)
        assert isinstance(failed, (StopFailed, DestructionFailed))
        assert failed.reason == "cannot connect"


def test_actions_are_pending_until_their_result_is_settled(factory: Factory, fake: FakeEngine) -> None:
    gate = fake.hang("create")
    for _ in range(3):
        factory.engine.create(spec())
    factory.engine.stop("f1-01.example.com", "u1")
    assert factory.engine.pending_creations == {"f1-00.example.com"}
    assert factory.engine.pending_destructions == {"f1-01.example.com"}
    gate.set()
    created = factory.next(Created, CreationRefused)
    assert isinstance(created, Created)
    stopped = factory.next(Created, CreationRefused, Stopped)
    assert isinstance(stopped, Stopped), "a repeated request must change nothing"
    assert Action(ActionKind.CREATE, "f1-00.example.com", "u0") in factory.engine.pending
    factory.engine.settle(created)
    factory.engine.settle(stopped)
    assert not factory.engine.pending


class BuggyDriver(FakeDriver):
    """Its calls have a bug, until it is mended."""

    mended = False

    def usage(self) -> dict[str, object]:  # type: ignore[override]
        return {} if self.mended else {"a": 1 // 0}

    def create(self, spec: MachineSpec) -> None:
        if not self.mended:
            raise KeyError("oops")
        super().create(spec)


def test_bug_in_a_driver_is_a_failure_with_a_traceback_and_the_threads_live_on(
    clock: Clock, fake: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    driver = BuggyDriver(fake)
    factory = Factory(clock, driver)
    with caplog.at_level(logging.ERROR):
        factory.engine.request_observation()
        failed = factory.next(ObservationFailed)
        factory.engine.create(spec())
        refused = factory.next(CreationRefused)
    assert isinstance(failed, ObservationFailed)
    assert failed.reason.startswith("unexpected ZeroDivisionError")
    assert isinstance(refused, CreationRefused)
    assert refused.unavailable, "whether the machine exists is unknown"
    assert sum("Traceback" in (record.exc_text or "") for record in caplog.records) == 2
    driver.mended = True
    factory.engine.request_observation()
    assert factory.next(Observation)
    factory.engine.create(dataclasses.replace(spec(), uuid="u1"))
    assert factory.next(Created)
    factory.engine.close()


def test_event_of_a_machine_is_posted(factory: Factory, fake: FakeEngine) -> None:
    factory.engine.create(spec())
    changed = factory.next(Changed)
    assert changed == Changed("fake", "f1-00.example.com")


class BreakingDriver(FakeDriver):
    """Its first listening breaks off."""

    attempts = 0

    def events(self) -> Iterator[str]:
        self.attempts += 1
        if self.attempts == 1:
            raise EngineUnavailable("connection lost")
        return super().events()


def test_broken_events_are_listened_to_again(clock: Clock, fake: FakeEngine) -> None:
    driver = BreakingDriver(fake)
    factory = Factory(clock, driver)
    assert factory.next(Changed) == Changed("fake", ""), "something may have been missed meanwhile"
    factory.engine.create(spec())
    assert factory.next(Changed) == Changed("fake", "f1-00.example.com")
    assert driver.attempts == 2
    factory.engine.close()


def test_events_are_listened_to_as_soon_as_an_observation_shows_that_the_engine_is_back(
    clock: Clock, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vac.drivers.engine.FIRST_PAUSE_SECONDS", 1000.0)
    fake.unavailable = "cannot connect"
    factory = Factory(clock, fake.driver(), retry_seconds=0.01)
    factory.engine.request_observation()
    factory.next(ObservationFailed)
    fake.unavailable = None
    assert factory.next(Changed) == Changed("fake", ""), "something may have been missed meanwhile"
    factory.engine.create(spec())
    assert factory.next(Changed) == Changed("fake", "f1-00.example.com")
    factory.engine.close()


@pytest.mark.parametrize("apart", [(), ActionKind])
def test_closed_engine_does_not_begin_what_was_queued(
    clock: Clock, fake: FakeEngine, apart: Collection[ActionKind]
) -> None:
    factory = Factory(clock, fake.driver(), apart=apart)
    gate = fake.hang("create")
    factory.engine.create(spec())
    wait_until_blocked(gate, factory.engine)
    factory.engine.create(spec("f1-00.example.com", "u1"))
    factory.engine.close()
    gate.set()
    assert factory.next(Created)
    assert set(fake.machines) == {"u0"}


def test_inline_engine_answers_before_it_returns(clock: Clock, fake: FakeEngine) -> None:
    messages: list[Message] = []
    engine = InlineEngine("fake", fake.driver(), messages.append, clock, Deadlines(1, 1))
    engine.create(spec())
    engine.request_observation()
    assert [type(message) for message in messages] == [Created, Observation]
