"""A state directory with a configuration beside it, and `vac` called with that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.state_dirs import new_state
from vac.cli.main import main
from vac.machines.layout import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = new_state(tmp_path)
    (tmp_path / "vac.conf").write_text(
        "[settings]\nvac_space = vac01.example.org\nfactory_name = node1.example.org\n"
        f"state_dir = {state.root}\n[machinetype lhcb-prod]\nmachine_model = bubblewrap\n"
    )
    return state


def vac(state: StateDir, *words: str) -> int:
    """Run this command with the configuration of `state`; return its exit status."""
    return main(["--config", str(state.root.parent / "vac.conf"), *words])
