"""What the site's health_command means for creation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.simulated import World
from vac.host.probes import HealthChecked


class Health:
    """In place of HealthCheck: says at once what a test wants."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.problem: str | None = None
        self.runs = 0

    def start(self, command: Path) -> None:
        """See HealthCheck."""
        self.runs += 1
        self.world.inbox.put(HealthChecked(self.problem))


def test_nothing_is_created_while_the_health_command_says_no(world: World) -> None:
    world.settings = dataclasses.replace(world.settings, health_command=Path("/usr/local/bin/check"))
    world.start()
    health = Health(world)
    health.problem = "no space on /scratch"
    world.factory.health = health  # type: ignore[assignment]
    world.run(200)
    assert (health.runs, world.made) == (1, []), "it runs once in five minutes"
    assert "no space on /scratch" in (world.status().guard or "")
    health.problem = None
    world.run(300)
    assert len(world.made) == 2
