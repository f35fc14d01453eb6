"""The order of machinetypes, the ledger of debts, and how fast types grow."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.decoding import filled
from vac.machines.files import read_json
from vac.scheduling.decide import Ramp, RampState
from vac.scheduling.shares import (
    Candidate,
    Ledger,
    apportion,
    classic_order,
    deficit_order,
    lacking,
    missing_hs06,
    owed_hs06,
    stratified_point,
)
from vac.text import duration as in_words

NOW = 1_000_000.0
HOUR = 3600.0

_candidates = st.lists(
    st.builds(
        Candidate,
        machinetype=st.text("abcdefgh", min_size=1, max_size=3),
        machinegroup=st.sampled_from(["one", "two", "three"]),
        target_share=st.floats(0.01, 100),
        running_hs06=st.floats(0, 1000),
        machine_hs06=st.sampled_from([1.0, 8.0, 10.0]),
        debt_hs06s=st.floats(-1e6, 1e6),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.machinetype,
)


# Orders


@given(_candidates, st.floats(0, 2000), st.floats(0, 2000), st.integers())
def test_an_order_has_every_candidate_once(
    candidates: list[Candidate], reached: float, free: float, seed: int
) -> None:
    ranked = list(deficit_order(candidates, reached, free, 0.5, random.Random(seed)))
    assert sorted(one.machinetype for one in ranked) == sorted(one.machinetype for one in candidates)
    assert ranked == list(deficit_order(candidates, reached, free, 0.5, random.Random(seed)))
    classic = list(classic_order(candidates, reached, free, 0.5, random.Random(seed)))
    assert sorted(one.machinetype for one in classic) == sorted(one.machinetype for one in candidates)


@given(_candidates, st.floats(0, 2000))
def test_debts_change_the_order_only(candidates: list[Candidate], reached: float) -> None:
    without = [replace(one, debt_hs06s=0.0) for one in candidates]
    assert sum(lacking(candidates, reached).values()) == pytest.approx(
        sum(lacking(without, reached).values()), abs=1e-4
    )


def parts(candidates: list[Candidate], reached: float, free: float, seed: int = 1) -> list[float]:
    missing, owed = missing_hs06(candidates, reached), owed_hs06(candidates)
    return apportion(candidates, missing, owed, free, random.Random(seed))


def test_what_is_free_goes_to_those_that_lack_most() -> None:
    candidates = [Candidate("a", "a", 1, 10.0), Candidate("b", "b", 1, 24.0), Candidate("c", "c", 1, 40.0)]
    assert parts(candidates, 90.0, 1.0) == [1, 0, 0]
    assert parts(candidates, 90.0, 16.0) == [15, 1, 0]
    assert parts(candidates, 90.0, 30.0) == pytest.approx([22, 8, 0])
    large = [replace(one, machine_hs06=8.0) for one in candidates]
    assert parts(large, 90.0, 16.0) == [2, 0, 0]


def test_what_is_lacking_counts_relative_to_the_share() -> None:
    candidates = [Candidate("large", "large", 16, 110.0), Candidate("small", "small", 1, 1.0)]
    assert lacking(candidates, 170.0) == {"large": 50.0, "small": 9.0}
    assert parts(candidates, 170.0, 1.0) == [1, 0]
    candidates = [Candidate("large", "large", 16, 140.0), Candidate("small", "small", 1, 1.0)]
    assert parts(candidates, 170.0, 1.0) == [0, 1]


def test_a_groups_types_are_compared_by_what_they_lack_whatever_their_sizes() -> None:
    candidates = [Candidate("eight", "group", 1, 0.0, 8.0), Candidate("one", "group", 1, 6.0, 1.0)]
    assert parts(candidates, 13.0, 1.0) == [1, 0]


def test_a_probe_comes_first_if_its_type_lacks_anything() -> None:
    probed = Candidate("probed", "probed", 1, 0.0, probe=True)
    candidates = [Candidate("large", "large", 50, 40.0), probed]
    assert parts(candidates, 50.0, 1.0) == [0, 1]
    assert parts([candidates[0], replace(probed, running_hs06=2.0)], 50.0, 1.0) == [1, 0]


def test_parts_of_a_machine_are_taken_by_turns() -> None:
    minute = [Candidate("a", "a", 3, 1.0, 1.0, -60.0), Candidate("b", "b", 1, 0.0, 1.0, 60.0)]
    assert parts(minute, 2.0, 1.0) == [0, 1]
    assert parts([replace(one, debt_hs06s=-one.debt_hs06s) for one in minute], 2.0, 1.0) == [1, 0]
    assert parts([replace(minute[0], running_hs06=0.0), replace(minute[1], running_hs06=1.0)], 2.0, 1.0) == [
        1,
        0,
    ]


def test_one_free_processor_goes_by_the_debt_without_chance() -> None:
    candidates = [
        Candidate("a", "a", 3, 0.0, 10.0, -9 * 10 * HOUR),
        Candidate("b", "b", 1, 0.0, 10.0, 9 * 10 * HOUR),
    ]
    for seed in range(20):
        first = next(deficit_order(candidates, 10.0, 10.0, seed / 20, random.Random(seed)))
        assert first.machinetype == "b"


def test_draws_add_up_to_what_is_apportioned() -> None:
    candidates = [
        Candidate("a", "g", 1, 10.0),
        Candidate("b", "g", 1, 20.0),
        Candidate("c", "h", 2, 30.0),
        Candidate("d", "full", 1, 90.0),
    ]
    assert lacking(candidates, 200.0) == pytest.approx({"a": 30.0, "b": 20.0, "c": 50.0, "d": -50.0})
    rng = random.Random(1)
    firsts = Counter(
        next(deficit_order(candidates, 200.0, 100.0, rng.random(), rng)).machinetype for _ in range(5000)
    )
    assert firsts["a"] / 5000 == pytest.approx(0.3, abs=0.03)
    assert firsts["b"] / 5000 == pytest.approx(0.2, abs=0.03)
    assert firsts["c"] / 5000 == pytest.approx(0.5, abs=0.03)
    assert firsts["d"] == 0


@pytest.mark.parametrize("first", [0, 37])
@pytest.mark.parametrize("number", [10, 100])
def test_draws_of_many_factories_at_one_moment_add_up(first: int, number: int) -> None:
    """Of all of them, or of some that are neighbours in the list."""
    factories = [f"f{place}" for place in range(150)]
    candidates = [Candidate("a", "a", 7, 0.0), Candidate("b", "b", 3, 0.0)]
    rng = random.Random(1)
    for minute in range(20):
        firsts = Counter[str]()
        for name in factories[first : first + number]:
            point = stratified_point(factories, name, NOW + 60 * minute, 0, rng)
            firsts[next(deficit_order(candidates, 100.0, 100.0, point, rng)).machinetype] += 1
        assert firsts["a"] == pytest.approx(0.7 * number, abs=3)


def test_a_type_whose_group_has_its_share_waits() -> None:
    candidates = [Candidate("a", "g", 1, 0.0), Candidate("b", "g", 1, 90.0), Candidate("c", "h", 2, 10.0)]
    for seed in range(20):
        ranked = list(deficit_order(candidates, 100.0, 1.0, 0.5, random.Random(seed)))
        assert [one.machinetype for one in ranked] == ["c", "a", "b"]
        assert [one.lacking_hs06 > 0 for one in ranked] == [True, False, False]


def test_classic_order_is_by_group_score_then_type_score() -> None:
    candidates = [
        Candidate("a", "g", 1, 5.0),
        Candidate("b", "g", 1, 1.0),
        Candidate("c", "h", 1, 5.9),
        Candidate("d", "i", 1, 7.0),
    ]
    ranked = list(classic_order(candidates, 0.0, 0.0, 0.5, random.Random(1)))
    assert [one.machinetype for one in ranked] == ["c", "b", "a", "d"]
    ties = [Candidate("a", "a", 1, 0.0), Candidate("b", "b", 1, 0.0)]
    rng = random.Random(1)
    firsts = {next(classic_order(ties, 0.0, 0.0, 0.5, rng)).machinetype for _ in range(50)}
    assert firsts == {"a", "b"}


# The ledger

LIMITS = {"a": 10 * HOUR, "b": 10 * HOUR}


def test_debts_grow_by_what_is_missing_of_the_share() -> None:
    ledger = Ledger().advance(NOW, LIMITS).counting({"a": 3, "b": 1}, {"a": 4.0, "b": 4.0})
    ledger = ledger.advance(NOW + 60, LIMITS)
    assert ledger.debts == {"a": 120.0, "b": -120.0}
    ledger = ledger.counting({"a": 1}, {"a": 4.0, "b": 4.0}).advance(NOW + 600, LIMITS)
    assert ledger.debts == {"a": 120.0, "b": -120.0}, "a type that is held back keeps its debt"


def test_debts_are_limited_and_those_of_removed_types_dropped() -> None:
    ledger = Ledger({"a": 9 * HOUR, "b": -9 * HOUR, "gone": 1.0}, {"a": 8.0, "b": -8.0}, NOW)
    assert ledger.advance(NOW + 3600, LIMITS).debts == {"a": 10 * HOUR, "b": -10 * HOUR}


@pytest.mark.parametrize(("passed", "counted"), [(-500, 0), (60, 60), (3600, 3600), (90_000, 3600)])
def test_a_clock_that_jumps_makes_up_no_debt(passed: float, counted: float) -> None:
    ledger = Ledger({}, {"a": 1.0}, NOW).advance(NOW + passed, {"a": 1e9})
    assert ledger.debts == {"a": counted}
    assert ledger.time == NOW + passed


_finite = st.floats(allow_nan=False, allow_infinity=False)
_amounts = st.dictionaries(st.text(), _finite)


@given(st.builds(Ledger, _amounts, _amounts, _finite))
def test_a_ledger_outlives_a_restart(ledger: Ledger) -> None:
    assert filled(Ledger(), json.loads(json.dumps(asdict(ledger)))) == ledger


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["debts", "rates", "time", "x"]), inner)
            | st.dictionaries(st.text(), inner)
        ),
    )
)
def test_of_a_broken_ledger_file_what_is_right_is_used(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    (tmp_path_factory.getbasetemp() / "ledger").write_text(json.dumps(data))
    ledger = filled(Ledger(), read_json(tmp_path_factory.getbasetemp() / "ledger"))
    assert ledger == Ledger() or filled(Ledger(), asdict(ledger)) == ledger
    ledger.advance(NOW, {"x": 1.0})


# The ramp


def taken(ramp: Ramp, choose: Callable[[], str], most: int = 1000) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _ in range(most):
        name = choose()
        if not ramp.allows(name):
            break
        ramp.take(name)
        counts[name] += 1
    return counts


@pytest.mark.parametrize(
    ("machines", "type_", "step_age", "allowed"),
    [
        ({}, "a", None, 1),
        ({"a": 1}, "a", 15, 1),
        ({"a": 8}, "a", 15, 8),
        ({"a": 8}, "a", 14.9, 0),
        ({"a": 8}, "b", 15, 1),
        ({"a": 8, "b": 3}, "b", 15, 3),
        ({"a": 8}, "a", -100, 8),
    ],
)
def test_a_step_doubles(machines: dict[str, int], type_: str, step_age: float | None, allowed: int) -> None:
    state = RampState(None if step_age is None else NOW - step_age, machines)
    ramp = Ramp(state, machines, (), 0, NOW)
    assert taken(ramp, lambda: type_)[type_] == allowed
    if allowed:
        again = Ramp(ramp.state(), ramp.state().machines, (), 0, NOW + 14)
        assert not again.allows(type_) and again.next_time() == NOW + 15


def test_a_type_known_to_be_good_needs_no_steps() -> None:
    ramp = Ramp(RampState(NOW - 1, {"a": 1, "b": 1}), {"a": 1, "b": 1}, ("a",), 0, NOW)
    assert taken(ramp, lambda: "a", 64) == {"a": 64}
    assert not ramp.allows("b")


def test_vacated_places_are_taken_at_once_by_any_type_for_a_minute() -> None:
    state = RampState(NOW - 1, {"a": 64})
    ramp = Ramp(state, {"a": 60}, (), 0, NOW)
    assert taken(ramp, lambda: "b", 2) == {"b": 2}
    ramp = Ramp(ramp.state(), {"a": 60, "b": 2}, (), 0, NOW + 10)
    assert ramp.left(("b",)) == 2
    late = Ramp(ramp.state(), {"a": 60, "b": 2}, (), 0, NOW + 70)
    assert taken(late, lambda: "b") == {"b": 2}
    assert late.state().step_time == NOW + 70


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 40)), max_size=30))
def test_an_unknown_type_never_grows_faster_than_doubling(history: list[tuple[int, float]]) -> None:
    state, machines, now = RampState(), 0, NOW
    most, step_time = 0, NOW - 15
    for ended, pause in history:
        now += pause
        machines = max(0, machines - ended)
        ramp = Ramp(state, {"a": machines}, (), 0, now)
        before = machines
        machines += taken(ramp, lambda: "a")["a"]
        state = ramp.state()
        if machines > most:
            assert now >= step_time + 15
            assert machines <= most + max(1, before)
            most, step_time = machines, now


def test_machines_per_cycle_counts_within_a_minute() -> None:
    ramp = Ramp(RampState(), {}, ("a",), 3, NOW)
    assert taken(ramp, lambda: "a") == {"a": 3}
    assert not Ramp(ramp.state(), {}, (), 3, NOW + 59).allows("b")
    assert Ramp(ramp.state(), {}, (), 3, NOW + 59).next_time() == NOW + 60
    assert taken(Ramp(ramp.state(), {}, (), 3, NOW + 60), lambda: "b") == {"b": 3}


@pytest.mark.parametrize(
    ("duration", "words"),
    [(-1, "0 s"), (0.2, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "2 h 00 min"), (7260, "2 h 01 min")],
)
def test_durations_in_words(duration: float, words: str) -> None:
    assert in_words(duration) == words
