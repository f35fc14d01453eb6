"""Properties of every decision, and the reasons against one."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.one_factory import (
    FACTORY,
    IDLE_HOST,
    MODEL,
    START,
    End,
    OneFactory,
    machinetype,
    settings,
)
from vac.config.machinetype import Machinetype
from vac.scheduling.backoff import History, TypeHistory
from vac.scheduling.decide import Memory, RampState, decide
from vac.scheduling.eligibility import GUARD_NAMES, Situation
from vac.scheduling.model import Decision, Host, Occupied, SpaceView, TypeReport, TypeTotals
from vac.scheduling.shares import Ledger

NAMES = ("a", "b", "c", "d")
OTHERS = ("g.example.com", "h.example.com", "i.example.com")
ALONE = SpaceView(FACTORY, (FACTORY,), 64.0)
READY = Memory(RampState(machines={"a": 64}, freed_times=()))
"""A ramp that has seen 64 machines, so that all places may be taken at once."""

_recent = st.floats(START - 5000, START)
_maybe = st.none() | _recent
_types = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(
        lambda share, model, least, more, wallclock, shortest, backoff: machinetype(
            "x",
            share,
            machine_model=model,
            machinegroup="both" if share == 2 else "x",
            min_processors=least,
            max_processors=least + more,
            max_wallclock_seconds=wallclock,
            min_wallclock_seconds=min(wallclock, shortest),
            backoff_seconds=backoff,
        ),
        st.sampled_from([0, 0.5, 1, 2]),
        st.sampled_from([MODEL, MODEL, "docker"]),
        st.sampled_from([1, 1, 2, 8]),
        st.integers(0, 8),
        st.sampled_from([3600, 86400]),
        st.sampled_from([0, 1800, 86400]),
        st.sampled_from([0, 10, 600]),
    ),
).map(lambda found: {name: replace(one, name=name) for name, one in found.items()})
_occupied = st.lists(
    st.builds(
        lambda name, processors, created, started, left: Occupied(
            name, processors, created, created + 1 if started else None, START + left
        ),
        st.sampled_from([*NAMES, "gone"]),
        st.sampled_from([1, 1, 2, 8]),
        _recent,
        st.booleans(),
        st.sampled_from([-5.0, 600, 3600, 86000]),
    ),
    max_size=20,
)
_history = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(
        TypeHistory,
        aborts=st.integers(0, 40),
        last_end=_recent,
        no_work=st.booleans(),
        failures=st.integers(0, 20),
        last_failure=_recent,
        abort_time=_maybe,
    ),
).map(History)
_totals = st.builds(
    lambda hs06, young, outlived, aborts: TypeTotals(
        running_hs06=hs06,
        before_fizzle=young,
        outlived_factories=outlived,
        aborts=tuple(sorted(zip(aborts, OTHERS), reverse=True)),
    ),
    st.floats(0, 200),
    st.integers(0, 40),
    st.integers(0, 3),
    st.lists(_recent, max_size=3),
)
_spaces = st.builds(
    lambda capacity, types: SpaceView(FACTORY, (FACTORY, *OTHERS), capacity, types),
    st.floats(0, 300),
    st.dictionaries(st.sampled_from(NAMES), _totals),
)
_settings = st.builds(
    lambda processors, superslot, policy, per_cycle, left: settings(
        processors,
        processors_per_superslot=superslot,
        share_policy=policy,
        machines_per_cycle=per_cycle,
        shutdown_time=None if left is None else int(START) + left,
    ),
    st.sampled_from([1, 7, 8, 64]),
    st.sampled_from([1, 1, 8]),
    st.sampled_from(["deficit", "classic"]),
    st.sampled_from([0, 0, 3]),
    st.sampled_from([None, None, -1, 1000, 50000]),
)
_situations = st.builds(
    Situation,
    settings=_settings,
    machinetypes=_types,
    occupied=_occupied,
    history=_history,
    space=_spaces | st.just(ALONE),
    host=st.sampled_from([IDLE_HOST, IDLE_HOST, replace(IDLE_HOST, load=(100.0, 100.0, 100.0))]),
    engines=st.sampled_from(
        [{MODEL: None, "docker": None}, {MODEL: None, "docker": "no socket"}, {MODEL: "gone"}, {MODEL: None}]
    ),
    now=st.just(START),
)
_memories = st.builds(
    Memory,
    st.builds(
        RampState,
        step_time=st.none() | st.floats(START - 30, START + 5),
        machines=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 64)),
        created=st.integers(0, 4),
    ),
    st.builds(
        Ledger,
        debts=st.dictionaries(st.sampled_from([*NAMES, "gone"]), st.floats(-1e7, 1e7)),
        rates=st.dictionaries(st.sampled_from([*NAMES, "gone"]), st.floats(-100, 100)),
        time=st.none() | st.floats(START - 5000, START + 5000),
    ),
)


@given(_situations, _memories, st.integers(0, 100))
def test_what_is_decided_is_allowed(situation: Situation, memory: Memory, seed: int) -> None:
    decision, _ = decide(situation, memory, random.Random(seed))
    total, now = situation.settings.total_processors, situation.now
    used = sum(one.processors for one in situation.occupied)
    assert sum(one.processors for one in decision.creates) <= max(0, total - used)
    assert not (decision.guard and decision.creates)
    superslot = situation.settings.processors_per_superslot
    limit = situation.settings.shutdown_time
    for create in decision.creates:
        one = situation.machinetypes[create.machinetype]
        past = situation.history.get(one.name)
        assert one.target_share > 0
        assert situation.engines.get(one.machine_model, "unknown") is None
        assert one.name not in decision.held_here and one.name not in decision.held_in_space
        assert one.min_processors <= create.processors <= min(one.max_processors, superslot)
        left = create.shutdown_time - now
        assert one.min_wallclock_seconds - 1 < left <= one.max_wallclock_seconds
        assert limit is None or create.shutdown_time <= limit
        assert create.reason
        if not past.no_work:
            assert past.last_end + past.hold_seconds(one.backoff_seconds) <= now


@given(_situations, _memories, st.integers(0, 100))
def test_every_type_has_a_reason_and_times_lie_ahead(situation: Situation, memory: Memory, seed: int) -> None:
    decision, state = decide(situation, memory, random.Random(seed))
    assert set(decision.passed_over) == set(situation.machinetypes)
    assert all(decision.passed_over.values())
    assert (decision.guard is None) == (decision.guard_name is None)
    assert decision.next_time is None or decision.next_time > situation.now
    for until in (*decision.held_here.values(), *decision.held_in_space.values()):
        assert until >= situation.now
    assert sum(state.ramp.machines.values()) == len(situation.occupied) + len(decision.creates)


@given(_situations, _memories, st.integers(0, 100))
def test_the_same_seed_gives_the_same_decision(situation: Situation, memory: Memory, seed: int) -> None:
    first = decide(situation, memory, random.Random(seed))
    assert first == decide(situation, memory, random.Random(seed))


@given(_situations, _memories, st.integers(0, 100))
def test_nothing_more_is_decided_before_the_time_that_is_told(
    situation: Situation, memory: Memory, seed: int
) -> None:
    decision, state = decide(situation, memory, random.Random(seed))
    if decision.guard is not None or decision.creates:
        return
    later = situation.now + 1
    if decision.next_time is None or later < decision.next_time:
        again, _ = decide(replace(situation, now=later), state, random.Random(seed))
        assert again.creates == ()


@given(_situations, _memories, st.integers(0, 100))
def test_the_first_step_of_unknown_types_is_one_machine(
    situation: Situation, memory: Memory, seed: int
) -> None:
    conf = replace(situation.settings, machines_per_cycle=0)
    alone = replace(situation, settings=conf, occupied=(), space=ALONE)
    decision, _ = decide(alone, Memory(), random.Random(seed))
    assert len(decision.creates) <= 1


def situation(*types: Machinetype, **changes: object) -> Situation:
    named = {one.name: one for one in types or (machinetype("a"),)}
    plain = Situation(settings(), named, (), History(), ALONE, IDLE_HOST, {MODEL: None}, START)
    return replace(plain, **changes)  # type: ignore[arg-type]


def decided(one: Situation, memory: Memory = READY) -> Decision:
    return decide(one, memory, random.Random(1))[0]


FULL = [Occupied("a", 1, START - 9999, START - 9999, START + 9999)] * 64


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"settings": settings(draining=True)}, "draining", "draining is set"),
        ({"drain": "new kernel"}, "draining", "new kernel"),
        ({"settings": settings(shutdown_time=int(START))}, "shutdown", "shutdown_time has passed"),
        ({"config_problem": "vac.conf: line 3"}, "configuration", "line 3"),
        ({"host": replace(IDLE_HOST, health_problem="no /cvmfs")}, "health", "no /cvmfs"),
        ({"host": replace(IDLE_HOST, state_dir_free_bytes=999_999_999)}, "disk", "1 GB is needed"),
        ({"occupied": FULL}, "full", "64 of 64"),
        ({"host": replace(IDLE_HOST, load=(80.1, 0, 0))}, "overload", "1-minute load is 80.10, above 80.00"),
        ({"engines": {MODEL: "bwrap is missing"}}, "engines", "bwrap is missing"),
        ({"engines": {}}, "engines", "has not answered yet"),
    ],
)
def test_a_guard_stops_everything_and_says_why(changes: dict[str, object], name: str, words: str) -> None:
    decision = decided(situation(**changes))
    assert decision.creates == ()
    assert decision.guard_name == name
    assert name in GUARD_NAMES
    assert words in (decision.guard or "")
    assert decided(situation()).guard is None


@pytest.mark.parametrize(
    ("excess", "policy", "name"),
    [
        (0.0, "deficit", "overload"),
        (220.0, "deficit", None),
        (219.0, "deficit", "overload"),
        (300.0, "classic", "overload"),
    ],
)
def test_tasks_beyond_machines_processors_are_no_overload(
    excess: float, policy: str, name: str | None
) -> None:
    host = replace(IDLE_HOST, load=(300.0, 0.0, 0.0), excess_load=excess)
    decision = decided(situation(settings=settings(share_policy=policy), host=host))
    assert decision.guard_name == name
    assert ("without what machines have beyond" in (decision.guard or "")) == (excess == 219.0)


@pytest.mark.parametrize(
    ("load", "running", "policy", "overloaded"),
    [
        ((80.0, 99.0, 99.0), 10, "deficit", False),
        ((81.0, 0.0, 0.0), 10, "deficit", True),
        ((0.0, 0.0, 12.6), 10, "classic", True),
        ((0.0, 0.0, 12.5), 10, "classic", False),
        ((0.0, 0.0, 12.6), 4, "classic", False),
        ((0.0, 81.0, 0.0), 4, "classic", True),
    ],
)
def test_overload_by_policy(
    load: tuple[float, float, float], running: int, policy: str, overloaded: bool
) -> None:
    decision = decided(
        situation(
            settings=settings(share_policy=policy), host=Host(load, 10**12, 64), occupied=FULL[:running]
        )
    )
    assert (decision.guard_name == "overload") == overloaded


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"target_share": 0}, {}, "target_share is 0"),
        ({"min_processors": 8, "max_processors": 8}, {}, "processors_per_superslot only 1"),
        (
            {"min_processors": 8, "max_processors": 8},
            {"settings": settings(4, processors_per_superslot=8)},
            "only 4 processors",
        ),
        ({}, {"settings": settings(shutdown_time=int(START) + 86400)}, "shutdown_time is in 24 h"),
        ({"machine_model": "docker"}, {"engines": {MODEL: None, "docker": "no socket"}}, "no socket"),
        ({}, {"history": History({"b": TypeHistory(aborts=3, last_end=START - 10)})}, "for another 30 s"),
        (
            {},
            {"history": History({"b": TypeHistory(failures=2, last_failure=START - 5)})},
            "last 2 creations failed here: tried again in 15 s",
        ),
    ],
)
def test_a_type_that_cannot_be_created_says_why(
    options: dict[str, object], changes: dict[str, object], words: str
) -> None:
    fine = machinetype("a", max_wallclock_seconds=600)
    decision = decided(situation(fine, machinetype("b", **options), **changes))  # type: ignore[arg-type]
    assert words in decision.passed_over["b"]
    assert {create.machinetype for create in decision.creates} == {"a"}


def test_the_pause_after_aborts_here_ends_when_its_told() -> None:
    held = situation(history=History({"a": TypeHistory(aborts=3, last_end=START - 10)}))
    decision = decided(held)
    assert decision.creates == () and decision.held_here == {"a": START + 30} == {"a": decision.next_time}
    assert decided(replace(held, now=START + 30)).creates


@pytest.mark.parametrize(("no_work", "held"), [(True, False), (False, True)])
def test_a_type_without_work_here_is_free_when_others_run_it(no_work: bool, held: bool) -> None:
    past = TypeHistory(aborts=9, last_end=START - 1600, no_work=no_work, abort_time=START - 1600)
    elsewhere = SpaceView(FACTORY, (FACTORY, *OTHERS), 256.0, {"a": TypeTotals(outlived_factories=1)})
    one = situation(machinetype("a", backoff_seconds=600), history=History({"a": past}), space=elsewhere)
    assert ("a" in decided(one).held_here) == held
    assert bool(decided(one).creates) != held
    assert "a" in decided(replace(one, space=ALONE)).held_here


def test_a_started_machine_ends_the_pause_after_failed_creations() -> None:
    past = History({"a": TypeHistory(failures=7, last_failure=START - 100)})
    assert not decided(situation(history=past)).creates
    running = Occupied("a", 1, START - 50, START - 40, START + 9999)
    assert decided(situation(history=past, occupied=[running])).creates


def test_only_one_probe_is_made_however_much_is_free() -> None:
    past = History({"a": TypeHistory(aborts=1, last_end=START - 60, abort_time=START - 60)})
    decision = decided(situation(history=past))
    assert len(decision.creates) == 1
    assert "one at a time" in decision.passed_over["a"] and "probed" in decision.creates[0].reason


@pytest.mark.parametrize(("age", "created"), [(999, ["a", "a", "b"]), (99, ["b"])])
def test_what_is_free_is_kept_for_a_type_that_grows_by_steps(age: float, created: list[str]) -> None:
    running = [*[Occupied("a", 1, START - age, START - age, START + 999)] * 30]
    both = situation(machinetype("a"), machinetype("b"), occupied=running)
    decision = decided(both, Memory(RampState(START - 15, {"a": 30})))
    assert sorted(create.machinetype for create in decision.creates) == created
    assert "kept for b" in decision.passed_over["a"]
    assert "steps" in decision.passed_over["b"]


@pytest.mark.parametrize(
    ("past", "outlived", "created"),
    [
        (TypeHistory(), 0, 1),
        (TypeHistory(outlived_time=START - 86000), 0, 64),
        (TypeHistory(outlived_time=START - 86500), 0, 1),
        (TypeHistory(outlived_time=START - 9000, aborts=1, last_end=START - 8000), 0, 1),
        (TypeHistory(outlived_time=START - 9000, failures=1, last_failure=START - 8000), 0, 1),
        (TypeHistory(), 2, 64),
        (TypeHistory(), 1, 1),
        (TypeHistory(aborts=1, last_end=START - 8000), 2, 1),
    ],
)
def test_a_type_known_here_or_on_most_peers_fills_the_node_at_once(
    past: TypeHistory, outlived: int, created: int
) -> None:
    space = SpaceView(FACTORY, (FACTORY, *OTHERS), 256.0, {"a": TypeTotals(outlived_factories=outlived)})
    decision = decided(situation(history=History({"a": past}), space=space), Memory())
    assert len(decision.creates) == created


def test_a_type_is_decided_on_again_when_it_may_have_become_known() -> None:
    young = Occupied("a", 1, START - 5, START - 4, START + 9999)
    one = situation(machinetype("a", fizzle_seconds=10), occupied=[young])
    memory = Memory(RampState(START - 5, {"a": 1}))
    decision, memory = decide(one, memory, random.Random(1))
    assert (decision.creates, decision.next_time) == ((), START + 6)
    assert len(decided(replace(one, now=START + 6), memory).creates) == 63


def test_one_types_failures_brake_that_type_alone() -> None:
    past = History(
        {"a": TypeHistory(outlived_time=START - 99), "b": TypeHistory(aborts=1, last_end=START - 99)}
    )
    decision = decided(situation(machinetype("a"), machinetype("b"), history=past), Memory())
    assert [one.machinetype for one in decision.creates].count("a") == 32
    assert [one.machinetype for one in decision.creates].count("b") <= 1


def test_one_processor_alternates_by_time_whatever_the_lifetimes() -> None:
    types = [machinetype("a", 3), machinetype("b", 1)]
    factory = OneFactory(
        settings(1),
        types,
        lambda create, rng: End({"a": 3600.0, "b": 36000.0}[create.machinetype]),
        cycle_seconds=3600,
    )
    factory.run(30 * 86400)
    total = sum(factory.processor_seconds.values())
    assert factory.processor_seconds["b"] / total == pytest.approx(0.25, abs=0.015)


def test_why_tells_for_whom_processors_are_kept() -> None:
    small = machinetype("small", min_wallclock_seconds=7200)
    large = machinetype("large", min_processors=8, max_processors=8)
    running = [*[Occupied("small", 1, START - 80000, START - 80000, START + 5000)] * 7]
    one = situation(small, large, settings=settings(8, processors_per_superslot=8), occupied=running)
    decision = decided(one)
    assert decision.creates == ()
    assert decision.passed_over["small"] == (
        "1 free processor kept for large, which needs 8 at once (the superslot ends in 84 min)"
    )
    assert "needs 8 processors" in decision.passed_over["large"]
    option = settings(8, processors_per_superslot=8, superslot_keep_seconds=3600)
    assert decided(replace(one, settings=option)).creates


def test_what_a_held_type_leaves_is_divided_by_the_others() -> None:
    full = decided(
        situation(
            machinetype("a"),
            machinetype("b", 3, backoff_seconds=600),
            history=History({"b": TypeHistory(aborts=1, last_end=START - 1)}),
        )
    )
    assert [create.machinetype for create in full.creates] == ["a"] * 64


def test_classic_order_takes_the_lowest_score() -> None:
    totals = {"a": TypeTotals(running_hs06=30), "b": TypeTotals(running_hs06=8)}
    space = SpaceView(FACTORY, (FACTORY, *OTHERS), 256.0, totals)
    conf = settings(share_policy="classic", machines_per_cycle=3)
    decision = decided(situation(machinetype("a", 3), machinetype("b"), settings=conf, space=space))
    assert [create.machinetype for create in decision.creates] == ["b", "b", decision.creates[2].machinetype]


def test_the_present_replaces_what_the_view_knew_of_this_factory() -> None:
    stale = {"a": TypeReport(64, 64, 64.0, 0), "b": TypeReport()}
    space = SpaceView(
        FACTORY, (FACTORY,), 64.0, {"a": TypeTotals(running_hs06=64.0), "b": TypeTotals()}, stale
    )
    decision = decided(situation(machinetype("a"), machinetype("b"), space=space))
    counts = [create.machinetype for create in decision.creates]
    assert counts.count("a") == counts.count("b") == 32


def test_decisions_are_plain_values() -> None:
    assert dataclasses.asdict(decided(situation()))["creates"][0]["machinetype"] == "a"
