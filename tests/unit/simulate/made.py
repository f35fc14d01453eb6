"""Scenarios for tests, made in a line."""

from __future__ import annotations

from collections.abc import Mapping

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.simulate import simulate
from vac.simulate.results import Result
from vac.simulate.scenario import Hardware, Scenario, Space, Work

SHARES = {"atlas": 5.0, "lhcb": 3.0, "cms": 2.0}


def machinetype(name: str, share: float, **options: object) -> Machinetype:
    values: dict[str, object] = {
        "backoff_seconds": 600,
        "machine_model": "docker",
        "min_wallclock_seconds": 86400,
        **options,
    }
    return Machinetype(name=name, target_share=share, machinegroup=name, **values)  # type: ignore[arg-type]


def scenario(
    shares: Mapping[str, float] = SHARES,
    works: Mapping[str, Work] | None = None,
    hardware: Mapping[str, Hardware] | None = None,
    **space: object,
) -> Scenario:
    values: dict[str, object] = {"factories": 10, "hours": 2.0, **space}
    return Scenario(
        Space(**values),  # type: ignore[arg-type]
        Settings(),
        {name: machinetype(name, share) for name, share in shares.items()},
        works or {},
        hardware or {},
        name="test",
    )


def run(
    shares: Mapping[str, float] = SHARES,
    works: Mapping[str, Work] | None = None,
    hardware: Mapping[str, Hardware] | None = None,
    **space: object,
) -> Result:
    return simulate(scenario(shares, works, hardware, **space))
