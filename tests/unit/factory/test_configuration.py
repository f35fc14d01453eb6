"""Whatever happens to the configuration, machines that run are watched and accounted for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.fake_driver import Script
from tests.simulated import START, World, broken, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.machines.layout import StateDir

PROBLEM = "vac.conf: [machinetype t] machine_model: no such model"


def shorten(world: World, slots: int) -> None:
    world.settings = dataclasses.replace(world.settings, host_processors=slots, total_processors=slots)


def test_a_broken_configuration_stops_creation_and_nothing_else(world: World) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    world.configuration_error = broken()
    world.run(600)
    assert len(world.records()) == 2
    assert world.running() == []
    assert len(world.made) == 2
    assert world.error() == PROBLEM
    assert world.status().problems == (PROBLEM,)
    assert PROBLEM in (world.status().guard or "")

    world.configuration_error = None
    world.run(120)
    assert len(world.running()) == 2
    assert world.error() is None
    assert world.status().problems == ()


def test_a_creations_error_is_shown_again_after_the_configurations(world: World) -> None:
    world.state.prepare()
    world.state.factory_error.write_text("an older process's, or a classic factory's")
    world.start()
    world.run(5)
    assert world.error() is None
    world.scripts = lambda spec: Script(failure="image not found")
    world.run(60)
    failure = world.error()
    assert "image not found" in (failure or "")
    world.configuration_error = broken()
    world.run(70)
    assert world.error() == PROBLEM
    world.configuration_error = None
    world.run(70)
    assert world.error() == failure


def test_machines_are_watched_from_a_broken_configuration_on(world: World) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    machine = world.machine()
    world.configuration_error = broken(settings=world.settings)
    world.start()
    world.run(600)
    assert sorted(record["WallDuration"] for record in world.records()) == ["400", "400"]
    assert (machine.directory / "finished").exists()
    assert len(world.made) == 2
    assert world.engine().machines == {}
    assert world.error() == PROBLEM
    world.configuration_error = None
    world.run(120)
    assert len(world.running()) == 2


def test_a_broken_configuration_at_start_keeps_hold_backs(world: World) -> None:
    world.types = (one_type(backoff_seconds=1000),)
    world.scripts = lambda spec: Script(50.0, "300 Nothing to do")
    world.start()
    world.run(120)
    assert len(world.made) == 2
    world.configuration_error = broken(settings=world.settings)
    world.start()
    world.run(120)
    world.configuration_error = None
    world.run(300)
    assert len(world.made) == 2
    assert list(world.status().held_here) == ["t"]


def test_a_factory_that_is_not_sure_of_its_name_ends_no_machine(world: World) -> None:
    world.fill()
    engine, own = world.engine(), world.running()
    theirs = engine.machines
    engine.machines = {}
    settings = dataclasses.replace(world.settings, factory_name="vm.example.org")
    world.configuration_error = broken(settings=settings)
    world.start()
    world.run(600)
    assert world.records() == []
    assert world.asked() == []
    engine.machines = theirs
    world.configuration_error = None
    world.start()
    world.run(120)
    assert world.running() == own
    assert len(world.made) == 2


def test_a_factory_that_doubts_its_state_dir_removes_nothing(world: World, tmp_path: Path) -> None:
    world.fill()
    settings = dataclasses.replace(world.settings, state_dir=tmp_path / "default")
    world.configuration_error = broken(settings=settings)
    right, world.state = world.state, StateDir(tmp_path / "default")
    world.state.root.mkdir()
    world.start()
    world.run(600)
    assert len(world.running()) == 2
    world.configuration_error = None
    world.run(60)
    assert world.factory.stopping
    world.state = right
    world.start()
    world.run(60)
    assert len(world.running()) == 2
    assert world.records() == []


def test_a_type_that_is_removed_loses_no_machine_and_no_record(world: World) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    world.types = (one_type("other", target_share=0.0),)
    world.run(120)
    assert len(world.running()) == 2
    world.start()
    world.run(300)
    assert sorted(record["Queue"] for record in world.records()) == ["t", "t"]
    assert world.engine().machines == {}


def test_a_changed_type_leaves_its_machines_their_options(world: World) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    changed = one_type(target_share=0.0, machine_model="vm-raw", fizzle_seconds=5000, accounting_fqan="/new")
    world.types = (changed,)
    world.start()
    world.run(600)
    assert [("FQAN" in record, record["WallDuration"]) for record in world.records()] == [(False, "400")] * 2


def test_machines_in_slots_that_are_no_more_live_to_their_end(make_world: MakeWorld) -> None:
    world = make_world(slots=4)
    world.scripts = lambda spec: Script(600.0, "200 Success")
    world.fill()
    assert len(world.running()) == 4
    shorten(world, 2)
    world.run(60)
    assert len(world.running()) == 4
    assert world.state.counts.read_text().startswith("4 2 4 2 ")
    world.run(600)
    assert len(world.records()) == 4
    assert sorted(one.spec.name for one in world.engine_machines()) == [
        "f1-00.example.com",
        "f1-01.example.com",
    ]
    assert sorted(path.name for path in world.state.slots.iterdir()) == [
        "f1-00.example.com",
        "f1-01.example.com",
    ]


def test_machines_in_removed_slots_are_found_after_a_restart(make_world: MakeWorld) -> None:
    world = make_world(slots=4)
    world.scripts = lambda spec: Script(600.0, "200 Success")
    world.fill()
    shorten(world, 1)
    world.start()
    world.run(120)
    assert len(world.running()) == 4
    world.run(600)
    assert len(world.records()) == 4
    assert [one.spec.name for one in world.engine_machines()] == ["f1-00.example.com"]


def test_a_slot_that_is_no_more_is_not_used_again(make_world: MakeWorld) -> None:
    world = make_world(slots=4)
    world.scripts = lambda spec: Script(None if spec.name.startswith("f1-00") else 600.0, "200 Success")
    world.fill()
    world.settings = dataclasses.replace(world.settings, host_processors=2)
    world.run(1200)
    assert sorted(one.spec.name for one in world.engine_machines()) == [
        "f1-00.example.com",
        "f1-01.example.com",
    ]


@pytest.mark.parametrize("what", ["state_dir", "factory_name", "docker_host"])
def test_another_state_dir_name_or_engine_is_for_another_process(
    world: World, what: str, tmp_path: Path
) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    made = len(world.made)
    values: dict[str, Any] = {"state_dir": tmp_path / "elsewhere", "factory_name": "f2.example.com"}
    values["docker_host"] = "unix:///run/podman.sock"
    world.settings = dataclasses.replace(world.settings, **{what: values[what]})
    world.run(START + 400 - world.clock.now)
    assert world.factory.stopping
    assert len(world.made) == made, "it creates nothing on its way out"
    assert not (tmp_path / "elsewhere").exists()


def test_machines_run_on_when_their_engine_is_reached_otherwise(world: World) -> None:
    world.fill()
    machine = world.machine()
    world.settings = dataclasses.replace(world.settings, docker_host="unix:///run/podman.sock")
    world.run(60)
    assert world.factory.stopping
    world.start()
    world.run(60)
    assert not machine.finished
    assert len(world.running()) == 2
    assert len(world.records()) == 0
