"""Engines by machine model; what their threads post, and that a call that hangs holds up nobody else."""

from __future__ import annotations

import dataclasses
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.fake_driver import FakeDriver, FakeEngine, InlineEngine, Script
from vac.config.machinetype import MODELS, Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    Driver,
    EngineState,
    EngineUnavailable,
    LeftProcess,
    MachineSpec,
    Observed,
)
from vac.drivers.engine import (
    APART,
    MODULES,
    Action,
    ActionDone,
    ActionKind,
    Changed,
    Engine,
    Message,
    Observation,
    Unobserved,
    driver_for,
    engine_name,
)
from vac.host.connections import Contact

CREATE, STOP, DESTROY = ActionKind.CREATE, ActionKind.STOP, ActionKind.DESTROY
PATIENCE = 60.0


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Factory:
    """The loop's side of an engine: its queue."""

    def __init__(
        self,
        clock: Clock,
        driver: FakeDriver,
        apart: Collection[ActionKind] = (),
    ) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.engine = Engine("fake", lambda: driver, self.messages.put, clock, apart=apart)

    def next(self, *kinds: type) -> Message:
        """The next message of these kinds; others are dropped."""
        while True:
            message = self.messages.get(timeout=PATIENCE)
            if isinstance(message, kinds):
                return message

    def done(self, *kinds: ActionKind) -> ActionDone:
        """The next result of such an action; other messages are dropped."""
        while True:
            message = self.next(ActionDone)
            assert isinstance(message, ActionDone)
            if message.action.kind in kinds:
                return message

    def created(self) -> ActionDone:
        """The next creation, which has succeeded."""
        message = self.done(CREATE)
        assert message.problem is None
        return message


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeEngine:
    return FakeEngine(clock)


@pytest.fixture(autouse=True)
def nothing_is_observed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vac.drivers.engine.RETRY_SECONDS", 600.0)


@pytest.fixture
def factory(clock: Clock, fake: FakeEngine) -> Factory:
    return Factory(clock, fake.driver())


def spec(
    name: str = "f1-00.example.com", uuid: str = "u0", directory: Path = Path("/nowhere")
) -> MachineSpec:
    return MachineSpec(name, uuid, Machinetype("t"), Settings(), 1, 2**31, directory, directory)


def failing_once(*calls: str) -> Callable[[str, str], None]:
    """Return a hook of a FakeEngine whose first such calls fail."""
    failing = set(calls)

    def hook(call: str, moment: str) -> None:
        if call in failing:
            failing.remove(call)
            raise EngineUnavailable("cannot connect")

    return hook


def wait_until_blocked(driver_call: threading.Event, engine: Engine) -> None:
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
    factory.created()
    clock.now += 10
    factory.engine.request_observation()
    seen = factory.next(Observation)
    assert isinstance(seen, Observation)
    assert [(m.name, m.uuid, m.state) for m in seen.machines] == [
        ("f1-00.example.com", "u0", EngineState.RUNNING)
    ]
    assert [m.usage.cpu_seconds for m in seen.machines] == [5.0]
    assert (seen.engine, seen.asked_time) == ("fake", 1010.0)


def test_observation_that_was_asked_before_a_creation_says_so(
    factory: Factory, fake: FakeEngine, clock: Clock
) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    clock.now = 1005.0
    factory.engine.create(spec())
    created = factory.created()
    gate.set()
    seen = factory.next(Observation)
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
    assert isinstance(factory.next(ActionDone, Observation), ActionDone)


@pytest.mark.parametrize("engine", ["libvirt", "processes"])
def test_stops_that_take_their_time_hold_up_neither_each_other_nor_creations(
    fake: FakeEngine, clock: Clock, engine: str
) -> None:
    factory = Factory(clock, fake.driver(), apart=APART[engine])
    names = [f"f1-0{number}.example.com" for number in range(3)]
    for name in names:
        factory.engine.create(spec(name, name))
        factory.created()
    gate = fake.hang("stop")
    for name in names:
        factory.engine.stop(name, name)
    deadline = time.monotonic() + PATIENCE
    while len(factory.engine._outstanding()) < len(names):
        assert time.monotonic() < deadline, "all stops are under way"
        time.sleep(0.001)
    factory.engine.create(spec("f1-03.example.com", "u3"))
    assert factory.done(CREATE, STOP).action.kind is CREATE
    gate.set()
    assert {factory.done(STOP).action.name for _ in names} == set(names)


def test_life_of_a_machine_is_reported_step_by_step(factory: Factory) -> None:
    factory.engine.create(spec())
    factory.engine.stop("f1-00.example.com", "u0")
    factory.engine.destroy("f1-00.example.com", "u0")
    results = [factory.done(*ActionKind) for _ in range(3)]
    assert [(result.action.kind, result.problem) for result in results] == [
        (CREATE, None),
        (STOP, None),
        (DESTROY, None),
    ]


def test_hung_engine_does_not_hold_up_another(clock: Clock, fake: FakeEngine, factory: Factory) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    other = Factory(clock, FakeEngine(clock).driver())
    other.engine.request_observation()
    assert other.next(Observation)
    gate.set()


def test_hung_observation_does_not_hold_up_creations(factory: Factory, fake: FakeEngine) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    factory.engine.create(spec())
    assert factory.created()
    gate.set()


def test_of_independent_machines_one_that_hangs_holds_up_no_other(clock: Clock, fake: FakeEngine) -> None:
    factory = Factory(clock, fake.driver(), apart=ActionKind)
    gate = fake.hang("create")
    factory.engine.create(spec())
    wait_until_blocked(gate, factory.engine)
    factory.engine.destroy("f1-00.example.com", "u0")
    factory.engine.destroy("f1-01.example.com", "u1")
    assert factory.done(*ActionKind).action.uuid == "u1"
    gate.set()
    own = [factory.done(*ActionKind).action for _ in range(2)]
    assert own == [Action(kind, "f1-00.example.com", "u0") for kind in (CREATE, DESTROY)]
    factory.engine.create(spec(uuid="u2"))
    assert factory.created().action.uuid == "u2", "there is a thread for it again"


def test_engine_is_late_after_its_deadline_and_stuck_from_then(
    factory: Factory, fake: FakeEngine, clock: Clock
) -> None:
    gate = fake.hang("list")
    factory.engine.request_observation()
    wait_until_blocked(gate, factory.engine)
    assert factory.engine.answers()
    clock.now += 30.0
    assert not factory.engine.answers()
    assert factory.engine.stuck_seconds() == 0.0
    assert factory.engine.problem() is None
    clock.now += 4.0
    assert factory.engine.stuck_seconds() == 4.0
    assert factory.engine.problem() == "no answer for 34 s"
    clock.now += 606.0
    assert factory.engine.stuck_seconds() == 610.0
    gate.set()
    assert factory.next(Observation)
    assert factory.engine.problem() is None
    assert factory.engine.stuck_seconds() == 0.0


def test_late_creation_is_named(factory: Factory, fake: FakeEngine, clock: Clock) -> None:
    gate = fake.hang("create")
    factory.engine.create(spec())
    wait_until_blocked(gate, factory.engine)
    clock.now += 400.0
    assert factory.engine.problem() == "no answer for 400 s to create f1-00.example.com"
    gate.set()


def test_unavailable_engine_is_a_problem_until_it_answers_again(factory: Factory, fake: FakeEngine) -> None:
    fake.unavailable = "cannot connect"
    factory.engine.request_observation()
    assert factory.next(Unobserved) == Unobserved("fake", 1000.0)
    assert factory.engine.problem() == "cannot connect"
    fake.unavailable = None
    factory.engine.request_observation()
    assert factory.next(Observation)
    assert factory.engine.problem() is None


def test_observation_that_failed_is_made_again_without_being_asked_for(
    clock: Clock, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vac.drivers.engine.RETRY_SECONDS", 0.01)
    factory = Factory(clock, fake.driver())
    fake.hook = failing_once("list")
    factory.engine.request_observation()
    assert factory.next(Unobserved, Observation) == Unobserved("fake", clock.now)
    assert factory.next(Observation)
    assert factory.engine.problem() is None


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
    refused = factory.done(CREATE)
    assert (refused.problem, refused.unavailable) == (reason, unknown)


def test_failed_end_has_its_reason(factory: Factory, fake: FakeEngine) -> None:
    fake.unavailable = "cannot connect"
    factory.engine.stop("f1-00.example.com", "u0")
    factory.engine.destroy("f1-00.example.com", "u0")
    for kind in (STOP, DESTROY):
        assert factory.done(kind).problem == "cannot connect"


def test_actions_are_pending_until_their_result_is_settled(factory: Factory, fake: FakeEngine) -> None:
    gate = fake.hang("create")
    for _ in range(3):
        factory.engine.create(spec())
    factory.engine.stop("f1-01.example.com", "u1")
    create, stop = Action(CREATE, "f1-00.example.com", "u0"), Action(STOP, "f1-01.example.com", "u1")
    assert factory.engine.pending == {create, stop}
    gate.set()
    assert [factory.done(*ActionKind).action for _ in range(2)] == [create, stop], "each is done once"
    assert create in factory.engine.pending
    factory.engine.settle(create)
    factory.engine.settle(stop)
    assert not factory.engine.pending


class BuggyDriver(FakeDriver):
    """Its calls have a bug, until it is mended."""

    mended = False

    def list(self) -> Sequence[Observed]:
        return super().list() if self.mended or 1 // 0 else ()

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
        factory.next(Unobserved)
        assert (factory.engine.problem() or "").startswith("unexpected ZeroDivisionError")
        factory.engine.create(spec())
        refused = factory.done(CREATE)
    assert refused.unavailable, "whether the machine exists is unknown"
    assert sum("Traceback" in (record.exc_text or "") for record in caplog.records) == 2
    driver.mended = True
    factory.engine.request_observation()
    assert factory.next(Observation)
    factory.engine.create(dataclasses.replace(spec(), uuid="u1"))
    assert factory.created()


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
    assert factory.next(Unobserved, Changed) == Unobserved("fake", clock.now), "it may end its machines now"
    assert factory.next(Unobserved, Changed) == Changed("fake", ""), (
        "something may have been missed meanwhile"
    )
    factory.engine.create(spec())
    assert factory.next(Changed) == Changed("fake", "f1-00.example.com")
    assert driver.attempts == 2


def test_events_are_listened_to_as_soon_as_an_observation_shows_that_the_engine_is_back(
    clock: Clock, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vac.drivers.engine.FIRST_PAUSE_SECONDS", 1000.0)
    monkeypatch.setattr("vac.drivers.engine.RETRY_SECONDS", 0.01)
    fake.hook = failing_once("list", "events")
    factory = Factory(clock, fake.driver())
    factory.engine.request_observation()
    assert factory.next(Changed) == Changed("fake", ""), "something may have been missed meanwhile"
    factory.engine.create(spec())
    assert factory.next(Changed) == Changed("fake", "f1-00.example.com")


def test_inline_engine_answers_before_it_returns(clock: Clock, fake: FakeEngine) -> None:
    messages: list[Message] = []
    engine = InlineEngine("fake", fake.driver, messages.append, clock)
    engine.create(spec())
    engine.request_observation()
    assert [type(message) for message in messages] == [ActionDone, Observation]


SOMEBODY = Contact("tcp", "192.0.2.1", 443, incoming=False)
TYPE, SETTINGS, FILES = Machinetype("t"), Settings(), Path("files")


class Talkative(FakeDriver):
    """A simulated driver with all optional abilities."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.machines = [Observed("f1-00.example.com", "u1", EngineState.RUNNING)]
        self.adopted: Mapping[str, str] = {}
        self.followed: Mapping[str, LeftProcess] = {}
        self.ends = {"u1": frozenset([SOMEBODY]), "u2": frozenset[Contact]()}

    def list(self) -> list[Observed]:
        return self.machines

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        return f"pulling the image of {machinetype.name}"

    def notices(self) -> list[str]:  # type: ignore[valid-type]
        return ["no rule masquerades"]

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        return self.ends

    def adopt(self, machines: Mapping[str, str], processes: Mapping[str, LeftProcess]) -> None:
        self.adopted, self.followed = machines, processes


@pytest.fixture
def talkative() -> Talkative:
    return Talkative(FakeEngine(lambda: 0.0))


def engine_of(open_driver: Callable[[], Driver]) -> tuple[InlineEngine, Callable[[], Message]]:
    posted: queue.SimpleQueue[Message] = queue.SimpleQueue()
    return InlineEngine("docker", open_driver, posted.put, lambda: 0.0), posted.get_nowait


def test_a_driver_that_cannot_be_opened_yet_is_tried_again() -> None:
    answers: list[Driver | EngineUnavailable] = [
        EngineUnavailable("no socket"),
        FakeEngine(lambda: 0.0).driver(),
    ]

    def opener() -> Driver:
        answer = answers.pop(0)
        if isinstance(answer, EngineUnavailable):
            raise answer
        return answer

    engine, posted = engine_of(opener)
    engine.request_observation()
    assert isinstance(posted(), Unobserved)
    assert engine.problem() == "no socket"
    for _ in range(2):
        engine.request_observation()
        assert isinstance(posted(), Observation)
    assert engine.problem() is None
    assert answers == [], "once open, it stays open"


def test_optional_abilities_reach_the_driver_behind(talkative: Talkative) -> None:
    engine, posted = engine_of(lambda: talkative)
    left = LeftProcess("f1-00.example.com", 17, 1000.0, "nobody", 1, 2**31, 0.0)
    engine.adopt({"u1": "f1-00.example.com"}, {"u1": left})
    assert engine.prepare(TYPE, SETTINGS, FILES) is None, "nothing is known before it is open"
    assert engine.notices() == ()
    engine.request_observation()
    posted()
    assert talkative.adopted == {"u1": "f1-00.example.com"}, "what was said before it was open is told then"
    assert talkative.followed == {"u1": left}
    assert engine.prepare(TYPE, SETTINGS, FILES) == "pulling the image of t"
    assert engine.notices() == ["no rule masquerades"]
    engine.adopt({}, {})
    assert talkative.adopted == {}


def test_contacts_are_those_of_machines_that_have_some(talkative: Talkative) -> None:
    engine, posted = engine_of(lambda: talkative)
    engine.request_observation()
    message = posted()
    assert isinstance(message, Observation)
    assert message.contacts == {"u1": frozenset([SOMEBODY])}


def test_another_answer_of_prepare_is_a_change(talkative: Talkative) -> None:
    engine, posted = engine_of(lambda: talkative)
    engine.request_observation()
    posted()
    talkative.changed()
    assert posted() == Changed("docker", "")


def test_a_driver_without_the_abilities_needs_none() -> None:
    engine, posted = engine_of(lambda: FakeEngine(lambda: 0.0).driver())
    engine.adopt({"u1": "f1-00.example.com"}, {})
    engine.request_observation()
    message = posted()
    assert isinstance(message, Observation) and message.contacts == {}
    assert engine.notices() == ()
    assert engine.prepare(TYPE, SETTINGS, FILES) is None


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_an_engine(model: str) -> None:
    assert engine_name(model) in MODULES


def test_singularity_and_bubblewrap_share_an_engine() -> None:
    assert engine_name("singularity") == engine_name("bubblewrap") == "processes"


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> object:
        raise ModuleNotFoundError("No module named 'docker'", name="docker")

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(EngineUnavailable, match="No module named 'docker'; install python3-docker"):
        driver_for("docker", Settings())


def test_a_model_that_is_not_known_has_an_engine_that_cannot_be_reached() -> None:
    assert engine_name("lxc") == "lxc"
    with pytest.raises(EngineUnavailable, match="machine_model lxc is not known to this version"):
        driver_for("lxc", Settings())


@pytest.mark.allow_subprocess
def test_nothing_is_loaded_before_it_is_needed() -> None:
    """In a Python of its own, for other tests here may have loaded any of them."""
    loaded = "import sys, vac.factory.process, vac.drivers.engine; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", loaded], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "vac.drivers.engine" in modules
    assert not {"libvirt", "docker", "waitress"}.intersection(modules)
