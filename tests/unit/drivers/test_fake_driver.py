"""Simulated machines fare as their scripts say, and outlive the driver that made them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.fake_driver import FakeEngine, Script
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineState, EngineUnavailable, MachineSpec


class Crash(BaseException):
    """The factory dies here."""


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spec(directory: Path, name: str = "f1-00.example.com", uuid: str = "u0") -> MachineSpec:
    return MachineSpec(name, uuid, Machinetype("t"), Settings(), 1, 2**31, directory, directory)


def test_machine_ends_after_its_lifetime_with_its_message(tmp_path: Path) -> None:
    clock = Clock()
    engine = FakeEngine(clock, lambda spec: Script(60.0, "200 Success"))
    (tmp_path / "joboutputs").mkdir()
    engine.driver().create(spec(tmp_path))
    clock.now += 59
    assert [m.state for m in engine.driver().list()] == [EngineState.RUNNING]
    assert not (tmp_path / "joboutputs/shutdown_message").exists()
    clock.now += 100
    assert [(m.state, m.usage.cpu_seconds) for m in engine.driver().list()] == [(EngineState.ENDED, 60.0)]
    assert (tmp_path / "joboutputs/shutdown_message").read_text() == "200 Success\n"


def test_stopped_machine_leaves_no_message_and_keeps_its_usage(tmp_path: Path) -> None:
    clock = Clock()
    engine = FakeEngine(clock, lambda spec: Script(60.0, "200 Success"))
    (tmp_path / "joboutputs").mkdir()
    driver = engine.driver()
    driver.create(spec(tmp_path))
    clock.now += 10
    driver.stop("f1-00.example.com", "other")
    assert [m.state for m in driver.list()] == [EngineState.RUNNING]
    driver.stop("f1-00.example.com", "u0")
    clock.now += 100
    assert [m.state for m in driver.list()] == [EngineState.ENDED]
    assert driver.usage()["u0"].cpu_seconds == 10.0
    assert not (tmp_path / "joboutputs/shutdown_message").exists()
    driver.destroy("f1-00.example.com", "u0")
    assert not driver.list()


@pytest.mark.parametrize(
    ("script", "states"),
    [
        (Script(1.0, vanishes=True), []),
        (Script(1.0, paused=True), [EngineState.PAUSED]),
        (Script(None), [EngineState.RUNNING]),
    ],
)
def test_states_after_a_while(tmp_path: Path, script: Script, states: list[EngineState]) -> None:
    clock = Clock()
    engine = FakeEngine(clock, lambda spec: script)
    engine.driver().create(spec(tmp_path))
    clock.now += 10
    assert [m.state for m in engine.driver().list()] == states


def test_machines_outlive_the_driver(tmp_path: Path) -> None:
    engine = FakeEngine(Clock())
    first = engine.driver()
    first.create(spec(tmp_path))
    first.close()
    assert [m.uuid for m in engine.driver().list()] == ["u0"]


@pytest.mark.parametrize(("moment", "exists"), [("before", False), ("after", True)])
def test_crash_leaves_the_call_undone_or_done(tmp_path: Path, moment: str, exists: bool) -> None:
    engine = FakeEngine(Clock())

    def crash(call: str, when: str) -> None:
        if (call, when) == ("create", moment):
            raise Crash

    engine.hook = crash
    with pytest.raises(Crash):
        engine.driver().create(spec(tmp_path))
    assert ("u0" in engine.machines) is exists


def test_failures_have_their_reasons(tmp_path: Path) -> None:
    engine = FakeEngine(Clock(), lambda spec: Script(failure="no space"))
    with pytest.raises(CreationFailed, match="no space"):
        engine.driver().create(spec(tmp_path))
    engine.unavailable = "down"
    with pytest.raises(EngineUnavailable, match="down"):
        engine.driver().list()


def test_end_by_the_real_clock_is_an_event(tmp_path: Path) -> None:
    engine = FakeEngine(time.time, lambda spec: Script(0.02))
    driver = engine.driver()
    names: list[str] = []
    driver.create(spec(tmp_path))

    def listen() -> None:
        names.append(next(driver.events()))

    listener = threading.Thread(target=listen)
    listener.start()
    listener.join(60)
    assert names == ["f1-00.example.com"]


def test_closing_ends_the_listening() -> None:
    driver = FakeEngine(time.time).driver()
    listener = threading.Thread(target=lambda: list(driver.events()))
    listener.start()
    driver.close()
    listener.join(60)
    assert not listener.is_alive()
