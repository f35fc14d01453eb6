"""Factories over time, as a site would see them: one alone, and several that decide on old views at one moment."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.one_factory import (
    IDLE_HOST,
    MODEL,
    START,
    End,
    OneFactory,
    machinetype,
    settings,
)
from vac.scheduling.backoff import History
from vac.scheduling.decide import Memory, decide
from vac.scheduling.eligibility import Situation
from vac.scheduling.model import Create, Occupied, SpaceView, TypeTotals
from vac.scheduling.space import own_reports

DAY = End(86400.0)


def works(create: Create, rng: random.Random) -> End:
    return DAY


def steps(factory: OneFactory) -> list[float]:
    return sorted({time - START for time, _ in factory.created})


def test_one_type_fills_64_processors_by_doubling() -> None:
    factory = OneFactory(settings(), [machinetype("a")], works)
    factory.run(89)
    assert len(factory.occupied) == 32
    factory.run(2)
    assert len(factory.occupied) == 64
    assert steps(factory) == [0, 15, 30, 45, 60, 75, 90]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "shares", [{"a": 3, "b": 1}, {"a": 1, "b": 1}, {"a": 5, "b": 3, "c": 1, "d": 1}, {"a": 9, "b": 1}]
)
def test_several_types_fill_64_processors_by_share(shares: dict[str, float], seed: int) -> None:
    factory = OneFactory(
        settings(), [machinetype(name, share) for name, share in shares.items()], works, seed
    )
    factory.run(121)
    assert len(factory.occupied) == 64
    for name, share in shares.items():
        assert factory.count(name) == pytest.approx(64 * share / sum(shares.values()), abs=2)


@pytest.mark.parametrize("machines_per_cycle", [1, 4])
def test_machines_per_cycle_is_the_classic_pace(machines_per_cycle: int) -> None:
    factory = OneFactory(settings(machines_per_cycle=machines_per_cycle), [machinetype("a")], works)
    factory.run(301)
    assert len(factory.occupied) == 6 * machines_per_cycle


def test_shares_hold_in_the_mean_over_generations() -> None:
    def random_lifetime(create: Create, rng: random.Random) -> End:
        return End(rng.uniform(3600, 10800))

    factory = OneFactory(settings(), [machinetype("a", 3), machinetype("b", 1)], random_lifetime)
    factory.run(600)
    assert abs(factory.count("a") - 48) <= 2
    factory.processor_seconds.clear()
    factory.run(3 * 7200)
    assert factory.processor_seconds["a"] / (3 * 7200) == pytest.approx(48, abs=0.5)
    assert factory.processor_seconds["b"] / (3 * 7200) == pytest.approx(16, abs=0.5)


def test_a_node_whose_machines_all_end_is_full_again_at_once() -> None:
    def until_then(create: Create, rng: random.Random) -> End:
        return End(START + 3600 - factory.now) if factory.now < START + 3600 else DAY

    factory = OneFactory(settings(), [machinetype("a")], until_then)
    factory.run(3601)
    assert len(factory.occupied) == 64
    assert {one.created_time for one in factory.occupied} == {START + 3600}


def test_another_type_takes_the_places_at_once_too() -> None:
    def work(create: Create, rng: random.Random) -> End:
        no_work = create.machinetype == "a"
        return (
            End(START + 3600 - factory.now, "300 No work") if no_work and factory.now < START + 3600 else DAY
        )

    factory = OneFactory(settings(), [machinetype("a", backoff_seconds=600)], work)
    factory.run(3000)
    factory.types["b"] = machinetype("b")
    factory.run(601)
    assert factory.count("b") == 64


def test_tries_without_work_back_off_and_others_have_the_share() -> None:
    def work(create: Create, rng: random.Random) -> End:
        return End(20, "300 No work available") if create.machinetype == "empty" else DAY

    types = [machinetype("a", 3), machinetype("empty", 4, backoff_seconds=60)]
    factory = OneFactory(settings(65), types, work)
    full_with_a = []

    def note() -> None:
        full_with_a.append(factory.count("a") >= 64)

    factory.run(3 * 3600, note)
    tries = [time - START for time, create in factory.created if create.machinetype == "empty"]
    pauses = [later - earlier - 20 for earlier, later in zip(tries, tries[1:])]
    assert factory.count("a") >= 64
    for earlier, later in zip(pauses[2:], pauses[3:]):
        assert later >= min(2 * earlier, 3600) - 1
    assert len(tries) < 12


def test_a_type_without_work_gets_one_machine_per_backoff() -> None:
    factory = OneFactory(
        settings(), [machinetype("a", backoff_seconds=60)], lambda create, rng: End(20, "300 No work")
    )
    factory.run(2000)
    tries = [time - START for time, _ in factory.created if time > START + 35]
    pauses = [later - earlier - 20 for earlier, later in zip(tries, tries[1:])]
    assert pauses[-3:] == [240, 480, 960]


@pytest.mark.parametrize("backoff_seconds", [0, 10])
def test_a_payload_of_one_second_is_not_respawned_for_ever(backoff_seconds: int) -> None:
    short = machinetype("a", backoff_seconds=backoff_seconds)
    factory = OneFactory(settings(), [short], lambda create, rng: End(1, "200 Success"))
    factory.run(86400)
    assert len(factory.created) < 24 + 20


def test_machines_that_never_start_pause_the_type_and_nothing_else() -> None:
    def work(create: Create, rng: random.Random) -> End:
        return DAY if create.machinetype == "a" else End(0.5, None, starts=False)

    factory = OneFactory(settings(), [machinetype("a"), machinetype("broken")], work)
    factory.run(3600)
    failures = sum(create.machinetype == "broken" for _, create in factory.created)
    assert factory.count("a") >= 63
    assert 3 < failures < 15
    assert factory.history.get("broken").abort_time is None


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 10), min_size=2, max_size=4),
    st.floats(0, 0.3),
    st.integers(0, 1000),
)
def test_what_types_had_and_their_debts_are_their_shares(
    processors: int, shares: list[int], failing: float, seed: int
) -> None:
    """Creating and releasing count for a machine's type, and a creation that fails now and then costs it nothing."""

    def work(create: Create, rng: random.Random) -> End:
        fails = not factory.history.get(create.machinetype).failures and rng.random() < failing
        return End(1, None, starts=False) if fails else End(rng.randint(5, 20))

    types = [machinetype(name, share, fizzle_seconds=2) for name, share in zip("abcd", shares)]
    factory = OneFactory(settings(processors), types, work, seed)
    factory.run(300)
    factory.decide()
    total, hs06 = sum(factory.processor_seconds.values()), factory.settings.hs06
    for one in types:
        due = one.target_share / sum(shares) * total
        owed = factory.memory.ledger.debts[one.name] / hs06
        assert due - factory.processor_seconds[one.name] == pytest.approx(owed, abs=1e-6)


def test_a_creation_failure_is_forgotten_when_one_starts() -> None:
    engine = {"works": False}
    factory = OneFactory(
        settings(),
        [machinetype("a")],
        lambda create, rng: DAY if engine["works"] else End(1, None, starts=False),
    )
    factory.run(3600)
    assert not factory.count("a")
    engine["works"] = True
    factory.run(600 + 120)
    assert factory.count("a") == 64


def test_work_that_returns_fills_the_node_again() -> None:
    def work(create: Create, rng: random.Random) -> End:
        return End(30, "300 No work") if factory.now < START + 7200 else DAY

    factory = OneFactory(settings(), [machinetype("a", backoff_seconds=60)], work)
    factory.run(7200)
    factory.run(3600 + 60 + 600 + 120)
    assert len(factory.occupied) == 64


def test_history_is_the_same_rebuilt_from_disk() -> None:
    def work(create: Create, rng: random.Random) -> End:
        message = rng.choice(["200 Success", "300 No work", "500 Broken", None])
        return End(rng.choice([1, 100, 700, 3000]), message, starts=rng.random() < 0.9)

    factory = OneFactory(settings(), [machinetype("a"), machinetype("b")], work)
    factory.run(20000)
    fizzle_seconds = {name: one.fizzle_seconds for name, one in factory.types.items()}
    shuffled = sorted(factory.outcomes, key=lambda one: one.created_time)
    rebuilt = History.of(shuffled, fizzle_seconds)
    for name in factory.types:
        assert rebuilt.get(name).abort_time == factory.history.get(name).abort_time
        assert rebuilt.get(name).aborts == factory.history.get(name).aborts
        assert rebuilt.get(name).last_end == factory.history.get(name).last_end


@pytest.mark.parametrize("processors", [64, 61])
def test_superslots_end_together_and_make_room_for_large_machines(processors: int) -> None:
    def work(create: Create, rng: random.Random) -> End:
        return End(rng.uniform(7000, 30000))

    large = machinetype("large", 1, min_processors=8, max_processors=8, min_wallclock_seconds=3600)
    small = machinetype("small", 1, min_wallclock_seconds=0)
    factory = OneFactory(settings(processors, processors_per_superslot=8), [large, small], work)

    def check() -> None:
        ends: dict[float, int] = {}
        for one in factory.occupied:
            ends[one.shutdown_time] = ends.get(one.shutdown_time, 0) + one.processors
        lacking = sum(-total % 8 for total in ends.values())
        free = processors - sum(one.processors for one in factory.occupied)
        assert free >= 0
        if factory.now > START + 300 and not factory.decision.notes:
            assert free <= lacking

    factory.run(2 * 86400, check)
    factory.processor_seconds.clear()
    factory.run(3 * 86400, check)
    share = factory.processor_seconds["large"] / sum(factory.processor_seconds.values())
    assert share == pytest.approx(0.5, abs=0.15)
    used = sum(factory.processor_seconds.values()) / (3 * 86400 * processors)
    assert used > 0.9


# Several factories

FACTORIES = 20
PROCESSORS = 64


@pytest.mark.parametrize("shares", [{"a": 3, "b": 1}, {"a": 5, "b": 3, "c": 1, "d": 1}])
def test_an_empty_space_fills_without_overshooting_any_share(shares: dict[str, float]) -> None:
    errors = [error_of_a_space_that_fills(shares, seed) for seed in range(10)]
    assert statistics.fmean(errors) < 0.004
    assert max(errors) < 0.01


def error_of_a_space_that_fills(shares: dict[str, float], seed: int) -> float:
    """Return the largest distance of a type from its share when the space is full, as a part of the space."""
    rng = random.Random(seed)
    names = tuple(f"f{index}" for index in range(FACTORIES))
    types = {name: machinetype(name, share) for name, share in shares.items()}
    capacity = float(FACTORIES * PROCESSORS)
    running = dict.fromkeys(types, 0)
    occupied: list[list[Occupied]] = [[] for _ in names]
    memories = [Memory() for _ in names]
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
            decision, memories[index] = decide(situation, memories[index], rng)
            for create in decision.creates:
                occupied[index].append(Occupied(create.machinetype, 1, now, now, now + 86400))
                running[create.machinetype] += 1
            due[index] = decision.next_time or now + 60
        for one, count in running.items():
            assert count <= (shares[one] / sum(shares.values()) + 0.02) * capacity
    assert sum(running.values()) == capacity
    wanted = {one: share / sum(shares.values()) for one, share in shares.items()}
    return max(abs(count / capacity - wanted[one]) for one, count in running.items())
