"""Which repositories a machinetype needs, and what its machines wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.simulated import World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.background import Outcome, in_thread
from vac.config.checks import needed_repositories
from vac.config.machinetype import Machinetype
from vac.factory import decisions
from vac.factory.decisions import AT_ONCE, Repositories

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
