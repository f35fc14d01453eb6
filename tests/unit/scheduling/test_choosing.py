"""The order of machinetypes, how fast they grow, and where machines go."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.one_factory import machinetype
from vac.scheduling.model import Occupied
from vac.scheduling.ramp import Ramp, RampState
from vac.scheduling.shares import Candidate, classic_order, deficit_order, deficits
from vac.scheduling.superslots import Room, find_rooms, fits, size
from vac.scheduling.wording import seconds

NOW = 1_000_000.0

_candidates = st.lists(
    st.builds(
        Candidate,
        machinetype=st.text("abcdefgh", min_size=1, max_size=3),
        machinegroup=st.sampled_from(["one", "two", "three"]),
        target_share=st.floats(0.01, 100),
        running_hs06=st.floats(0, 1000),
    ),
    max_size=8,
    unique_by=lambda one: one.machinetype,
)


@given(_candidates, st.floats(0, 2000), st.integers())
def test_an_order_has_every_candidate_once_and_those_that_lack_first(
    candidates: list[Candidate], capacity: float, seed: int
) -> None:
    turns = list(deficit_order(candidates, capacity, random.Random(seed)))
    assert sorted(turn.machinetype for turn in turns) == sorted(one.machinetype for one in candidates)
    lacking = [turn.lacking_hs06 > 0 for turn in turns]
    assert lacking == sorted(lacking, reverse=True)
    assert turns == list(deficit_order(candidates, capacity, random.Random(seed)))
    classic = list(classic_order(candidates, capacity, random.Random(seed)))
    assert sorted(turn.machinetype for turn in classic) == sorted(one.machinetype for one in candidates)


def test_draws_are_weighted_by_deficit_of_group_and_type() -> None:
    candidates = [
        Candidate("a", "g", 1, 10.0),
        Candidate("b", "g", 1, 20.0),
        Candidate("c", "h", 2, 30.0),
        Candidate("d", "full", 1, 90.0),
    ]
    lacking = deficits(candidates, 200.0)
    assert lacking == {"a": 30.0, "b": 20.0, "c": 50.0, "d": -50.0}
    rng = random.Random(1)
    firsts = Counter(next(iter(deficit_order(candidates, 200.0, rng))).machinetype for _ in range(5000))
    assert firsts["a"] / 5000 == pytest.approx(0.3, abs=0.03)
    assert firsts["b"] / 5000 == pytest.approx(0.2, abs=0.03)
    assert firsts["c"] / 5000 == pytest.approx(0.5, abs=0.03)
    assert firsts["d"] == 0


def test_without_any_deficit_the_lowest_running_for_its_share_comes_first() -> None:
    candidates = [Candidate("a", "a", 3, 60.0), Candidate("b", "b", 1, 10.0), Candidate("c", "c", 1, 30.0)]
    turns = list(deficit_order(candidates, 50.0, random.Random(1)))
    assert [turn.machinetype for turn in turns] == ["b", "a", "c"]
    assert [turn.lacking_hs06 for turn in turns] == [0, 0, 0]


def test_a_type_of_a_group_that_has_its_share_waits_for_those_that_lack() -> None:
    candidates = [Candidate("a", "g", 1, 0.0), Candidate("b", "g", 1, 90.0), Candidate("c", "h", 2, 10.0)]
    turns = list(deficit_order(candidates, 100.0, random.Random(1)))
    assert [turn.machinetype for turn in turns] == ["c", "a", "b"]


def test_classic_order_is_by_group_score_then_type_score() -> None:
    candidates = [
        Candidate("a", "g", 1, 5.0),
        Candidate("b", "g", 1, 1.0),
        Candidate("c", "h", 1, 5.9),
        Candidate("d", "i", 1, 7.0),
    ]
    turns = list(classic_order(candidates, 0.0, random.Random(1)))
    assert [turn.machinetype for turn in turns] == ["c", "b", "a", "d"]
    ties = [Candidate("a", "a", 1, 0.0), Candidate("b", "b", 1, 0.0)]
    rng = random.Random(1)
    firsts = {next(iter(classic_order(ties, 0.0, rng))).machinetype for _ in range(50)}
    assert firsts == {"a", "b"}


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
    ramp = Ramp(state, machines, 0, NOW)
    assert taken(ramp, lambda: type_)[type_] == allowed
    if allowed:
        assert ramp.state().step_time == NOW
        again = Ramp(ramp.state(), ramp.state().machines, 0, NOW + 14)
        assert again.exhausted() and again.next_time() == NOW + 15


def test_places_that_became_free_are_taken_without_waiting_by_any_type_for_a_minute() -> None:
    state = RampState(NOW - 1, {"a": 64})
    ramp = Ramp(state, {"a": 60}, 0, NOW)
    assert taken(ramp, lambda: "b", 2) == {"b": 2}
    ramp = Ramp(ramp.state(), {"a": 60, "b": 2}, 0, NOW + 10)
    assert ramp.left() == 2
    late = Ramp(ramp.state(), {"a": 60, "b": 2}, 0, NOW + 70)
    assert taken(late, lambda: "b") == {"b": 2}
    assert late.state().step_time == NOW + 70


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 40)), max_size=30))
def test_a_factory_never_grows_faster_than_doubling(history: list[tuple[int, float]]) -> None:
    state, machines, now = RampState(), 0, NOW
    most, step_time = 0, NOW - 15
    for ended, pause in history:
        now += pause
        machines = max(0, machines - ended)
        ramp = Ramp(state, {"a": machines}, 0, now)
        before = machines
        machines += taken(ramp, lambda: "a")["a"]
        state = ramp.state()
        if machines > most:
            assert now >= step_time + 15
            assert machines <= most + max(1, before)
            most, step_time = machines, now


def test_machines_per_cycle_counts_within_a_minute() -> None:
    ramp = Ramp(RampState(), {}, 3, NOW)
    assert taken(ramp, lambda: "a") == {"a": 3}
    assert Ramp(ramp.state(), {}, 3, NOW + 59).exhausted()
    assert Ramp(ramp.state(), {}, 3, NOW + 59).next_time() == NOW + 60
    assert taken(Ramp(ramp.state(), {}, 3, NOW + 60), lambda: "b") == {"b": 3}


SMALL = machinetype("small", min_wallclock_seconds=600)
LARGE = machinetype("large", min_processors=4, max_processors=8, min_wallclock_seconds=600)


def running(processors: int, left: float) -> Occupied:
    return Occupied("x", processors, NOW - 100, NOW - 100, NOW + left)


@pytest.mark.parametrize(
    ("occupied", "free", "total", "rooms"),
    [
        ([], 16, 16, [Room(8)]),
        ([], 3, 16, [Room(3)]),
        ([running(8, 5000)], 8, 16, [Room(8)]),
        ([running(5, 5000)], 11, 16, [Room(3, int(NOW + 5000)), Room(8)]),
        ([running(5, 5000)], 2, 16, [Room(2, int(NOW + 5000))]),
        ([running(5, 5000), running(8, 5000)], 11, 24, [Room(3, int(NOW + 5000)), Room(8)]),
        ([running(5, 5000), running(7, 900)], 4, 16, [Room(1, int(NOW + 900)), Room(3, int(NOW + 5000))]),
        ([running(5, 599)], 11, 16, [Room(8)]),
        ([running(5, -10)], 11, 16, [Room(8)]),
        ([running(5, 5000.2), running(3, 5000.9)], 8, 16, [Room(8)]),
        ([running(5, 5000)], 8, 13, [Room(8)]),
        ([running(4, 5000)], 9, 13, [Room(4, int(NOW + 5000)), Room(5)]),
    ],
)
def test_what_incomplete_superslots_lack_is_reserved_from_the_earliest(
    occupied: list[Occupied], free: int, total: int, rooms: list[Room]
) -> None:
    found = find_rooms(occupied, free, total, 8, [SMALL, LARGE], NOW)
    assert list(found.rooms) == rooms


def test_giving_up_a_superslot_is_told_in_the_same_words_each_time() -> None:
    notes = [find_rooms([running(5, 599)], 11, 16, 8, [SMALL], NOW + age).notes for age in (0, 10)]
    assert notes[0] == notes[1] and "lacks 3 processors" in notes[0][0]


@given(
    st.lists(
        st.builds(running, st.integers(1, 8), st.sampled_from([-5.0, 100, 1000, 5000, 86400])), max_size=12
    ),
    st.integers(1, 40),
    st.sampled_from([1, 4, 8]),
)
def test_no_more_is_kept_than_superslots_lack_and_all_that_is_free_has_a_use(
    occupied: list[Occupied], free: int, per_superslot: int
) -> None:
    total = free + sum(one.processors for one in occupied)
    found = find_rooms(occupied, free, total, per_superslot, [SMALL, LARGE], NOW)
    joining = sum(room.processors for room in found.rooms if room.end is not None)
    assert joining <= free
    assert all(0 < room.processors <= per_superslot for room in found.rooms)
    assert joining == free or found.rooms[-1].end is None
    for room in found.rooms:
        if room.end is not None:
            assert any(fits(one, room, NOW) for one in (SMALL, LARGE))


@pytest.mark.parametrize(
    ("room", "fitting"),
    [
        (Room(8), {"small": 1, "large": 8}),
        (Room(5), {"small": 1, "large": 5}),
        (Room(3), {"small": 1}),
        (Room(8, int(NOW + 600)), {"small": 1, "large": 8}),
        (Room(8, int(NOW + 599)), {}),
        (Room(8, int(NOW + 86401)), {}),
    ],
)
def test_what_fits_a_room(room: Room, fitting: dict[str, int]) -> None:
    assert {one.name: size(one, room) for one in (SMALL, LARGE) if fits(one, room, NOW)} == fitting


@pytest.mark.parametrize(
    ("duration", "words"),
    [(-1, "0 s"), (0.2, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "2 h 00 min"), (7260, "2 h 01 min")],
)
def test_durations_in_words(duration: float, words: str) -> None:
    assert seconds(duration) == words
