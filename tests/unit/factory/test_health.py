"""What the site's health_command means for creation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.simulated import World
from vac.factory import loop


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
