"""Factories that decide at the same time on views that are up to 30 s old."""

from __future__ import annotations

import random

import pytest

from tests.unit.scheduling.one_factory import IDLE_HOST, MODEL, START, machinetype, settings
from vac.scheduling.backoff import History
from vac.scheduling.decide import Situation, decide
from vac.scheduling.model import Occupied, SpaceView, TypeTotals
from vac.scheduling.own import own_reports
from vac.scheduling.ramp import RampState

FACTORIES = 20
PROCESSORS = 32


@pytest.mark.parametrize("shares", [{"a": 3, "b": 1}, {"a": 5, "b": 3, "c": 1, "d": 1}])
def test_an_empty_space_fills_without_overshooting_any_share(shares: dict[str, float]) -> None:
    rng = random.Random(1)
    names = tuple(f"f{index}" for index in range(FACTORIES))
    types = {name: machinetype(name, share) for name, share in shares.items()}
    capacity = float(FACTORIES * PROCESSORS)
    running = dict.fromkeys(types, 0)
    occupied: list[list[Occupied]] = [[] for _ in names]
    ramps = [RampState() for _ in names]
    views: list[tuple[float, SpaceView]] = [(0.0, SpaceView(name, names, capacity)) for name in names]
    due = [START + rng.uniform(0, 15) for _ in names]
    engines: dict[str, str | None] = {MODEL: None}
    for second in range(150):
        now = START + second
        for index, name in enumerate(names):
            if now < due[index]:
                continue
            if now - views[index][0] >= 30:
                totals = {one: TypeTotals(running_hs06=float(count)) for one, count in running.items()}
                own = own_reports(types, occupied[index], History(), 1.0, now)
                views[index] = now, SpaceView(name, names, capacity, totals, own)
            situation = Situation(
                settings(PROCESSORS),
                types,
                occupied[index],
                History(),
                views[index][1],
                IDLE_HOST,
                engines,
                now,
            )
            decision, ramps[index] = decide(situation, ramps[index], rng)
            for create in decision.creates:
                occupied[index].append(Occupied(create.machinetype, 1, now, now, now + 86400))
                running[create.machinetype] += 1
            due[index] = decision.next_time or now + 60
        for one, count in running.items():
            assert count <= (shares[one] / sum(shares.values()) + 0.02) * capacity
    assert sum(running.values()) == capacity
