"""Orders of people: destroy, finish, drain, and the site's shutdown time."""

from __future__ import annotations

import dataclasses

import pytest

from tests.simulated import START, World
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineUnavailable
from vac.drivers.engine import Action, ActionDone, ActionKind
from vac.machines import requests
from vac.machines.machine import Machine


def mjf(machine: Machine) -> tuple[int, int]:
    """Return the time at which the machine is told that it must end."""
    keys = ("machinefeatures/shutdowntime", "jobfeatures/shutdowntime_job")
    first, second = (int((machine.directory / key).read_text()) for key in keys)
    return first, second


def test_a_machine_is_destroyed_on_request(world: World) -> None:
    world.fill()
    machine, other = world.machine(0), world.machine(1)
    world.ask("destroy", machine)
    world.wake()
    world.run(60)
    assert machine.finished
    assert (machine.directory / "shutdown_message").read_text() == "100 Destroyed by the administrator\n"
    assert [record["LocalJobId"] for record in world.records()] == [machine.uuid]
    assert other.uuid in world.running()
    assert world.asked() == []


def test_a_machines_own_message_stands_against_the_factorys(world: World) -> None:
    world.fill()
    machine = world.machine()
    (machine.directory / "joboutputs/shutdown_message").write_text("300 Nothing to do\n")
    world.ask("destroy", machine)
    world.wake()
    assert (machine.directory / "shutdown_message").read_text() == "300 Nothing to do\n"


@pytest.mark.parametrize("action", ["destroy", "finish"])
def test_a_request_for_an_earlier_machine_is_dropped(world: World, action: str) -> None:
    world.fill()
    machine = world.machine()
    end = machine.shutdown_time
    world.ask(action, machine, uuid="another")
    world.wake()
    world.run(60)
    assert world.asked() == []
    assert machine.uuid in world.running()
    assert machine.shutdown_time == end


def test_a_request_for_a_slot_that_there_is_not_is_dropped(world: World) -> None:
    world.fill()
    requests.ask(world.state, requests.Request("destroy", "f1-44.example.com", "x"))
    world.wake()
    assert world.asked() == []


def test_requests_survive_a_restart(world: World) -> None:
    world.fill()
    machine = world.machine()
    world.ask("destroy", machine)
    world.start()
    world.run(5)
    assert machine.uuid not in world.engine().machines
    assert len(world.records()) == 1


def test_a_stop_that_fails_is_tried_again(world: World) -> None:
    world.fill()
    machine = world.machine()

    def fail(call: str, moment: str) -> None:
        if call == "stop":
            raise EngineUnavailable("timed out")

    world.hook = fail
    world.ask("destroy", machine)
    world.wake()
    world.run(300)
    assert not machine.finished
    assert machine.uuid in world.running()
    assert len(world.asked()) == 1
    world.hook = lambda call, moment: None
    world.run(125)
    assert machine.finished
    assert world.asked() == []


def test_a_stop_without_effect_is_tried_again(world: World) -> None:
    world.fill()
    machine = world.machine()
    engine = world.factory.state.engine_of("docker")
    stop, engine.stop = (
        engine.stop,
        lambda name, uuid: world.inbox.put(
            ActionDone("docker", Action(ActionKind.STOP, name, uuid), world.clock.now)
        ),
    )
    world.ask("destroy", machine)
    world.wake()
    world.run(60)
    assert machine.uuid in world.running()
    engine.stop = stop
    world.run(65)
    assert machine.finished


def test_a_machine_asked_to_finish_has_its_grace(make_world: MakeWorld) -> None:
    world = make_world(grace_secs=300)
    world.fill()
    machine, other = world.machine(0), world.machine(1)
    world.ask("finish", machine)
    world.wake()
    asked = world.clock.now
    assert mjf(machine) == (asked + 300, asked + 300)
    assert mjf(other)[0] == START + 15 + 86400
    assert world.asked() == []
    world.run(295)
    assert not machine.finished
    world.run(5)
    assert machine.finished
    assert (machine.directory / "shutdown_message").read_text() == "100 Shutdown time reached\n"
    assert not other.finished


def test_the_sites_shutdown_time_reaches_running_machines(make_world: MakeWorld) -> None:
    world = make_world(grace_secs=300)
    world.fill()
    machines = [world.machine(0), world.machine(1)]
    end = int(world.clock.now) + 2000
    world.settings = dataclasses.replace(world.settings, shutdown_time=end)
    world.run(60)
    assert [mjf(machine) for machine in machines] == [(end, end)] * 2
    world.settings = dataclasses.replace(world.settings, shutdown_time=None)
    world.run(60)
    assert [mjf(machine) for machine in machines] == [(end, end)] * 2, "an end is never moved back"


@pytest.mark.parametrize("wanted", [100, -5000])
def test_no_shutdown_time_leaves_a_machine_less_than_its_grace(make_world: MakeWorld, wanted: int) -> None:
    world = make_world(grace_secs=300)
    world.fill()
    machine = world.machine()
    world.settings = dataclasses.replace(world.settings, shutdown_time=int(world.clock.now) + wanted)
    world.wake()
    told = world.clock.now + 300
    assert mjf(machine) == (told, told)
    world.run(240)
    assert mjf(machine) == (told, told)
    assert not machine.finished
    world.run(60)
    assert machine.finished
    assert world.running() == []
    assert "shutdown_time has passed" in (world.status().guard or "") or wanted > 0


def test_a_lowered_end_survives_a_restart(make_world: MakeWorld) -> None:
    world = make_world(grace_secs=300)
    world.fill()
    world.ask("finish", world.machine())
    world.wake()
    end = world.machine().shutdown_time
    world.start()
    world.run(60)
    assert world.machine().shutdown_time == end


def test_a_draining_factory_creates_nothing_until_undrained(world: World) -> None:
    world.start()
    requests.drain(world.state, requests.Drain(START, START + 1000, "new kernel"))
    world.run(600)
    assert world.made == []
    assert "new kernel" in (world.status().guard or "")
    drain = world.status().drain
    assert drain is not None
    assert (drain.reason, drain.until) == ("new kernel", START + 1000)
    world.start()
    world.run(300)
    assert world.made == [], "it is still draining after a restart"
    requests.undrain(world.state)
    world.wake()
    assert len(world.made) == 1
    world.run(5)
    assert world.status().guard is None or "full" in (world.status().guard or "")


def test_machines_of_a_draining_factory_end_by_themselves(world: World) -> None:
    world.fill()
    requests.drain(world.state, requests.Drain(START))
    world.wake()
    world.run(600)
    assert len(world.running()) == 2


def test_draining_ends_by_its_time(world: World) -> None:
    world.start()
    requests.drain(world.state, requests.Drain(START, START + 300))
    world.run(420)
    assert len(world.running()) == 2
