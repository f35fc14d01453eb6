"""Shares over time in small spaces and with superslots, by a judge that sees only when machines began and ended."""

from __future__ import annotations

import statistics

import pytest

from tests.unit.simulate.judge import (
    DAY,
    HOUR,
    SMALL,
    lives,
    longest_wait,
    mixes,
    parts,
    processor_seconds,
    share_error,
    used,
)

TWELVE_HOURS_ON_ONE = 100 * 12 * HOUR / (7 * DAY)
"""Percentage points of a week that one machine of twelve hours is on one processor."""
EIGHT = {"eight": {"min_processors": 8, "max_processors": 8}, "one": {}}


@pytest.mark.parametrize(
    ("name", "seeds", "most"),
    [
        ("1 × 1", 2, TWELVE_HOURS_ON_ONE),
        ("1 × 2", 2, 7.0),
        ("1 × 4", 1, 4.0),
        ("1 × 8", 1, 2.0),
        pytest.param("3 × 4", 4, 4.0, marks=pytest.mark.slow),
        pytest.param("5 × 8", 1, 2.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_shares_hold_over_a_week_in_small_spaces(name: str, seeds: int, most: float) -> None:
    errors = {
        (words, seed): share_error(
            lives(*SMALL[name], shares, lifetimes, never=idle, seed=seed), shares, 7 * DAY
        )
        for words, shares, lifetimes, idle in mixes()
        for seed in range(1, seeds + 1)
    }
    assert max(errors.values()) <= most, max(errors, key=errors.__getitem__)
    assert statistics.fmean(errors.values()) < {"1 × 1": 3.0, "1 × 2": 1.5}.get(name, 1.0)


@pytest.mark.parametrize(
    ("factories", "processors", "shares", "lifetimes", "most"),
    [
        (1, 1, {"a": 3, "b": 1}, ("1h", "24h"), 14.3),
        (1, 1, {"a": 10, "b": 1}, ("5m", "12h"), 7.2),
        (1, 2, {"a": 3, "b": 1}, ("4h-8h", "4h-8h"), 2.0),
        (3, 4, {"a": 5, "b": 3, "c": 1, "d": 1}, ("1h", "12h", "5m-3h", "6h"), 2.5),
    ],
)
def test_spaces_that_were_biased_without_a_ledger(
    factories: int, processors: int, shares: dict[str, float], lifetimes: tuple[str, ...], most: float
) -> None:
    for seed in (1, 2, 3):
        machines = lives(factories, processors, shares, dict(zip(shares, lifetimes)), seed=seed)
        assert share_error(machines, shares, 7 * DAY) < most


@pytest.mark.parametrize("processors", [1, 2, 3])
@pytest.mark.parametrize("idle", [0.0, 2.0])
def test_machines_of_seconds_have_their_shares_in_minutes(processors: int, idle: float) -> None:
    shares = {"three": 3.0, "one": 1.0}
    lifetimes = dict.fromkeys(shares, "5s")
    types = {name: {"fizzle_seconds": 2, "min_wallclock_seconds": 0} for name in shares}
    machines = lives(1, processors, shares, lifetimes, days=660 / DAY, never=idle, types=types, start="0s")
    assert share_error(machines, shares, 660, 60) < 3


@pytest.mark.parametrize("processors", [1, 2])
@pytest.mark.parametrize("shares", [(3, 1, 1), (3, 1, 0.2), (1, 1, 2)])
@pytest.mark.parametrize("lifetime", ["5m", "1h"])
def test_work_that_returns_to_a_small_node_is_found(
    processors: int, shares: tuple[float, ...], lifetime: str
) -> None:
    wanted = dict(zip("abc", shares))
    lifetimes = dict.fromkeys(wanted, lifetime)
    machines = lives(1, processors, wanted, lifetimes, days=4, when={"c": "12h-"})
    assert min(one.start for one in machines if one.machinetype == "c" and one.start > 12 * HOUR) < 14 * HOUR
    assert sum(one.machinetype == "c" and one.end < 12 * HOUR for one in machines) < 20
    assert share_error(machines, wanted, 4 * DAY, DAY) < 2


def test_a_type_with_a_hundredth_of_the_shares_has_its_turn_in_time() -> None:
    shares = {"large": 100.0, "small": 1.0}
    lifetimes = dict.fromkeys(shares, "1h")
    for seed in range(20):
        machines = lives(1, 1, shares, lifetimes, days=9, seed=seed)
        assert longest_wait(machines, "small", 9 * DAY) < 2 * 101 * HOUR


@pytest.mark.parametrize("crashes_per_day", [0.0, 24.0])
def test_silent_peers_bias_no_share(crashes_per_day: float) -> None:
    shares = {"a": 3.0, "b": 1.0}
    lifetimes = {"a": "1h-3h", "b": "4h-8h"}
    machines = lives(
        3, 2, shares, lifetimes, seed=1, crashes_per_day=crashes_per_day, crash_seconds="20m", loss=0.2
    )
    assert share_error(machines, shares, 7 * DAY) < 2.0


@pytest.mark.parametrize(
    ("factories", "processors", "hours", "share", "use"),
    [
        (1, 8, 0.0, 39, 99.0),
        (1, 8, 2.0, 39, 98.0),
        (1, 8, 12.0, 40, 78.0),
        (1, 8, 24.0, 40, 74.0),
        (1, 64, 2.0, 45, 98.0),
        (1, 64, 12.0, 45, 95.0),
        (1, 64, 24.0, 45, 98.0),
        pytest.param(5, 8, 2.0, 45, 98.0, marks=pytest.mark.slow),
        pytest.param(5, 8, 12.0, 45, 83.0, marks=pytest.mark.slow),
        pytest.param(5, 8, 24.0, 45, 80.0, marks=pytest.mark.slow),
    ],
)
def test_eight_core_machines_have_their_half(
    factories: int, processors: int, hours: float, share: float, use: float
) -> None:
    """On one node of eight processors five days are five superslots: a machine more or less is ten points."""
    found, in_use = eight_cores(factories, processors, hours)
    assert share <= found <= 100 - share
    assert in_use >= use


def eight_cores(factories: int, processors: int, hours: float, **settings: object) -> tuple[float, float]:
    """Return the percentages of days 3 to 7 that the 8-core type had, and that were used."""
    shares = dict.fromkeys(EIGHT, 1.0)
    types = {name: {**one, "min_wallclock_seconds": int(hours * HOUR)} for name, one in EIGHT.items()}
    options = {"processors_per_superslot": 8, **settings}
    lifetimes = dict.fromkeys(shares, "6h-18h")
    found, in_use = [], []
    for seed in (1, 2, 3):
        machines = lives(factories, processors, shares, lifetimes, types=types, settings=options, seed=seed)
        found.append(parts(machines, 2 * DAY, 7 * DAY, list(shares))["eight"])
        in_use.append(used(machines, factories * processors, 2 * DAY, 7 * DAY))
    return statistics.fmean(found), statistics.fmean(in_use)


def test_keeping_processors_is_an_option() -> None:
    """Without it all processors are used, and eight are never free together."""
    assert eight_cores(1, 8, 12.0, superslot_keep_seconds=0) == pytest.approx((0.0, 100.0), abs=1.0)


@pytest.mark.parametrize("hours", [0.0, 2.0])
def test_four_and_eight_core_machines_share_a_node(hours: float) -> None:
    types = {
        name: {"min_processors": size, "max_processors": size, "min_wallclock_seconds": int(hours * HOUR)}
        for name, size in (("eight", 8), ("four", 4), ("one", 1))
    }
    shares = dict.fromkeys(types, 1.0)
    options = {"processors_per_superslot": 8}
    lifetimes = dict.fromkeys(types, "6h-18h")
    machines = lives(1, 16, shares, lifetimes, types=types, settings=options, seed=2)
    assert share_error(machines, shares, 7 * DAY, 2 * DAY) < 8
    assert used(machines, 16, 2 * DAY, 7 * DAY) > 98


def test_the_judge_counts_what_a_list_of_machines_says() -> None:
    machines = lives(1, 2, {"a": 1.0}, {"a": "1h"}, days=0.25)
    had = processor_seconds(machines, HOUR, 5 * HOUR)
    assert had["a"] == pytest.approx(2 * 4 * HOUR, rel=0.01)
    assert used(machines, 2, HOUR, 5 * HOUR) == pytest.approx(100, abs=1)
    assert longest_wait(machines, "none", 6 * HOUR) == 6 * HOUR
