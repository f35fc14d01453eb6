"""Simulator of a space: many factories' own scheduling code in virtual time."""

from __future__ import annotations

from vac.simulate.results import Result, summarize
from vac.simulate.scenario import Scenario
from vac.simulate.world import World


def simulate(scenario: Scenario) -> Result:
    """Run a scenario to its end."""
    return summarize(scenario, World(scenario).run())
