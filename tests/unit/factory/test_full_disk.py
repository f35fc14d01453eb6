"""A full disk costs no accounting and no machine, and doesn't keep the factory from watching."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.fake_driver import Script
from tests.simulated import World, one_type
from vac.factory.state import Stop
from vac.machines import files


class Disk:
    """A disk that may be full. What the reserve gives up is room for a few files."""

    def __init__(self, world: World) -> None:
        self.reserve = world.state.reserve
        self.full = False
        self.reserve_suffices = True

    def checkpoint(self, step: str, path: Path) -> None:
        room = self.reserve_suffices and not self.reserve.exists()
        needs_room = step == "write" or (step == "mkdir" and not path.exists())
        if self.full and not room and needs_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(world: World, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(world)
    monkeypatch.setattr(files, "checkpoint", disk.checkpoint)
    monkeypatch.setattr(os, "posix_fallocate", disk.allocate)
    return disk


def test_the_reserve_is_given_up_for_accounting(world: World, disk: Disk) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    disk.full = True
    world.types = (one_type(target_share=0.0),)
    world.run(300)
    assert len(world.records()) == 2
    assert len(world.records(world.state.apel_outgoing)) == 2
    assert world.engine().machines == {}
    assert not world.state.reserve.exists()
    disk.full = False
    world.run(60)
    assert world.state.reserve.exists()


def test_without_any_room_an_end_waits_and_is_written_once(world: World, disk: Disk) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    machine = world.machine()
    disk.full, disk.reserve_suffices = True, False
    world.types = (one_type(target_share=0.0),)
    world.run(600)
    assert world.records() == []
    assert not machine.finished
    assert machine.uuid in world.engine().machines, "its final usage must stay readable"
    disk.full = False
    world.run(120)
    assert [record["CpuDuration"] for record in world.records()] == ["300", "300"]
    assert [record["WallDuration"] for record in world.records()] == ["300", "300"]
    assert world.engine().machines == {}


@pytest.mark.parametrize(("stops", "vanishes"), [(True, False), (False, False), (False, True)])
def test_an_end_that_waits_for_the_disk_stays_where_it_was(
    world: World, disk: Disk, stops: bool, vanishes: bool
) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success", vanishes=vanishes, processors_used=0.0)
    world.fill()
    disk.full, disk.reserve_suffices = True, False
    world.types = (one_type(target_share=0.0),)
    world.run(320)
    if stops:
        disk.full = False
        world.inbox.put(Stop())
        world.factory.run(lambda: None, lambda: None)
        world.start()
    world.run(30)
    disk.full = False
    world.run(60)
    assert [record["WallDuration"] for record in world.records()] == ["300", "300"]


def test_a_factory_starts_on_a_full_disk_and_watches(world: World, disk: Disk) -> None:
    world.scripts = lambda spec: Script(None if spec.name.startswith("f1-00") else 300.0, "200 Success")
    world.fill()
    disk.full, disk.reserve_suffices = True, False
    world.start()
    world.run(600)
    assert world.machine().uuid in world.running()
    assert world.machine().heartbeat_time == pytest.approx(world.clock.now, abs=60)
    disk.full = False
    world.types = (one_type(target_share=0.0),)
    world.run(120)
    assert len(world.records()) == 1


def test_no_machine_is_begun_on_a_full_disk(world: World, disk: Disk) -> None:
    world.start()
    disk.full, disk.reserve_suffices = True, False
    world.run(300)
    assert world.made == []
    assert world.directories() == []
    assert [path.name for path in world.state.tmp.iterdir()] == []
    disk.full = False
    world.run(600)
    assert len(world.running()) == 2


@pytest.mark.parametrize("reserve_suffices", [False, True])
def test_a_machine_that_starts_on_a_full_disk_is_not_lost(
    world: World, disk: Disk, reserve_suffices: bool
) -> None:
    world.start()
    world.hold = True
    world.turn()
    machine = world.machine()
    disk.full, disk.reserve_suffices = True, reserve_suffices
    world.release()
    world.run(300)
    assert machine.uuid in world.running()
    assert machine.directory.exists()
    disk.full = False
    world.run(120)
    assert machine.started_time is not None
    assert machine.uuid in world.running()


def test_machines_can_be_ended_on_a_full_disk(world: World, disk: Disk) -> None:
    world.fill()
    machine = world.machine()
    world.ask("destroy", machine)
    disk.full, disk.reserve_suffices = True, False
    world.wake()
    assert machine.uuid not in world.running()
    disk.full = False
    world.run(120)
    assert machine.finished


def test_an_end_that_cannot_be_lowered_yet_is_lowered_later(world: World, disk: Disk) -> None:
    world.fill()
    machine = world.machine()
    world.ask("finish", machine)
    before = machine.shutdown_time
    disk.full, disk.reserve_suffices = True, False
    world.wake()
    assert machine.shutdown_time == before
    disk.full = False
    world.run(65)
    assert machine.shutdown_time < before
