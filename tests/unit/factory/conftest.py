"""A world for each test: simulated engines, virtual time, files without owners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulated import World, simulate_host

MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    """World() with a place for its state."""
    simulate_host(monkeypatch)
    return lambda *types, **settings: World(tmp_path / "state", *types, **settings)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Two slots, and one type whose machines run until they are ended."""
    return make_world()
