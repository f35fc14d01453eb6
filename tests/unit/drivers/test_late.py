"""A driver that is opened when it is first used, and what an engine tells beyond the contract."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.fake_driver import FakeDriver, FakeEngine
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import Driver, EngineState, EngineUnavailable, LeftProcess, Observed
from vac.drivers.engine import InlineEngine
from vac.drivers.late import LateDriver
from vac.drivers.messages import Message, Observation, ObservationFailed

TYPE, SETTINGS, FILES = Machinetype("t"), Settings(), Path("files")


class Talkative(FakeDriver):
    """A simulated driver with all optional abilities."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.machines = [Observed("f1-00.example.com", "u1", EngineState.RUNNING)]
        self.asked: list[str] = []
        self.knows = True
        self.adopted: Mapping[str, str] = {}
        self.followed: Mapping[str, LeftProcess] = {}

    def list(self) -> list[Observed]:
        return self.machines

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        return f"pulling the image of {machinetype.name}"

    def notices(self) -> list[str]:  # type: ignore[valid-type]
        return ["no rule masquerades"]

    def details(self, uuid: str) -> Mapping[str, str]:
        self.asked.append(uuid)
        return {"image_digest": f"sha256:{uuid}"} if self.knows else {}

    def adopt(self, machines: Mapping[str, str]) -> None:
        self.adopted = machines

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        self.followed = processes


@pytest.fixture
def talkative() -> Talkative:
    return Talkative(FakeEngine(lambda: 0.0))


def engine_of(driver: Driver) -> tuple[InlineEngine, Callable[[], Message]]:
    posted: queue.SimpleQueue[Message] = queue.SimpleQueue()
    return InlineEngine("docker", driver, posted.put, lambda: 0.0), posted.get_nowait


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

    engine, posted = engine_of(LateDriver(opener))
    engine.request_observation()
    failed = posted()
    assert isinstance(failed, ObservationFailed) and failed.reason == "no socket"
    assert engine.problem() == "no socket"
    for _ in range(2):
        engine.request_observation()
        assert isinstance(posted(), Observation)
    assert engine.problem() is None
    assert answers == [], "once open, it stays open"


def test_optional_abilities_reach_the_driver_behind(talkative: Talkative) -> None:
    engine, posted = engine_of(LateDriver(lambda: talkative))
    engine.adopt({"u1": "f1-00.example.com"})
    left = LeftProcess("f1-00.example.com", 17, 1000.0, "nobody", 1, 2**31, 0.0)
    engine.follow({"u1": left})
    assert engine.prepare(TYPE, SETTINGS, FILES) is None, "nothing is known before it is open"
    assert engine.notices() == ()
    engine.request_observation()
    posted()
    assert talkative.adopted == {"u1": "f1-00.example.com"}, "what was said before it was open is told then"
    assert talkative.followed == {"u1": left}
    assert engine.prepare(TYPE, SETTINGS, FILES) == "pulling the image of t"
    assert engine.notices() == ["no rule masquerades"]
    engine.adopt({})
    assert talkative.adopted == {}


def test_details_of_each_machine_that_runs_are_asked_until_they_are_known(talkative: Talkative) -> None:
    engine, posted = engine_of(LateDriver(lambda: talkative))
    seen = []
    for talkative.knows in (False, True, True):
        engine.request_observation()
        message = posted()
        assert isinstance(message, Observation)
        seen.append(message.details)
    assert seen == [{}, {"u1": {"image_digest": "sha256:u1"}}, {}]
    talkative.machines = [Observed("f1-00.example.com", "u2", EngineState.ENDED)]
    engine.request_observation()
    posted()
    assert talkative.asked == ["u1", "u1"]


def test_a_driver_without_the_abilities_needs_none() -> None:
    engine, posted = engine_of(LateDriver(lambda: FakeEngine(lambda: 0.0).driver()))
    engine.adopt({"u1": "f1-00.example.com"})
    engine.request_observation()
    message = posted()
    assert isinstance(message, Observation) and message.details == {}
    assert engine.notices() == ()
    assert engine.prepare(TYPE, SETTINGS, FILES) is None


def test_a_driver_that_is_still_being_opened_is_closed_afterwards(talkative: Talkative) -> None:
    asked, go = threading.Event(), threading.Event()
    closed: list[str] = []
    talkative.close = lambda: closed.append("once")

    def opener() -> Driver:
        asked.set()
        go.wait(60)
        return talkative

    late = LateDriver(opener)
    opening = threading.Thread(target=late.list)
    opening.start()
    asked.wait(60)
    late.close()
    assert closed == []
    go.set()
    opening.join(60)
    late.close()
    assert closed == ["once"]
    with pytest.raises(EngineUnavailable, match="closed"):
        late.list()
