"""Speed of the simulator: virtual time per time, and the cost of a decision in spaces of growing size."""

from __future__ import annotations

import time
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.simulate import simulate
from vac.simulate.scenario import read_scenario

SCENARIO = Path(__file__).parent.parent / "examples" / "simulate" / "days.ini"
RUNS = ((10, 48), (100, 24), (1000, 2))
"""Factories of 64 processors, and hours."""


def run() -> None:
    """Print the figures."""
    for factories, hours in RUNS:
        scenario = read_scenario(SCENARIO, _no_site).changed(factories=factories, hours=hours)
        begun = time.perf_counter()
        result = simulate(scenario)
        took = time.perf_counter() - begun
        print(
            f"simulate: {factories} factories, {hours} h in {took:.1f} s "
            f"({hours * 3600 / took:.0f} × real time, {1e6 * took / result.machines:.0f} µs per machine)"
        )


def _no_site() -> tuple[Settings, dict[str, Machinetype]]:
    return Settings(), {}
