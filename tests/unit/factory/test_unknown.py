"""What can't be seen is not ended: nothing is concluded from an engine that doesn't answer, or not yet."""

from __future__ import annotations

import pytest

from tests.fake_driver import Script
from tests.simulated import START, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineUnavailable
from vac.drivers.engine import Changed, Observation
from vac.machines import requests
from vac.machines.machine import Machine


def two_engines(make_world: MakeWorld) -> World:
    world = make_world(one_type("c"), one_type("v", machine_model="vm-raw"))
    world.scripts = lambda spec: Script(300.0 if spec.machinetype.name == "v" else None, "200 Success")
    world.fill()
    assert sorted(spec.machinetype.name for spec in world.made) == ["c", "v"]
    return world


def test_an_engine_that_is_down_leaves_its_machines_as_they_were(make_world: MakeWorld) -> None:
    world = two_engines(make_world)
    machine = next(world.machine(n) for n in (0, 1) if world.machine(n).machinetype == "c")
    seen = machine.heartbeat_time
    world.engine("docker").unavailable = "connection refused"
    world.run(3600)
    assert not machine.finished
    assert machine.heartbeat_time == seen
    assert {record["Queue"] for record in world.records()} == {"v"}
    assert "connection refused" in (world.status().engines["docker"] or "")
    assert world.status().slot_states == {machine.name: "Unknown"}
    assert "connection refused" in world.status().passed_over["c"]

    world.engine("docker").unavailable = None
    world.run(120)
    assert world.running()[0] == machine.uuid
    assert machine.heartbeat_time == pytest.approx(world.clock.now, abs=60)
    assert world.status().slot_states == {}


def test_other_engines_work_on_while_one_is_down(make_world: MakeWorld) -> None:
    world = two_engines(make_world)
    world.engine("docker").unavailable = "connection refused"
    world.run(3600)
    assert len([record for record in world.records() if record["Queue"] == "v"]) >= 10
    assert len([spec for spec in world.made if spec.machinetype.name == "c"]) == 1


def test_an_engines_fall_and_return_are_told_and_acted_upon_at_once(world: World) -> None:
    def news() -> None:
        world.inbox.put(Changed("docker", "f1-00.example.com"))
        world.run(1, step=1.0)

    world.start()
    world.turn()
    world.engine().unavailable = "connection refused"
    news()
    assert "connection refused" in (world.status().guard or "")
    world.run(29)
    assert len(world.made) == 1
    world.engine().unavailable = None
    news()
    assert world.status().engines == {"docker": None}
    assert len(world.made) == 2


def test_an_engine_that_does_not_answer_is_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    engine = world.factory.state.engines["docker"]
    begun = world.clock.now
    monkeypatch.setattr(engine, "stuck_seconds", lambda: world.clock.now - begun + 1)
    monkeypatch.setattr(engine, "problem", lambda: f"no answer for {world.clock.now - begun:.0f} s")
    caplog.set_level("INFO")
    world.run(100)
    assert [record.message for record in caplog.records if "answer" in record.message] == [
        "docker: it doesn't answer in time"
    ]


def test_a_machine_that_ended_unseen_is_accounted_for_once_its_engine_answers(world: World) -> None:
    world.scripts = lambda spec: Script(600.0, "200 Success", vanishes=True, processors_used=0.5)
    world.fill()
    machine = world.machine(0)
    world.run(300)
    last_seen = machine.heartbeat_time
    world.engine().unavailable = "down"
    world.run(1200)
    assert world.records() == []
    world.types = (one_type(target_share=0.0),)
    world.engine().unavailable = None
    world.run(120)
    records = {record["LocalJobId"]: record for record in world.records()}
    assert last_seen is not None
    assert int(records[machine.uuid]["EndTime"]) == int(last_seen)
    assert len(world.records()) == 2


def test_an_engine_that_is_late_is_said_to_be_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    engine, since = world.factory.state.engine_of("docker"), world.clock.now

    def late() -> float:
        return world.clock.now - since

    monkeypatch.setattr(engine, "stuck_seconds", late)
    monkeypatch.setattr(engine, "problem", lambda: f"no answer for {late():.0f} s")
    world.run(300)
    assert caplog.text.count("docker: no answer") == 1


def test_a_factory_that_starts_does_not_complain_that_engines_have_yet_to_answer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.start()
    world.run(120)
    assert len(world.made) == 2
    assert "nothing is created" not in caplog.text


def test_nothing_is_created_before_an_engine_has_answered(world: World) -> None:
    world.engine().unavailable = "down"
    world.start()
    world.run(600)
    assert world.directories() == []
    assert "down" in (world.status().guard or "")
    world.engine().unavailable = None
    world.run(120)
    assert len(world.running()) == 2


def test_an_engine_that_is_down_at_start_leaves_what_it_had(world: World) -> None:
    world.fill()
    before = world.running()
    world.engine().unavailable = "down"
    world.start()
    world.run(600)
    assert not world.machine(0).finished
    assert world.state.counts.read_text().startswith("2 2 ")
    world.engine().unavailable = None
    world.run(600)
    assert world.running() == before
    assert world.records() == []


def test_a_listing_asked_before_a_creation_says_nothing_of_the_machine(world: World) -> None:
    world.start()
    world.turn()
    machine, now = world.machine(), world.clock.boot()
    world.inbox.put(Observation("docker", (), {}, asked_time=now - 0.1, time=now))
    world.turn()
    assert not machine.finished
    assert world.running() == [machine.uuid]


def test_a_listing_during_a_creation_says_nothing_of_the_machine(world: World) -> None:
    world.start()
    world.hold = True
    world.run(120)
    assert not world.slot().running
    assert world.slot().occupied
    machine = world.machine()
    world.release()
    assert world.running()[0] == machine.uuid
    assert world.slot().running


@pytest.mark.parametrize(("moment", "adopted"), [("before", False), ("after", True)])
def test_a_creation_of_which_nobody_knows_the_end(world: World, moment: str, adopted: bool) -> None:
    made: list[Machine] = []

    def lose(call: str, when: str) -> None:
        if (call, when) == ("create", moment):
            made.append(world.machine())
            raise EngineUnavailable("connection lost")

    world.hook = lose
    world.start()
    world.turn()
    machine = made[0]
    world.hook = lambda call, when: None
    world.run(60)
    assert (machine.uuid in world.running()) is adopted
    assert machine.directory.exists() is adopted
    if adopted:
        assert machine.started_time == machine.created_time
        assert world.slot().running


def test_an_unexpected_error_of_a_driver_is_no_end_either(world: World) -> None:
    world.fill()
    machine = world.machine()

    def fail(call: str, when: str) -> None:
        raise RuntimeError("a bug in a driver")

    world.hook = fail
    world.run(600)
    assert not machine.finished
    assert len(world.running()) == 2


def test_a_clock_that_is_set_back_stalls_nothing(world: World) -> None:
    world.fill()
    requests.drain(world.state, requests.Drain(START))
    world.clock.now -= 7200
    world.run(120)
    assert "draining" in (world.status().guard or "")
    assert world.state.heartbeat("factory").stat().st_mtime > world.clock.now - 120
    world.engine().machines.clear()
    world.run(120)
    assert world.running() == [], "machines are watched as before"
