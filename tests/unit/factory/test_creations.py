"""How machines begin and end in the factory, and what is left of those that could not be made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.fake_driver import FakeDriver, FakeMachine, Script
from tests.simulated import START, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineState, MachineSpec, Observed
from vac.drivers.engine import Action, ActionDone, ActionKind, Observation

FAILURE = "t: f1-00.example.com: image not found"


def failing_at_first(world: World, failures: int) -> None:
    left = iter(range(failures))

    def script(spec: MachineSpec) -> Script:
        return Script(failure="image not found" if next(left, None) is not None else None)

    world.scripts = script


def test_a_failed_creation_leaves_nothing_but_its_reason(world: World) -> None:
    failing_at_first(world, 1)
    world.start()
    world.run(5)
    assert world.directories() == []
    assert list(world.state.slots.iterdir()) == []
    assert world.error() == FAILURE
    assert world.status().failed["t"].reason == "f1-00.example.com: image not found"
    assert world.status().failed["t"].time == START
    assert "failed here" in world.status().passed_over["t"]
    assert world.status().created == ()
    assert world.records() == []


def test_the_next_success_takes_the_reason_back(world: World) -> None:
    failing_at_first(world, 1)
    world.start()
    world.run(65)
    assert len(world.running()) == 2
    assert world.error() is None
    assert world.status().failed == {}
    assert [one.machine for one in world.status().created] == ["f1-01.example.com", "f1-00.example.com"]


def test_failures_in_a_row_are_tried_again_ever_more_rarely(world: World) -> None:
    times: list[float] = []

    def script(spec: MachineSpec) -> Script:
        times.append(world.clock.now)
        return Script(failure="image not found")

    world.scripts = script
    world.start()
    world.run(500, step=1.0)
    tries = sorted(set(times))
    pauses = [after - before for before, after in zip(tries, tries[1:])]
    assert pauses == [10, 20, 40, 80, 160]


def test_another_type_is_not_affected(make_world: MakeWorld) -> None:
    world = make_world(one_type("bad"), one_type("good"))
    world.scripts = lambda spec: Script(failure="no" if spec.machinetype.name == "bad" else None)
    world.fill()
    assert [spec.machinetype.name for spec in world.made] == ["good"] * len(world.made) != []
    assert "bad" in world.status().failed


def test_a_context_that_cannot_be_made_is_a_failed_creation(make_world: MakeWorld) -> None:
    world = make_world(one_type(user_data="script"))
    world.start()
    world.run(5)
    assert "script can't be read: No such file" in (world.error() or "")
    assert world.made == []
    assert world.directories() == []
    template = world.state.machinetype_files("t") / "script"
    template.parent.mkdir(parents=True)
    template.write_text("#!/bin/sh\n# ##user_data_uuid##\n")
    world.run(65)
    assert (world.machine().directory / "user_data").read_text() == f"#!/bin/sh\n# {world.machine().uuid}\n"


@pytest.mark.parametrize("restart", [False, True])
def test_a_half_made_machine_is_no_machine(
    world: World, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    world.start()
    world.hold = True
    world.turn()
    machine = world.machine()
    half_made = Observed(machine.name, machine.uuid, EngineState.HALF_MADE)
    world.stranger(machine.name, machine.uuid)
    monkeypatch.setattr(FakeMachine, "observed", lambda self, now: half_made)
    world.hold = False
    world.types = (one_type(target_share=0.0),)
    if restart:
        world.clock.now += 5
        world.start()
    else:
        answer = Action(ActionKind.CREATE, machine.name, machine.uuid)
        world.inbox.put(ActionDone("docker", answer, world.clock.boot(), "connection lost", unavailable=True))
        world.wake()
    world.run(120)
    assert world.engine().machines == {}
    assert not machine.directory.exists()
    assert list(world.state.slots.iterdir()) == []
    assert world.records() == []
    assert ("cut short" in (world.error() or "")) is not restart, "what a restart cleans up is no error"


def test_a_machine_that_ends_is_accounted_for_and_replaced_at_once(world: World) -> None:
    world.scripts = lambda spec: Script(300.0 if spec.name.startswith("f1-00") else None, "200 Success")
    world.fill()
    first = world.machine()
    world.run(START + 300 - world.clock.now)
    assert world.clock.now == START + 300
    assert first.finished
    assert first.uuid not in world.engine().machines
    assert world.machine().uuid != first.uuid
    assert world.machine().created_time == START + 300
    assert world.slot().running
    (record,) = world.records()
    assert (record["LocalJobId"], record["WallDuration"], record["CpuDuration"]) == (first.uuid, "300", "300")
    assert (first.directory / "shutdown_message").read_text() == "200 Success\n"


@pytest.mark.parametrize("dead", [False, True])
def test_a_machine_that_vanishes_ended_when_it_was_last_seen_alive(world: World, dead: bool) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success", vanishes=True)
    world.fill()
    world.run(100)
    seen = world.machine().heartbeat_time
    assert seen == START + 180
    if dead:
        world.clock.now += 1000
        world.start()
    world.types = (one_type(target_share=0.0),)
    world.run(1000)
    ends = {int(record["EndTime"]) for record in world.records()}
    assert (min(ends), len(world.records())) == ((seen, 2) if dead else (START + 300, 2))
    assert world.running() == []


def test_a_machine_that_dies_at_once_makes_no_record_and_is_held_back(world: World) -> None:
    world.scripts = lambda spec: Script(2.0)
    world.start()
    world.run(30, step=1.0)
    assert world.records() == []
    assert len(world.made) == 2
    assert list(world.status().held_here) == ["t"]
    assert (world.state.finishes / "t").read_text().endswith("f1-00.example.com\n")


def test_an_end_that_was_listed_before_the_creation_was_told_is_seen_at_once(world: World) -> None:
    world.scripts = lambda spec: Script(1.0, "200 Success")

    def end(call: str, moment: str) -> None:
        if (call, moment) == ("create", "after"):
            world.clock.now += 2
            world.engine().wake()
            world.told_of_changes("docker")
            seen, now = tuple(world.engine().driver().list()), world.clock.now
            world.inbox.put(Observation("docker", seen, {}, now, now))
            world.clock.now += 1

    world.hook = end
    world.start()
    world.turn()
    assert world.made
    assert [(directory / "finished").exists() for directory in world.directories()] == [True] * len(
        world.made
    )


def test_a_paused_machine_is_ended(world: World) -> None:
    world.scripts = lambda spec: Script(None, paused=spec.name.startswith("f1-00"))
    world.start()
    world.turn()
    world.types = (one_type(target_share=0.0),)
    machine = world.machine()
    world.run(60)
    assert machine.finished
    assert (machine.directory / "shutdown_message").read_text() == "700 Paused\n"


def test_a_machine_over_its_time_is_ended(make_world: MakeWorld) -> None:
    world = make_world(one_type(max_wallclock_seconds=500), slots=1)
    world.start()
    world.run(500)
    first = world.directories()[0]
    assert (first / "shutdown_message").read_text() == "100 Shutdown time reached\n"
    assert [record["WallDuration"] for record in world.records()] == ["500"]
    assert len(world.running()) == 1


def test_a_restart_finds_everything_as_it_was(world: World) -> None:
    world.fill()
    before = {slot.name: slot.machine.uuid for slot in world.factory.state.slots if slot.machine}
    for _ in range(3):
        world.start()
        world.run(90)
    assert {slot.name: slot.machine.uuid for slot in world.factory.state.slots if slot.machine} == before
    assert len(world.made) == 2
    assert world.state.counts.read_text() == "2 2 2 2 20.00\n"


@pytest.mark.parametrize(
    ("key", "offered", "warned"),
    [
        (b"ssh-rsa AAAA root@f1\n", True, False),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", False, True),
        (None, False, False),
    ],
)
def test_vms_are_offered_the_sites_public_key(
    make_world: MakeWorld,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: bytes | None,
    offered: bool,
    warned: bool,
) -> None:
    path = tmp_path / "id_rsa.pub"
    if key is not None:
        path.write_bytes(key)
    world = make_world(one_type("vm", machine_model="cernvm4"), root_public_key=path)
    world.fill()
    assert len(world.made) == 2
    for number, spec in enumerate(world.made):
        assert (spec.directory / "ip").read_text() == f"169.254.169.{number}"
        assert (spec.directory / "root_public_key").exists() == offered
    assert ("is not offered to VMs: it holds a private key" in caplog.text) == warned


def test_containers_get_no_key_and_no_address(make_world: MakeWorld, tmp_path: Path) -> None:
    path = tmp_path / "id_rsa.pub"
    path.write_bytes(b"ssh-rsa AAAA root@f1\n")
    world = make_world(one_type("c"), root_public_key=path)
    world.fill()
    assert not [
        name for spec in world.made for name in ("ip", "root_public_key") if (spec.directory / name).exists()
    ]


def test_nothing_new_is_fetched_while_no_machine_can_be_made(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(
        FakeDriver, "prepare", lambda driver, kind, settings, files: asked.append(kind.root_image)
    )
    world = make_world(one_type(root_image="https://example.org/first.img"))
    world.fill()
    assert len(world.running()) == 2
    world.types = (
        *world.types,
        *(one_type(f"p-{n}", pipe="p", root_image=f"https://p/{n}.img") for n in range(36)),
    )
    world.run(300)
    assert {*asked} == {"https://example.org/first.img"}, "that of a type that has been made stays fresh"
    world.settings = dataclasses.replace(world.settings, draining=True)
    world.run(300)
    assert len({*asked}) == 1
    world.settings = dataclasses.replace(
        world.settings, draining=False, total_processors=3, host_processors=3
    )
    world.run(120)
    assert len({*asked}) == 37
