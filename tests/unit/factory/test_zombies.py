"""What engines hold of this factory's that it doesn't want any more is removed, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from tests.fake_driver import Script
from tests.simulated import World
from vac.drivers.base import EngineState, EngineUnavailable, Observed
from vac.drivers.engine import Observation
from vac.lifecycle.phases import Empty

ELSEWHERE = "f1-07.example.com"


def fail_to_destroy(call: str, moment: str) -> None:
    if call == "destroy":
        raise EngineUnavailable("device is busy")


def observe(world: World) -> None:
    world.factory.state.engine_of("docker").request_observation()
    world.turn()


def test_a_machine_of_no_slot_is_removed_after_two_observations(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    own = world.running()
    world.stranger(ELSEWHERE, "lost")
    observe(world)
    assert "lost" in world.engine().machines
    observe(world)
    assert world.running() == own
    assert f"{ELSEWHERE} (lost) is in no slot: removing it" in caplog.text


def test_the_two_observations_follow_each_other(world: World) -> None:
    world.fill()
    for _ in range(3):
        world.stranger(ELSEWHERE, "lost")
        observe(world)
        del world.engine().machines["lost"]
        observe(world)
    world.stranger(ELSEWHERE, "lost")
    observe(world)
    assert "lost" in world.engine().machines


def test_a_stray_of_the_same_name_goes_and_the_slots_own_machine_stays(world: World) -> None:
    world.fill()
    own = world.running()
    world.stranger(world.machine().name, "lost")
    world.run(180)
    assert world.running() == own
    assert not world.machine().finished


def test_no_machine_is_created_under_the_name_of_one_that_is_still_to_be_removed(world: World) -> None:
    world.stranger("f1-00.example.com", "lost")
    world.hook = fail_to_destroy
    world.start()
    world.run(180)
    assert [spec.name for spec in world.made] == ["f1-01.example.com"]
    assert world.status().failed == {}
    assert world.status().slot_states == {"f1-00.example.com": "Zombie"}
    world.hook = lambda call, moment: None
    world.run(180)
    assert [spec.name for spec in world.made] == ["f1-01.example.com", "f1-00.example.com"]
    assert world.status().slot_states == {}


def test_remains_that_cannot_be_removed_keep_their_slot_and_the_cycle_goes_on(world: World) -> None:
    world.scripts = lambda spec: Script(300.0 if spec.name.startswith("f1-00") else None, "200 Success")
    world.fill()
    machine = world.machine()
    world.hook = fail_to_destroy
    world.run(181)
    assert machine.finished
    assert world.status().slot_states == {}
    world.run(120)
    assert world.status().slot_states == {machine.name: "Zombie"}
    assert len(world.made) == 2, "its slot and processor are still taken"
    assert world.machine(1).heartbeat_time == pytest.approx(world.clock.now, abs=60)
    assert len(world.records()) == 1

    world.hook = lambda call, moment: None
    world.run(65)
    assert len(world.made) == 3
    assert world.status().slot_states == {}
    world.run(300)
    assert len(world.records()) == 2


def test_remains_are_still_known_after_a_restart(world: World) -> None:
    world.scripts = lambda spec: Script(300.0 if spec.name.startswith("f1-00") else None, "200 Success")
    world.fill()
    machine = world.machine()
    world.hook = fail_to_destroy
    world.run(200)
    world.start()
    world.run(120)
    assert len(world.made) == 2
    assert world.status().slot_states == {machine.name: "Zombie"}
    world.hook = lambda call, moment: None
    world.run(60)
    assert machine.uuid not in world.engine().machines
    assert len(world.records()) == 1


def test_a_listing_asked_before_the_removal_does_not_take_the_slot_again(world: World) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    machine = world.machine()
    world.settings = dataclasses.replace(world.settings, draining=True)
    world.run(400)
    assert machine.uuid not in world.engine().machines
    assert isinstance(world.slot().phase, Empty)
    listed = (Observed(machine.name, machine.uuid, EngineState.ENDED),)
    world.hold = True
    asked_time = machine.created_time + 299.9 - world.clock.now + world.clock.boot()
    world.inbox.put(Observation("docker", listed, {}, asked_time, world.clock.boot()))
    world.turn()
    assert isinstance(world.slot().phase, Empty)
    assert world.held == []
