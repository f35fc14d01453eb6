"""The table of a slot's life: every pair, every transition, and what holds whatever happens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tools.lifecycle_page import page
from vac.config.machinetype import Machinetype
from vac.lifecycle.phases import (
    PHASES,
    RECOVERIES,
    Empty,
    Ended,
    PendingCreation,
    Phase,
    Preparing,
    Recovery,
    Releasing,
    Running,
    SetAside,
    SlotFile,
    Starting,
    StopOrder,
    Stopping,
    Stuck,
    Uncertain,
    recover,
)
from vac.lifecycle.table import (
    STIMULI,
    TRANSITIONS,
    ContextReady,
    Decided,
    DirectoryFailed,
    Effect,
    EndWritten,
    Ignored,
    Listed,
    ListedAbsent,
    ListedAlive,
    ListedEnded,
    ListedHalfMade,
    NotWanted,
    Released,
    Started,
    StartFailed,
    StartUnknown,
    Step,
    Stimulus,
    StopOrdered,
    Time,
    Transition,
    step,
)
from vac.scheduling.model import Create

PENDING = PendingCreation(Create("t", 1, 2e9, "why"), "u", Machinetype("t"), 50.0)
ORDER = StopOrder("700 Idle")
VALUES: dict[str, Any] = {
    "pending": PENDING,
    "order": ORDER,
    "user_data": b"#!",
    "reason": "no image",
    "begin": 5.0,
    "time": 100.0,
    "shutdown_time": 2e9,
    "asked_time": 1e9,
}
PAGE = Path(__file__).parents[3] / "docs" / "lifecycle.md"


def phase_of(kind: type[Phase], since: float = 0.0) -> Phase:
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{**{name: VALUES[name] for name in names if name != "since"}, "since": since})


def stimulus_of(kind: type[Stimulus], **values: Any) -> Stimulus:
    return kind(**{field.name: {**VALUES, **values}[field.name] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_every_phase_knows_what_follows_from_every_stimulus(
    phase: type[Phase], stimulus: type[Stimulus]
) -> None:
    row = TRANSITIONS[phase, stimulus]
    before = phase_of(phase)
    taken = step(before, stimulus_of(stimulus), now=10_000.0)
    if isinstance(row, Ignored):
        assert row.reason
        assert taken.after is before
        assert taken.effects == ()
        return
    assert taken.effects == row.effects
    assert type(taken.after) is (row.next or phase)
    assert taken.after.since == (0.0 if row.next is None else 10_000.0)
    if row.after_seconds:
        assert step(before, stimulus_of(stimulus), now=row.after_seconds - 0.1).effects == ()
    if Effect.COUNT_FAILURE in row.effects:
        assert taken.reason, "people are told why"


@pytest.mark.parametrize(
    ("phase", "stimulus", "after", "effects"),
    [
        (Empty, Decided, Preparing, [Effect.PREPARE_CONTEXT]),
        (Preparing, ContextReady, Starting, [Effect.MAKE_DIRECTORY, Effect.START]),
        (Preparing, NotWanted, Empty, [Effect.REPORT_UNWANTED]),
        (Starting, Started, Running, [Effect.WRITE_STARTED, Effect.COUNT_CREATION, Effect.LOOK]),
        (Starting, StartFailed, Empty, [Effect.RELEASE, Effect.COUNT_FAILURE, Effect.DISCARD]),
        (Starting, StartUnknown, Uncertain, [Effect.LOOK]),
        (Uncertain, ListedAbsent, Empty, [Effect.RELEASE, Effect.COUNT_FAILURE, Effect.DISCARD]),
        (Uncertain, ListedHalfMade, Empty, [Effect.RELEASE, Effect.COUNT_FAILURE, Effect.DISCARD]),
        (Running, ListedAlive, Running, [Effect.RENEW_HEARTBEAT]),
        (Running, ListedAbsent, Ended, [Effect.ACCOUNT]),
        (Running, StopOrdered, Stopping, [Effect.WRITE_MESSAGE, Effect.STOP]),
        (Stopping, ListedEnded, Ended, [Effect.ACCOUNT]),
        (Ended, EndWritten, Releasing, [Effect.REMEMBER_END, Effect.RELEASE]),
        (Releasing, Released, Empty, [Effect.COUNT_RELEASE, Effect.GIVE_BACK_SCRATCH]),
        (Empty, ListedEnded, Releasing, [Effect.RELEASE]),
    ],
)
def test_a_life_goes_by_these_transitions(
    phase: type[Phase], stimulus: type[Stimulus], after: type[Phase], effects: list[Effect]
) -> None:
    taken = step(phase_of(phase), stimulus_of(stimulus), now=1.0)
    assert (type(taken.after), list(taken.effects)) == (after, effects)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stimulus", [one for one in STIMULI if issubclass(one, Listed)])
def test_a_listing_asked_before_the_phase_began_says_nothing(
    phase: type[Phase], stimulus: type[Stimulus]
) -> None:
    before = phase_of(phase, since=100.0)
    taken = step(before, stimulus_of(stimulus, asked_time=99.9), now=200.0)
    assert (taken.after, taken.effects) == (before, ())


def test_a_phase_that_is_entered_anew_keeps_what_it_needs() -> None:
    again = step(Stopping(0.0, ORDER), Time(), now=20.0)
    assert again == Step(Stopping(0.0, ORDER), Time(), Stopping(20.0, ORDER), (Effect.STOP,))
    started = step(Preparing(0.0, PENDING), ContextReady(b""), now=20.0)
    assert started.after == Starting(20.0, PENDING)
    releasing = step(Ended(0.0), EndWritten(), now=20.0).after
    assert releasing == Releasing(20.0, begin=20.0)
    assert step(releasing, Time(), now=90.0).after == Stuck(90.0, begin=20.0)


def test_every_effect_and_stimulus_has_a_use() -> None:
    transitions = [row for row in TRANSITIONS.values() if isinstance(row, Transition)]
    assert {effect for row in transitions for effect in row.effects} == set(Effect)
    assert {kind for (_, kind), row in TRANSITIONS.items() if isinstance(row, Transition)} == set(STIMULI)


def test_every_directory_on_disk_has_a_meaning() -> None:
    keys = {
        (slot, started, ended) for slot in SlotFile for started in (False, True) for ended in (False, True)
    }
    assert set(RECOVERIES) == keys
    for (_, started, finished), (_, phase) in RECOVERIES.items():
        assert phase in {None, Empty, Running, Uncertain}
        assert (phase is Running) <= (started and not finished)
        assert (phase is Uncertain) <= (not started and not finished)
    for slot in SlotFile:
        recovery, _ = recover(slot, started=True, finished=False)
        assert recovery not in (Recovery.DISCARD, Recovery.KEEP), "what has run is accounted for"


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.lifecycle_page"


class Life(RuleBasedStateMachine):
    """A slot to which anything happens at any time; effects have their results at once or never."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.phase: Phase = Empty(self.now)
        self.done: list[Effect] = []
        """Effects since the slot was last empty of any machine on disk."""
        self.accounted = 0
        self.disk_full = False

    def handle(self, stimulus: Stimulus) -> None:
        before = self.phase
        taken = step(before, stimulus, self.now)
        self.phase = taken.after
        for effect in taken.effects:
            self.carry_out(effect, taken)
            if effect is Effect.ACCOUNT and not self.disk_full:
                self.accounted += 1
                self.handle(EndWritten())
                return

    def carry_out(self, effect: Effect, taken: Step) -> None:
        if effect is Effect.MAKE_DIRECTORY:
            assert isinstance(taken.before, Preparing)
            self.done, self.accounted = [], 0
        elif effect is Effect.START:
            assert Effect.MAKE_DIRECTORY in self.done
            assert Effect.START not in self.done, "an engine is asked once for a machine"
        elif effect in (Effect.ACCOUNT, Effect.STOP, Effect.RENEW_HEARTBEAT):
            assert Effect.WRITE_STARTED in self.done
            assert self.accounted == 0, "the end is written once"
        elif effect is Effect.DISCARD:
            assert Effect.WRITE_STARTED not in self.done, "what has run is never discarded"
        elif effect is Effect.RELEASE:
            assert self.accounted or Effect.WRITE_STARTED not in self.done, "not before its end is on disk"
        elif effect is Effect.GIVE_BACK_SCRATCH and Effect.WRITE_STARTED in self.done:
            assert self.accounted == 1
        self.done.append(effect)

    @rule(kind=st.sampled_from([k for k in STIMULI if not issubclass(k, (Listed, EndWritten))]))
    def anything(self, kind: type[Stimulus]) -> None:
        if kind is DirectoryFailed and isinstance(self.phase, Starting):
            return  # that is no message: it comes from the effect
        self.handle(stimulus_of(kind))

    @rule(
        kind=st.sampled_from([ListedAlive, ListedEnded, ListedHalfMade, ListedAbsent]),
        age=st.floats(0.0, 100.0),
    )
    def listing(self, kind: type[Stimulus], age: float) -> None:
        self.handle(stimulus_of(kind, asked_time=self.now - age))

    @rule(seconds=st.sampled_from([0.0, 1.0, 20.0, 100.0, 1000.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Time())

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.disk_full = full

    @precondition(lambda self: isinstance(self.phase, (Starting, Uncertain, Running, Stopping, Empty)))
    @rule()
    def restart(self) -> None:
        """The factory dies and goes on from what is on disk."""
        started, finished = Effect.WRITE_STARTED in self.done, self.accounted > 0
        if Effect.MAKE_DIRECTORY not in self.done or Effect.DISCARD in self.done:
            self.phase = Empty(self.now)
            return
        _, phase = recover(SlotFile.NAMES_IT, started=started, finished=finished)
        assert phase is not None
        self.phase = phase(self.now)

    @invariant()
    def the_phase_agrees_with_the_disk(self) -> None:
        started = Effect.WRITE_STARTED in self.done
        if isinstance(self.phase, (Running, Stopping, Ended)):
            assert started
            assert not self.accounted
        elif isinstance(self.phase, (Starting, Uncertain)):
            assert Effect.MAKE_DIRECTORY in self.done
            assert not started
        elif isinstance(self.phase, (Releasing, Stuck, Empty)):
            assert not started or self.accounted == 1
        assert not isinstance(self.phase, SetAside)


def test_a_machine_that_ran_is_accounted_for_exactly_once() -> None:
    run_state_machine_as_test(Life, settings=hypothesis_settings(stateful_step_count=60, deadline=None))
