"""The sum of the factories' reports, and hold-backs by aborts in the space."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.one_factory import IDLE_HOST, MODEL, machinetype, settings
from vac.scheduling.backoff import (
    PROBE_SECONDS,
    History,
    broken_here,
    classic_hold,
    deficit_hold,
    last_abort,
    probing_rank,
    proven_since,
    window_seconds,
)
from vac.scheduling.decide import Memory, decide
from vac.scheduling.eligibility import Situation
from vac.scheduling.model import Own, SpaceView, TypeReport, TypeTotals
from vac.scheduling.space import Reports, SpaceTotals, view

NOW = 1_000_000.0
TYPE = machinetype("a", backoff_seconds=600, fizzle_seconds=600)
HEALTHY = TypeReport(4, 4, 40.0, 0)
NONE = Own(TypeReport())


def names(number: int) -> tuple[str, ...]:
    return tuple(f"f{index:03}.example.com" for index in range(number))


def space(
    number: int,
    aborts: Mapping[int, float] = {},
    plain: TypeReport = HEALTHY,
    me: int = 0,
) -> SpaceView:
    """A space of so many factories; aborts are by number of factory, in seconds before NOW."""
    reports = {
        name: {"a": plain if index not in aborts else replace(plain, abort_time=NOW - aborts[index])}
        for index, name in enumerate(names(number))
    }
    return view(names(number)[me], names(number), reports, dict.fromkeys(names(number), 64.0), NOW)


def mine(seen: SpaceView) -> Own:
    return Own(seen.own["a"])


def test_the_space_is_the_sum_of_its_factories() -> None:
    seen = space(3, {1: 50.0, 2: 20.0})
    totals = seen.types["a"]
    assert seen.capacity_hs06 == 192
    assert totals.running_hs06 == 120.0
    assert totals.aborts == ((NOW - 20, names(3)[2]), (NOW - 50, names(3)[1]))
    assert totals.outlived_factories == 3
    assert seen.own == {"a": HEALTHY}


@given(
    st.builds(
        TypeReport,
        running_machines=st.integers(0, 10**12),
        running_processors=st.integers(0, 10**12),
        running_hs06=st.floats(0, 1e300),
        before_fizzle=st.integers(0, 10**12),
        abort_time=st.none() | st.floats(0, 1e300),
    ),
    st.none() | st.floats(0, 1e300),
    st.sampled_from([3, 10]),
)
def test_one_peers_absurd_numbers_stay_that_peers(
    lie: TypeReport, capacity: float | None, number: int
) -> None:
    *honest, liar = factories = names(number)
    reports = {**{name: {"a": HEALTHY} for name in honest}, liar: {"a": lie}}
    capacities = dict.fromkeys(honest, 64.0)
    if capacity is not None:
        capacities[liar] = capacity
    lying = view(factories[0], factories, reports, capacities, NOW)
    totals, others = lying.types["a"], number - 1
    assert others * 64 <= lying.capacity_hs06 <= (others + 32) * 64
    assert others * 40 <= totals.running_hs06 <= (others * 40 + 32 * 64) * 1.001
    assert totals.before_fizzle <= 16
    assert all(time <= NOW for time, _ in totals.aborts)
    assert deficit_hold(TYPE, mine(lying), lying, NOW) is None


@pytest.mark.parametrize("number", [2, 3, 10])
@pytest.mark.parametrize("capacity", [None, 0.0, 64.0, 1e7, 1e300])
def test_all_types_are_created_whatever_one_peer_claims_to_run(number: int, capacity: float | None) -> None:
    types = {name: machinetype(name) for name in "ab"}
    *honest, liar = factories = names(number)
    reports: dict[str, dict[str, TypeReport]] = {name: {} for name in honest}
    reports[liar] = {"a": TypeReport(100_000, 100_000, 1e7)}
    capacities = dict.fromkeys(honest, 64.0)
    if capacity is not None:
        capacities[liar] = capacity
    situation = Situation(
        settings(64, machines_per_cycle=64),
        types,
        (),
        History(),
        view(factories[0], factories, reports, capacities, NOW),
        IDLE_HOST,
        {MODEL: None},
        NOW,
    )
    created = Counter(one.machinetype for one in decide(situation, Memory(), random.Random(1))[0].creates)
    assert created["a"] >= 8 or number == 2
    assert created["b"] >= 24


def test_a_factory_of_unknown_capacity_counts_with_what_it_runs() -> None:
    seen = view(names(2)[0], names(2), {names(2)[1]: {"a": HEALTHY}}, {names(2)[0]: 64.0}, NOW)
    assert seen.capacity_hs06 == 104
    assert view("x", (), {"stranger": {"a": HEALTHY}}, {}, NOW).types == {}


@pytest.mark.parametrize(("age", "believed"), [(-299, NOW), (-301, None), (5, NOW - 5)])
def test_an_abort_in_the_future_is_not_believed(age: float, believed: float | None) -> None:
    times = [time for time, _ in space(4, {1: age}).types["a"].aborts]
    assert times == ([] if believed is None else [believed])


def test_one_nodes_aborts_do_not_hold_back_the_space_but_two_do() -> None:
    assert deficit_hold(TYPE, NONE, space(10, {3: 10.0}), NOW) is None
    hold = deficit_hold(TYPE, NONE, space(10, {3: 10.0, 4: 30.0}), NOW)
    assert hold is not None and hold.until is not None
    assert NOW - 30 + 600 <= hold.until <= NOW - 30 + 1200
    assert hold.one_only is None


def test_alone_the_newest_abort_holds_back() -> None:
    seen = space(1, {0: 100.0}, TypeReport())
    hold = deficit_hold(TYPE, mine(seen), seen, NOW)
    assert hold is not None and hold.until == NOW + 500


def test_broken_factories_do_not_hold_back_the_others() -> None:
    broken = {
        name: {"a": TypeReport(abort_time=NOW - 10), "b": TypeReport(abort_time=NOW - 5)}
        for name in names(100)[:4]
    }
    healthy = {name: {"a": HEALTHY} for name in names(100)[4:]}
    seen = view(names(100)[50], names(100), {**broken, **healthy}, {}, NOW)
    assert seen.failing == frozenset(broken)
    assert deficit_hold(TYPE, mine(seen), seen, NOW) is None
    assert classic_hold(TYPE, mine(seen), seen, NOW) is not None


def test_when_most_factories_fail_their_aborts_count() -> None:
    seen = space(10, dict.fromkeys(range(8), 10.0), TypeReport())
    assert seen.failing == frozenset()
    assert deficit_hold(TYPE, mine(seen), seen, NOW) is not None


@pytest.mark.parametrize(("young", "held"), [(0, True), (1, True), (2, False), (20, False)])
def test_a_few_aborts_do_not_hold_back_a_space_that_starts_many(young: int, held: bool) -> None:
    seen = space(10, {1: 10.0, 2: 20.0, 3: 30.0}, replace(HEALTHY, before_fizzle=young))
    assert (last_abort(TYPE, mine(seen), seen, NOW) is not None) == held


def test_probes_that_are_under_way_do_not_end_the_probing() -> None:
    probes = TypeReport(1, 1, 1.0, 1)
    seen = space(100, {index: 650.0 + 50 * index for index in range(100)}, probes)
    assert last_abort(TYPE, mine(seen), seen, NOW) == NOW - 700


def test_old_aborts_do_not_count_against_many_young_machines() -> None:
    young = replace(HEALTHY, before_fizzle=2)
    lately = {index: 100.0 + index for index in range(10)}
    assert last_abort(TYPE, NONE, space(20, lately, young), NOW) == NOW - 102
    old = {index: 5000.0 + index for index in range(2, 10)}
    assert last_abort(TYPE, NONE, space(20, {**lately, **old}, young), NOW) is None


@pytest.mark.parametrize("number", [2, 5, 64, 100])
def test_factories_probe_one_then_two_then_four(number: int) -> None:
    opens = NOW + 600
    turns = []
    for me in range(number):
        seen = space(number, {}, TypeReport(), me)
        aborts = ((NOW, "x"), (NOW, "y"))
        seen = replace(seen, types={"a": replace(seen.types["a"], aborts=aborts)})
        hold = deficit_hold(TYPE, NONE, seen, NOW)
        assert hold is not None and hold.until is not None
        turns.append(hold.until)
        at_turn = deficit_hold(TYPE, NONE, seen, hold.until)
        assert at_turn is not None and at_turn.one_only
    window = window_seconds(number, TYPE)
    for doublings in range(8):
        may = sum(turn <= opens + doublings * window for turn in turns)
        assert may == min(number, 2**doublings)
    assert max(turns) <= opens + max(600, PROBE_SECONDS * (number - 1).bit_length()) + 1e-6


@pytest.mark.parametrize(
    ("factories", "backoff_seconds", "fizzle_seconds", "window"),
    [
        (1, 600, 600, 0),
        (2, 600, 600, 600),
        (100, 600, 600, 120),
        (8, 10, 600, 120),
        (8, 10, 60, 60),
        (8, 10, 0, 30),
    ],
)
def test_the_next_to_probe_can_know_the_results_before(
    factories: int, backoff_seconds: int, fizzle_seconds: int, window: float
) -> None:
    kind = replace(TYPE, backoff_seconds=backoff_seconds, fizzle_seconds=fizzle_seconds)
    assert window_seconds(factories, kind) == window


def test_all_know_the_order_in_which_those_that_aborted_are_last() -> None:
    aborts = {3: 10.0, 5: 700.0}
    ranks = []
    for me in range(12):
        seen = space(12, aborts, me=me)
        ranks.append(probing_rank("a", NOW - 700.25, mine(seen), seen))
    assert sorted(ranks) == list(range(12))
    assert {ranks[3], ranks[5]} == {10, 11}
    seen = space(12)
    orders = {
        tuple(probing_rank("a", NOW + time, NONE, replace(seen, factory=name)) for name in names(12))
        for time in range(5)
    }
    assert len(orders) > 1


def test_a_probe_is_one_machine_until_one_has_outlived_fizzle() -> None:
    seen = space(1, {0: 700.0}, TypeReport())
    probing = deficit_hold(TYPE, mine(seen), seen, NOW)
    assert probing is not None and probing.one_only
    report = TypeReport(1, 1, 1.0, 1, NOW - 700)
    waiting = deficit_hold(TYPE, Own(report, NOW - 50, None, NOW + 550), seen, NOW)
    assert waiting is not None and waiting.reason and waiting.until == NOW + 550
    proven = Own(replace(report, before_fizzle=0), NOW - 690, NOW - 690)
    assert deficit_hold(TYPE, proven, seen, NOW) is None
    older = Own(replace(report, before_fizzle=0), NOW - 5000, NOW - 5000)
    assert deficit_hold(TYPE, older, seen, NOW) is not None


def test_others_success_is_known_when_two_probes_could_have_failed() -> None:
    seen = space(10, {1: 1300.0, 2: 1400.0})
    assert not proven_since(NOW - 1300, TYPE, NONE, seen, NOW)
    assert proven_since(NOW - 1400, TYPE, NONE, seen, NOW)
    assert not proven_since(NOW - 1400, TYPE, NONE, space(10, {}, TypeReport()), NOW)


@pytest.mark.parametrize(
    ("age", "young", "held", "probing"),
    [
        (599, 0, True, False),
        (600, 0, False, True),
        (700, 1, True, False),
        (1200, 1, False, False),
        (1200, 0, False, False),
    ],
)
def test_the_classic_hold_is_after_the_newest_abort_anywhere(
    age: float, young: int, held: bool, probing: bool
) -> None:
    seen = space(10, {3: age, 4: age + 5000}, replace(HEALTHY, before_fizzle=young))
    hold = classic_hold(TYPE, mine(seen), seen, NOW)
    assert (hold is not None and hold.reason is not None) == held
    assert (hold is not None and hold.one_only is not None) == probing


def test_failing_here_alone_is_a_warning_about_this_node() -> None:
    assert set(broken_here(["a"], space(3))) == {"a"}
    assert broken_here(["a"], space(3, {}, TypeReport(2, 2, 2.0, 2))) == {}
    assert broken_here(["a"], space(1)) == {}
    assert broken_here([], space(3)) == {}


@pytest.mark.parametrize(
    ("idle", "no_work", "odd"), [(3, False, True), (3, True, False), (4, False, False), (4, True, False)]
)
def test_idle_factories_are_not_taken_for_broken_ones(idle: int, no_work: bool, odd: bool) -> None:
    """As a space runs empty these are the ones that probe; the others' last aborts are old, their machines older.
    Where machines don't say that there's no work, it shows in how many factories are idle."""
    everyone = names(12)
    running = {
        name: {"a": TypeReport(1, 1, 10.0, 0, NOW - 1400 if at < 3 else None)}
        for at, name in enumerate(everyone[:-idle])
    }
    empty = {
        name: {"a": TypeReport(abort_time=NOW - 500, no_work=no_work), "b": TypeReport()}
        for name in everyone[-idle:]
    }
    seen = view(everyone[0], everyone, {**running, **empty}, {}, NOW)
    assert seen.failing == (frozenset(everyone[-idle:]) if odd else frozenset())
    hold = deficit_hold(TYPE, Own(running[everyone[0]]["a"]), seen, NOW)
    assert (hold is None) == odd


def test_a_type_of_few_nodes_is_held_back_when_it_has_no_work() -> None:
    everyone = names(20)
    plain = {name: {"a": HEALTHY} for name in everyone[2:]}
    special = {name: {"b": TypeReport(abort_time=NOW - 50, no_work=True)} for name in everyone[:2]}
    seen = view(everyone[0], everyone, {**plain, **special}, {}, NOW)
    assert deficit_hold(replace(TYPE, name="b"), Own(seen.own["b"]), seen, NOW) is not None


# Totals that are kept up to date

TYPES = ("atlas", "lhcb")
SIX = names(6)


@st.composite
def _type_reports(draw: st.DrawFn) -> TypeReport:
    machines = draw(st.integers(0, 30))
    return TypeReport(
        running_machines=machines,
        running_processors=machines,
        running_hs06=8.0 * machines,
        before_fizzle=draw(st.integers(0, machines)),
        abort_time=draw(st.none() | st.integers(1, 50).map(lambda ago: NOW - ago)),
        no_work=draw(st.booleans()),
    )


_reports = st.dictionaries(st.sampled_from(TYPES), _type_reports(), min_size=1)
_changes = st.lists(st.tuples(st.sampled_from(SIX), st.none() | _reports), max_size=20)


@given(_changes, st.dictionaries(st.sampled_from(SIX), st.none() | _reports))
def test_totals_after_changes_are_those_of_the_last_reports(
    changes: list[tuple[str, Reports | None]], heard: dict[str, Reports | None]
) -> None:
    totals, last = SpaceTotals(), dict[str, Reports]()
    for name, after in changes:
        totals.change(name, last.pop(name, None), after)
        if after is not None:
            last[name] = after
    assert_same(totals, last)
    copy = totals.copy()
    corrected = dict(last)
    for name, after in heard.items():
        copy.change(name, corrected.pop(name, None), after)
        if after is not None:
            corrected[name] = after
    assert_same(copy, corrected)
    assert_same(totals, last)


def assert_same(totals: SpaceTotals, reports: Mapping[str, Reports]) -> None:
    right = view(SIX[0], SIX, reports, dict.fromkeys(SIX, 1e9), NOW)
    found = totals.view(SIX[0], SIX, right.capacity_hs06, right.own)
    assert found.failing == right.failing
    for name in TYPES:
        assert found.types.get(name, TypeTotals()) == right.types.get(name, TypeTotals())
