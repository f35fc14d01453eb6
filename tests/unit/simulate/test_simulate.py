"""Simulated spaces do what a space should, and what is measured of them is right."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.simulate.made import run, scenario
from vac.scheduling.model import Occupied, TypeReport
from vac.scheduling.space import view
from vac.simulate import simulate
from vac.simulate.measure import Kind, targets
from vac.simulate.nodes import Machine, Polling, ReportStore, make_nodes
from vac.simulate.scenario import Hardware, Work

NEVER = Work(when=("never",))
SHORT = Work(lifetime="20m-1h")
SMALL = {"small": Hardware(processors=16)}
SHORT_WORK = {"atlas": SHORT, "lhcb": SHORT, "cms": SHORT}


def test_an_empty_space_fills_in_minutes_by_share() -> None:
    result = run(factories=50, hours=1)
    assert result.fill_seconds is not None
    assert result.fill_seconds < 240
    assert result.way.most < 0.02
    assert result.full is not None
    assert result.samples[-1].error < 0.005
    assert result.lost < 0.005


def test_shares_are_kept_while_machines_come_and_go() -> None:
    result = run(works=SHORT_WORK, hardware=SMALL, factories=25, hours=4)
    assert result.full is not None
    assert result.full.mean < 0.005
    assert result.lost < 0.005


def test_classic_factories_take_an_hour_to_fill() -> None:
    result = run(policy="classic", hours=1.5)
    assert result.fill_seconds == pytest.approx(64 * 62, abs=120)


@pytest.mark.parametrize("message", ["300 Nothing to do", "none"])
def test_a_type_without_work_is_probed_now_and_then(message: str) -> None:
    works = {**SHORT_WORK, "cms": dataclasses.replace(NEVER, no_work_message=message)}
    result = run(works=works, hardware=SMALL, factories=15, hours=6)
    (probes,) = result.probes
    assert probes.machinetype == "cms"
    assert probes.periods == 36
    assert 0 < probes.median <= 3
    assert result.samples[-1].parts["atlas"] == pytest.approx(5 / 8, abs=0.02)


def test_a_returning_type_gets_its_share_as_slots_become_free() -> None:
    works = {**SHORT_WORK, "lhcb": Work(when=("0h-1h", "3h-"), lifetime="20m-1h")}
    result = run(works=works, hardware=SMALL, factories=25, hours=5)
    (recovery,) = result.recoveries
    assert (recovery.machinetype, recovery.start_seconds) == ("lhcb", 3 * 3600)
    assert recovery.possible_seconds is not None
    assert recovery.arrived_seconds is not None
    assert 0 < recovery.possible_seconds < 2400
    assert recovery.arrived_seconds < recovery.possible_seconds + 3600


def test_broken_nodes_leave_the_others_full() -> None:
    result = run(works=SHORT_WORK, hardware=SMALL, factories=25, hours=4, broken=0.04)
    assert result.lost < 0.01
    assert result.full is not None
    assert result.full.mean < 0.01


def test_a_type_that_few_nodes_can_run_gets_these() -> None:
    hardware = {
        "plain": Hardware(part=9, processors=16, machinetypes=("atlas", "lhcb")),
        "special": Hardware(part=1, processors=8),
    }
    result = run({"atlas": 1, "lhcb": 1, "cms": 1}, SHORT_WORK, hardware, factories=20, hours=4)
    last = result.samples[-1]
    assert last.wanted["cms"] == pytest.approx(2 * 8 / (18 * 16 + 2 * 8))
    assert last.parts["cms"] == pytest.approx(last.wanted["cms"], rel=0.1)
    assert last.parts["atlas"] == pytest.approx(last.parts["lhcb"], rel=0.05)


def test_limited_work_runs_out() -> None:
    result = run({"atlas": 1}, {"atlas": Work(jobs=100, lifetime="10m")}, factories=3, hours=2)
    assert result.useful == pytest.approx(100 * 600 / (3 * 64 * 7200), rel=0.1)


def test_where_no_type_comes_back_no_error_is_left_out() -> None:
    result = run(works=SHORT_WORK, hardware={"tiny": Hardware(processors=4)}, factories=2, hours=2)
    assert result.error is not None
    assert result.error.most > 0.1
    assert result.full == result.error


def test_a_space_of_one_factory_fills_too() -> None:
    result = run(factories=1, hours=1)
    assert result.samples[-1].used == 1.0


def test_a_crash_that_kills_machines_is_made_good() -> None:
    result = run(
        works=SHORT_WORK, hardware=SMALL, crashes_per_day=24, crash_kills=True, hours=4, crash_seconds="5m"
    )
    assert 0.7 < result.used < 0.99


def test_a_space_in_which_all_is_broken_runs_nothing() -> None:
    result = run(factories=2, broken=1.0, hours=1)
    assert (result.used, result.fill_seconds) == (0.0, None)
    assert result.machines > 0


def test_one_seed_makes_one_run() -> None:
    def of(seed: int) -> dict[str, object]:
        return run(works=SHORT_WORK, hardware=SMALL, loss=0.2, crashes_per_day=5, seed=seed).json()

    assert of(1) == of(1)
    assert of(1) != of(2)


def test_small_machines_keep_up_while_superslots_fill() -> None:
    made = scenario(factories=50, hours=0.1)
    options = {"atlas": (8, 8), "lhcb": (1, 1), "cms": (1, 8)}
    types = {
        name: dataclasses.replace(one, min_processors=least, max_processors=most, min_wallclock_seconds=7200)
        for (name, one), (least, most) in zip(made.machinetypes.items(), options.values())
    }
    common = dataclasses.replace(made.settings, processors_per_superslot=8)
    result = simulate(dataclasses.replace(made, machinetypes=types, settings=common))
    assert result.fill_seconds is not None
    assert result.fill_seconds < 240
    assert result.way.most < 0.025
    assert result.samples[-1].error < 0.005


@settings(max_examples=15)
@given(
    st.integers(1, 6),
    st.sampled_from(["deficit", "classic"]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.05, 0.6]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 30.0]),
    st.booleans(),
    st.sampled_from([1, 4]),
    st.integers(0, 1000),
)
def test_no_more_processors_are_used_than_there_are(
    factories: int,
    policy: str,
    classic: float,
    loss: float,
    broken: float,
    crashes: float,
    kills: bool,
    superslot: int,
    seed: int,
) -> None:
    made = scenario(
        works={"atlas": SHORT, "lhcb": Work(probability=0.5, lifetime="exp:20m"), "cms": NEVER},
        hardware={"one": Hardware(processors=8), "other": Hardware(processors=5)},
        factories=factories,
        policy=policy,
        classic=classic,
        loss=loss,
        broken=broken,
        crashes_per_day=crashes,
        crash_kills=kills,
        seed=seed,
    )
    types = {
        name: dataclasses.replace(one, max_processors=superslot, min_wallclock_seconds=600)
        for name, one in made.machinetypes.items()
    }
    common = dataclasses.replace(made.settings, processors_per_superslot=superslot)
    result = simulate(dataclasses.replace(made, machinetypes=types, settings=common))
    assert result.overbooked == 0
    assert all(0 <= sample.used <= 1 for sample in result.samples)
    assert 0 <= result.lost <= 1


@pytest.mark.parametrize(
    ("factories", "processors"),
    [
        (60, 32),
        pytest.param(200, 64, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_goals_in_a_large_space_with_broken_nodes(factories: int, processors: int) -> None:
    works = {
        "lhcb": Work(when=("0h-3h", "6h-"), lifetime="2h-6h"),
        "atlas": Work(lifetime="2h-6h"),
        "cms": Work(lifetime="2h-6h"),
        "alice": NEVER,
    }
    shares = {"atlas": 5.0, "lhcb": 3.0, "cms": 2.0, "alice": 2.0}
    hardware = {"node": Hardware(processors=processors)}
    result = run(shares, works, hardware, factories=factories, hours=9, broken=0.02)
    assert result.fill_seconds is not None
    assert result.fill_seconds < 240
    assert result.way.most < 0.02
    assert result.lost < 0.005
    assert {probes.machinetype for probes in result.probes} == {"lhcb", "alice"}
    assert all(probes.median <= 3 for probes in result.probes)
    calm = [one for one in result.samples if 3600 < one.seconds < 3 * 3600]
    assert max(one.error for one in calm) < 0.005
    (recovery,) = result.recoveries
    assert recovery.possible_seconds is not None
    assert recovery.arrived_seconds is not None
    assert recovery.arrived_seconds < recovery.possible_seconds + 2400


# Parts of it

NOW = 1.6e9
ALL = frozenset("ab")


def test_an_absurd_factory_is_seen_as_the_daemon_sees_it() -> None:
    hardware = {"plain": Hardware(part=4), "absurd": Hardware(part=1, processors=100_000)}
    made = scenario(hardware=hardware, factories=5)
    nodes = make_nodes(made, NOW)
    polling = Polling(made, nodes, random.Random(1))
    for node in nodes:
        node.up = True
        half = node.settings.total_processors // 2
        node.machines.append(Machine(node, Occupied("atlas", half, NOW, None, NOW + 86400)))
        polling.started(node)
    for node in nodes:
        polling.ask(node, NOW)[1]()
        right = view(
            node.name,
            node.factories,
            {one.name: one.reports(NOW) for one in nodes},
            {one.name: one.capacity_hs06 for one in nodes},
            NOW,
        )
        assert right.capacity_hs06 == 5 * 640
        assert right.types["atlas"].running_hs06 == 4 * 320 + 640
        assert node.view == right


def test_what_was_said_earlier_is_remembered() -> None:
    store = ReportStore()
    for ago in (400.0, 350.0, 200.0, 100.0):
        store.post("vac-0", {"atlas": TypeReport(running_machines=int(ago))}, NOW - ago)
    assert store.at("vac-0", NOW - 150)["atlas"].running_machines == 200
    assert store.at("vac-0", NOW)["atlas"].running_machines == 100
    assert store.at("vac-1", NOW) == {}


@pytest.mark.parametrize(
    ("kinds", "shares", "capacity", "expected"),
    [
        ([Kind(ALL, 100)], {"a": 3, "b": 1}, 100, {"a": 75, "b": 25}),
        ([Kind(ALL, 100)], {"a": 3}, 100, {"a": 100}),
        ([Kind(ALL, 100)], {}, 100, {}),
        ([Kind(frozenset("a"), 90), Kind(ALL, 10)], {"a": 1, "b": 1}, 100, {"a": 90, "b": 10}),
        ([Kind(frozenset("a"), 90), Kind(ALL, 10)], {"a": 19, "b": 1}, 100, {"a": 95, "b": 5}),
        ([Kind(frozenset("a"), 90), Kind(ALL, 10)], {"a": 1, "b": 1}, 50, {"a": 45, "b": 5}),
        ([Kind(frozenset("a"), 50), Kind(frozenset("b"), 50)], {"a": 9, "b": 1}, 100, {"a": 50, "b": 50}),
        (
            [Kind(frozenset("a"), 60), Kind(frozenset("abc"), 40)],
            {"a": 1, "b": 1, "c": 1},
            100,
            {"a": 60, "b": 20, "c": 20},
        ),
    ],
)
def test_shares_within_what_nodes_can_run(
    kinds: list[Kind], shares: dict[str, float], capacity: float, expected: dict[str, float]
) -> None:
    assert targets(kinds, shares, capacity) == pytest.approx(expected)
