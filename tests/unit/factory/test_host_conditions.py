"""Full disks, health_command and CernVM-FS: what they hold up and what goes on."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fake_driver import Script
from tests.simulated import World, one_type
from tests.steps import at_files
from tests.unit.factory.conftest import MakeWorld
from vac.background import Outcome, in_thread
from vac.config.checks import needed_repositories
from vac.config.machinetype import Machinetype
from vac.drivers.base import MachineSpec
from vac.factory import decisions, loop
from vac.factory.decisions import AT_ONCE, Repositories
from vac.factory.state import Stop


class Disk:
    """A disk that may be full. What the reserve gives up is room for a few files."""

    def __init__(self, world: World) -> None:
        self.reserve = world.state.reserve
        self.full = False
        self.reserve_suffices = True

    def step(self, step: str, path: Path) -> None:
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
    at_files(monkeypatch.setattr, disk.step)
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


def test_nothing_is_created_while_the_health_command_says_no(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []
    problems: list[str | None] = ["no space on /scratch", None]

    def health_problem(command: Path) -> str | None:
        runs.append(command)
        return problems[len(runs) - 1]

    monkeypatch.setattr(loop, "health_problem", health_problem)
    command = Path("/usr/local/bin/check")
    world.settings = dataclasses.replace(world.settings, health_command=command)
    world.start()
    world.run(200)
    assert (runs, world.made) == ([command], []), "it runs once in five minutes"
    assert "no space on /scratch" in (world.status().guard or "")
    world.run(300)
    assert len(world.made) == 2


PATIENCE = 60
MANY = [f"r{number:03d}" for number in range(2 * AT_ONCE)]


@pytest.mark.parametrize(
    ("options", "repositories"),
    [
        ({"machine_model": "docker"}, []),
        ({"machine_model": "docker", "cvmfs_repositories": ("a.b", "c.d/e")}, ["a.b", "c.d/e"]),
        ({"machine_model": "cernvm4", "cvmfs_repositories": ("a.b",)}, []),
        ({"machine_model": "cernvm4", "root_image": "/cvmfs/c.d/image.iso"}, ["c.d"]),
        ({"machine_model": "singularity", "root_image": "/cvmfs/c.d"}, ["c.d"]),
        (
            {"machine_model": "singularity", "root_image": "/cvmfs/c.d/x", "cvmfs_repositories": ("c.d",)},
            ["c.d"],
        ),
        ({"machine_model": "singularity", "root_image": "/var/cvmfs/c.d"}, []),
        ({"machine_model": "singularity", "root_image": "/cvmfs/"}, []),
    ],
)
def test_repositories_that_are_needed(options: dict[str, Any], repositories: list[str]) -> None:
    assert needed_repositories(Machinetype("t", **options)) == repositories


class Cvmfs:
    """Repositories that answer as a test wants, or hang until they are let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.started: queue.Queue[str] = queue.Queue()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, repository: str) -> None:
        self.asked.append(repository)
        self.started.put(repository)
        assert self.go.wait(PATIENCE)


@pytest.fixture
def cvmfs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cvmfs]:
    cvmfs = Cvmfs()
    monkeypatch.setattr(decisions, "repository_problem", cvmfs)
    yield cvmfs
    cvmfs.go.set()


def test_a_type_waits_for_all_of_its_repositories(make_world: MakeWorld) -> None:
    state = make_world().start().state
    one = Machinetype("t", machine_model="docker", cvmfs_repositories=("a.b", "c.d"))
    repositories = Repositories(state)
    assert repositories.problem(one) == "repository /cvmfs/a.b has not answered yet"
    repositories.seen(Outcome("a.b"))
    state.changed = False
    repositories.seen(Outcome("c.d", "is empty"))
    assert state.changed, "to be shown"
    assert repositories.problem(one) == "repository /cvmfs/c.d is empty"
    repositories.seen(Outcome("c.d"))
    assert repositories.problem(one) is None
    state.changed = False
    repositories.seen(Outcome("c.d"))
    assert not state.changed, "no news"


def test_repositories_are_kept_mounted_as_long_as_machines_run(make_world: MakeWorld, cvmfs: Cvmfs) -> None:
    world = make_world()
    world.fill()
    world.types = tuple(
        one_type(name, root_image=f"/cvmfs/{name}.d", target_share=0.0) for name in ("t", "never")
    )
    world.run(120.0)
    assert set(cvmfs.asked) == {"t.d"}


def in_threads(make_world: MakeWorld, names: Sequence[str]) -> World:
    """A factory that needs these repositories and looks at them in threads, as a real one does."""
    world = make_world(one_type(cvmfs_repositories=tuple(names)))
    world.spawn = in_thread
    world.start()
    return world


def answers(world: World) -> None:
    """Handle the next message."""
    handle = world.inbox.get(timeout=PATIENCE)
    assert callable(handle)
    handle()


def test_only_so_many_repositories_are_looked_at_together(make_world: MakeWorld, cvmfs: Cvmfs) -> None:
    cvmfs.go.clear()
    world = in_threads(make_world, MANY)
    for _ in range(2):
        world.factory.repositories.look()
    assert sorted(cvmfs.started.get(timeout=PATIENCE) for _ in range(AT_ONCE)) == MANY[:AT_ONCE]
    assert cvmfs.started.empty()
    cvmfs.go.set()
    for _ in MANY:
        answers(world)
    assert world.factory.repositories.problem(world.types[0]) is None
    assert sorted(cvmfs.asked) == MANY


def test_repositories_that_hang_make_room_but_not_without_end(
    make_world: MakeWorld, cvmfs: Cvmfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MOST_HANGING", len(MANY))
    monkeypatch.setattr(decisions, "ANSWER_SECONDS", 0.2)
    cvmfs.go.clear()
    more = [*MANY, *(f"s{number:03d}" for number in range(2 * AT_ONCE))]
    world = in_threads(make_world, more)
    repositories, (one,) = world.factory.repositories, world.types
    repositories.look()
    for _ in MANY:
        answers(world)
    assert repositories.problem(one) == "repository /cvmfs/r000 doesn't answer within 0 s"
    repositories.look()
    assert len(MANY) <= len(cvmfs.asked) < len(more), "those that were under way, and no more"
    cvmfs.go.set()
    while repositories.problem(one) is not None:
        answers(world)


def test_a_thread_that_can_not_be_started_is_told(make_world: MakeWorld) -> None:
    def spawn(work: Callable[[], None], name: str) -> None:
        raise RuntimeError("can't start new thread")

    world = make_world(one_type(cvmfs_repositories=("a.b",)))
    world.start()
    world.factory.state.spawn = spawn
    repositories = Repositories(world.factory.state)
    for _ in range(2):
        repositories.look()
        answers(world)
        assert repositories.problem(world.types[0]) == (
            "repository /cvmfs/a.b can't be looked at: can't start new thread"
        )


def test_a_machine_with_many_tasks_stops_no_others(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = [0.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], load[0], load[0]))
    world = make_world(slots=4, overload_per_processor=1.25)

    def script(spec: MachineSpec) -> Script:
        greedy = len(world.made) == 0
        return Script(900.0 if greedy else 150.0, "200 Success", busy_tasks=301 if greedy else 1)

    def made_in_ten_minutes() -> int:
        before = len(world.made)
        world.run(600)
        return len(world.made) - before

    world.scripts = script
    world.fill()
    assert len(world.running()) == 4
    load[0] = 304.0
    assert made_in_ten_minutes() >= 6
    while world.made[0].uuid in world.running():
        world.run(5)
    for number in range(20):  # it has ended, and the load goes down
        load[0] = 4 + 300 * math.exp(-number * 15 / 60)
        world.run(15)
        assert world.status().guard_name != "overload"
    load[0] = 4.0
    assert made_in_ten_minutes() >= 6
    load[0] = 304.0
    assert made_in_ten_minutes() <= 4, "it is something else now"
    assert world.status().guard_name == "overload"
