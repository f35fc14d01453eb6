"""What may befall a factory's host: engines that refuse, clocks that are set back, hands in its directories."""

from __future__ import annotations

import shutil

import pytest

from tests.fake_driver import Script
from tests.simulated import World
from vac.drivers.base import EngineUnavailable


def test_a_machine_that_cannot_be_stopped_is_not_asked_to_all_the_time(world: World) -> None:
    world.fill()
    attempts: list[float] = []

    def refuse(call: str, moment: str) -> None:
        if call == "stop" and len(attempts) < 1000:
            attempts.append(world.clock.now)
            raise EngineUnavailable("device is busy")

    world.hook = refuse
    world.clock.now = world.machine().shutdown_time + 1.0
    world.run(60)
    assert 4 <= len(attempts) <= 2 * 6, "two machines, every 15 s"


def test_a_clock_that_is_set_back_does_not_blind_the_factory(world: World) -> None:
    world.fill()
    machine = world.machine()
    world.clock.now -= 7200
    back = world.clock.now
    world.run(130)
    assert back < world.state.heartbeat("factory").stat().st_mtime <= world.clock.now
    assert machine.heartbeat_time is not None
    assert back < machine.heartbeat_time <= world.clock.now
    assert (world.status().decision_time or 0) <= world.clock.now
    del world.engine().machines[machine.uuid]
    world.run(65)
    assert machine.finished


def test_a_machine_whose_directory_was_removed_by_hand_is_watched_and_accounted_for(world: World) -> None:
    world.fill()
    machine = world.machine()
    shutil.rmtree(machine.directory)
    world.run(300)
    assert machine.uuid in world.running()
    world.ask("finish", machine)
    world.wake()
    world.ask("destroy", machine)
    world.wake()
    world.run(60)
    assert [record["LocalJobId"] for record in world.records()] == [machine.uuid]


@pytest.mark.parametrize("failure", [None, "no such image"])
def test_a_directory_that_is_removed_during_the_creation_does_no_harm(
    world: World, failure: str | None
) -> None:
    world.scripts = lambda spec: Script(failure=failure)
    world.start()
    world.hold = True
    world.turn()
    name = world.machine().name
    shutil.rmtree(world.machine().directory)
    world.release()
    world.scripts = lambda spec: Script()
    world.run(300)
    world.engine().machines.clear()
    world.run(300)
    assert name in [one.spec.name for one in world.engine_machines()], "its slot is in use again"


def test_a_machine_of_a_model_that_is_not_known_is_left_alone(world: World) -> None:
    world.state.prepare()
    directory = world.state.machines / "1799999000_t_f1-00.example.com"
    directory.mkdir()
    (directory / "started").write_text("1799999000\n")
    (world.state.slots / "f1-00.example.com").write_text("1799999000 t lxc\n")
    world.engine("lxc").unavailable = "machine_model lxc is not known to this version"
    world.fill()
    assert [spec.name for spec in world.made] == ["f1-01.example.com"]
    assert world.status().slot_states == {"f1-00.example.com": "Unknown"}
    assert "lxc" in (world.status().engines["lxc"] or "")
    assert not world.machine().finished


@pytest.mark.parametrize(
    "place", ["slots/lost+found", "slots/f1-09.example.com", "requests/destroy-f1-00.example.com"]
)
def test_a_directory_in_the_place_of_a_file_is_not_looked_at(world: World, place: str) -> None:
    world.state.prepare()
    (world.state.root / place).mkdir()
    world.fill()
    assert len(world.running()) == 2
    assert (world.state.root / place).is_dir()


def test_an_order_to_drain_that_says_nothing_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    caplog.set_level("INFO")
    (world.state.requests / "drain").touch()
    world.run(600)
    assert len([record for record in caplog.records if record.name == "vac.factory.admin_requests"]) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_set_back_holds_no_type_back_for_longer(world: World, restart: bool) -> None:
    world.scripts = lambda spec: Script(10.0, "300 Nothing to do")
    world.fill()
    world.scripts = lambda spec: Script()
    world.clock.now -= 7200
    if restart:
        world.start()
    world.run(600)
    assert len(world.running()) == 2
