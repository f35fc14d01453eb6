"""Which repositories a machinetype needs, and what its machines wait for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.simulated import one_type
from tests.unit.factory.conftest import MakeWorld
from vac.config.checks import needed_repositories
from vac.config.machinetype import Machinetype
from vac.factory.decisions import Repositories
from vac.host.probes import RepositorySeen, RepositoryWatch


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


class Nobody(RepositoryWatch):
    """Looks at nothing, and keeps what it was asked for."""

    asked: frozenset[str] = frozenset()

    def look(self, repositories: Iterable[str]) -> None:
        """See RepositoryWatch."""
        self.asked = frozenset(repositories)


def test_a_type_waits_for_all_of_its_repositories(make_world: MakeWorld) -> None:
    state = make_world().start().state
    one = Machinetype("t", machine_model="docker", cvmfs_repositories=("a.b", "c.d"))
    repositories = Repositories(state, Nobody(lambda _: None))
    assert repositories.problem(one) == "repository /cvmfs/a.b has not answered yet"
    repositories.seen(RepositorySeen("a.b", None))
    state.changed = False
    repositories.seen(RepositorySeen("c.d", "is empty"))
    assert state.changed, "to be shown"
    assert repositories.problem(one) == "repository /cvmfs/c.d is empty"
    repositories.seen(RepositorySeen("c.d", None))
    assert repositories.problem(one) is None
    state.changed = False
    repositories.seen(RepositorySeen("c.d", None))
    assert not state.changed, "no news"


def test_repositories_are_kept_mounted_as_long_as_machines_run(make_world: MakeWorld) -> None:
    world = make_world()
    world.fill()
    world.types = tuple(
        one_type(name, root_image=f"/cvmfs/{name}.d", target_share=0.0) for name in ("t", "never")
    )
    watch = Nobody(lambda _: None)
    world.factory.repositories = Repositories(world.factory.state, watch)
    world.run(120.0)
    assert watch.asked == {"t.d"}
