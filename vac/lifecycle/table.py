"""The table of a slot's life: for each phase and stimulus the next phase and the effects, or why nothing happens.

A stimulus is anything that may happen to a slot; one about a machine is about the slot's present one. step() applies
the table. A listing counts only if it was asked for after the phase began. The factory carries the effects out,
in order; one that brings about another stimulus (EndWritten, DirectoryFailed) returns it, and that is applied next.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Union

from vac.lifecycle.phases import (
    PHASES,
    Empty,
    Ended,
    PendingCreation,
    Phase,
    Preparing,
    Releasing,
    Running,
    SetAside,
    Starting,
    StopOrder,
    Stopping,
    Stuck,
    Uncertain,
)


@dataclass(frozen=True)
class Stimulus:
    """Something has happened."""


@dataclass(frozen=True)
class Failure(Stimulus):
    """Something could not be done."""

    reason: str


@dataclass(frozen=True)
class Listed(Stimulus):
    """The engine has listed its machines."""

    asked_time: float
    """When it was asked, by the clock of the phases."""


@dataclass(frozen=True)
class Decided(Stimulus):
    """The scheduler has given this slot a machine."""

    pending: PendingCreation


@dataclass(frozen=True)
class ContextReady(Stimulus):
    """Its user_data has been made, and it is still wanted."""

    user_data: bytes = field(repr=False)


class NotWanted(Stimulus):
    """Its user_data has been made, but meanwhile the configuration has changed, the slot's name is taken, or people
    want no more machines."""


class ContextFailed(Failure):
    """Its user_data can't be made."""


class DirectoryFailed(Failure):
    """Its directory couldn't be made, or the engine can't be asked for such a machine; nothing is left of it."""


@dataclass(frozen=True)
class Started(Stimulus):
    """The engine has made it: it runs."""

    time: float


class StartFailed(Failure):
    """The engine has refused to make it, or failed to."""


class StartUnknown(Failure):
    """The engine couldn't be asked, or its answer was lost."""


class ListedAlive(Listed):
    """It is listed as running or paused."""


class ListedEnded(Listed):
    """It is listed as ended. In Uncertain also: it is absent or half made, but has left something in its joboutputs."""


class ListedHalfMade(Listed):
    """Only parts of it are listed: it has never run."""


class ListedAbsent(Listed):
    """It isn't listed."""


@dataclass(frozen=True)
class EndLowered(Stimulus):
    """People want it to end earlier than it was told."""

    shutdown_time: float
    """Unix seconds."""


@dataclass(frozen=True)
class StopOrdered(Stimulus):
    """It has broken a rule, or people want it to end now."""

    order: StopOrder


class Stopped(Stimulus):
    """The engine says that it has ended it."""


class EndWritten(Stimulus):
    """Its end and its accounting record are on disk."""


class Released(Stimulus):
    """The engine holds nothing of it any more."""


class ReleaseFailed(Failure):
    """The engine couldn't release it."""


class Time(Stimulus):
    """Time has passed."""


STIMULI: tuple[type[Stimulus], ...] = (
    *(Decided, ContextReady, NotWanted, ContextFailed, DirectoryFailed),
    *(Started, StartFailed, StartUnknown),
    *(ListedAlive, ListedEnded, ListedHalfMade, ListedAbsent),
    *(EndLowered, StopOrdered, Stopped, EndWritten, Released, ReleaseFailed),
    Time,
)


class Effect(enum.Enum):
    """Something that the factory has to do for a slot; each can be the last one before a crash."""

    PREPARE_CONTEXT = "prepare its context"
    MAKE_DIRECTORY = "make its directory and slot file"
    START = "start it"
    WRITE_STARTED = "write `started`"
    COUNT_CREATION = "count the creation"
    COUNT_FAILURE = "count the failed creation"
    REPORT_UNWANTED = "log that it isn't made"
    LOOK = "ask for a listing"
    RENEW_HEARTBEAT = "renew its heartbeat"
    LOWER_END = "move its shutdown time closer"
    WRITE_MESSAGE = "write its shutdown message"
    STOP = "stop it"
    ACCOUNT = "write its end and its record"
    REMEMBER_END = "count and tell its end"
    RELEASE = "have its engine release it"
    COUNT_RELEASE = "count the release or its failure"
    REPORT_STUCK = "log that the slot stays taken"
    DISCARD = "discard its directory and slot file"
    GIVE_BACK_SCRATCH = "give back its scratch space"


CONTEXT_SECONDS = 300.0
"""Longest that a machine's context is waited for."""
STOP_AGAIN_SECONDS = 15.0
"""From one request to stop a machine to the next, as long as no listing shows that it has ended."""
ACCOUNT_AGAIN_SECONDS = 15.0
"""From an attempt to write a machine's end to the next."""
STUCK_SECONDS = 60.0
"""Time for an engine to release a machine before the slot is reported."""

Guard = Callable[[Phase, float], bool]
"""Tells from the phase and the present time if a transition applies."""


@dataclass(frozen=True)
class Transition:
    """Consequence of a stimulus."""

    next: type[Phase] | None
    """The phase that is entered, which may be the same one anew; None: the slot stays in its phase."""
    effects: tuple[Effect, ...] = ()
    after_seconds: float = 0.0
    """It applies only when the slot has been in its phase for so long."""
    reason: str = ""
    """For people, where the stimulus brings none."""


@dataclass(frozen=True)
class Ignored:
    """Nothing follows from a stimulus."""

    reason: str


Row = Union[Transition, Ignored]
Stimuli = Sequence[type[Stimulus]]

_CREATION: Stimuli = (ContextReady, NotWanted, ContextFailed, DirectoryFailed)
_ANSWERS: Stimuli = (Started, StartFailed, StartUnknown)
_LISTINGS: Stimuli = (ListedAlive, ListedEnded, ListedHalfMade, ListedAbsent)
_GONE: Stimuli = (ListedEnded, ListedHalfMade, ListedAbsent)
_PRESENT: Stimuli = (ListedAlive, ListedEnded, ListedHalfMade)
_RELEASES: Stimuli = (Released, ReleaseFailed)
_PEOPLE: Stimuli = (EndLowered, StopOrdered)

_E = Effect
_DISCARD = (_E.RELEASE, _E.COUNT_FAILURE, _E.DISCARD)
_CUT_SHORT = Transition(Empty, _DISCARD, reason="its creation was cut short")
_ELSEWHERE: Sequence[tuple[Stimuli, Row]] = (
    ((Decided,), Ignored("only an empty slot is given a machine")),
    (
        (*_CREATION, *_ANSWERS, Stopped, EndWritten, *_RELEASES),
        Ignored("a late message about an earlier machine"),
    ),
)
"""Rows of a phase that has none of its own for these stimuli."""
_AFTER_THE_END: Sequence[tuple[Stimuli, Row]] = (
    ((Released, ListedAbsent), Transition(Empty, (_E.COUNT_RELEASE, _E.GIVE_BACK_SCRATCH))),
    ((ReleaseFailed,), Transition(None, (_E.COUNT_RELEASE,))),
    (_PRESENT, Transition(None, (_E.RELEASE,))),
    ((Stopped, *_PEOPLE, *_ANSWERS), Ignored("it has ended")),
    ((EndWritten,), Ignored("its end is on disk")),
)
"""Rows of a slot whose machine is accounted for and not yet released."""


def _rows(phase: type[Phase], *rows: tuple[Stimuli | type[Stimulus], Row]) -> Mapping[Any, Row]:
    """Return the rows of one phase, for single stimuli and for groups."""
    table: dict[Any, Row] = {}
    for stimuli, row in rows:
        for stimulus in stimuli if isinstance(stimuli, Sequence) else (stimuli,):
            assert (phase, stimulus) not in table, f"two rows for {phase.__name__}, {stimulus.__name__}"
            table[phase, stimulus] = row
    for stimuli, row in _ELSEWHERE:
        table.update({(phase, each): row for each in stimuli if (phase, each) not in table})
    return table


TRANSITIONS: Mapping[tuple[type[Phase], type[Stimulus]], Row] = {
    **_rows(
        Empty,
        (Decided, Transition(Preparing, (_E.PREPARE_CONTEXT,))),
        (_PRESENT, Transition(Releasing, (_E.RELEASE,))),
        (ListedAbsent, Transition(None, (_E.GIVE_BACK_SCRATCH,))),
        (_PEOPLE, Ignored("the machine has ended")),
        (Time, Ignored("nothing here waits for time")),
    ),
    **_rows(
        Preparing,
        (ContextReady, Transition(Starting, (_E.MAKE_DIRECTORY, _E.START))),
        (NotWanted, Transition(Empty, (_E.REPORT_UNWANTED,))),
        (ContextFailed, Transition(Empty, (_E.COUNT_FAILURE,))),
        (
            Time,
            Transition(
                Empty,
                (_E.COUNT_FAILURE,),
                after_seconds=CONTEXT_SECONDS,
                reason=f"its user_data was not there after {CONTEXT_SECONDS:.0f} s",
            ),
        ),
        (DirectoryFailed, Ignored("its directory isn't begun before its context is ready")),
        (_LISTINGS, Ignored("what is left of the last machine is foreign once the next one is on disk")),
        (_PEOPLE, Ignored("people can't name a machine that isn't on disk")),
    ),
    **_rows(
        Starting,
        (DirectoryFailed, Transition(Empty, (_E.COUNT_FAILURE,))),
        (Started, Transition(Running, (_E.WRITE_STARTED, _E.COUNT_CREATION, _E.LOOK))),
        (StartFailed, Transition(Empty, _DISCARD)),
        (StartUnknown, Transition(Uncertain, (_E.LOOK,))),
        (EndLowered, Transition(None, (_E.LOWER_END,))),
        (StopOrdered, Ignored("the request stays on disk until the engine has answered")),
        (_LISTINGS, Ignored("the engine's answer to the request decides")),
        (Time, Ignored("the engine's thread has a deadline for the request")),
    ),
    **_rows(
        Uncertain,
        (ListedAlive, Transition(Running, (_E.WRITE_STARTED, _E.COUNT_CREATION, _E.RENEW_HEARTBEAT))),
        (ListedEnded, Transition(Ended, (_E.WRITE_STARTED, _E.COUNT_CREATION, _E.ACCOUNT))),
        ((ListedHalfMade, ListedAbsent), _CUT_SHORT),
        (EndLowered, Transition(None, (_E.LOWER_END,))),
        (StopOrdered, Ignored("the request stays on disk until a listing shows the machine")),
        (_ANSWERS, Ignored("an answer that came too late: the next listing decides")),
        (Time, Ignored("each cycle asks for a listing")),
    ),
    **_rows(
        Running,
        (ListedAlive, Transition(None, (_E.RENEW_HEARTBEAT,))),
        (_GONE, Transition(Ended, (_E.ACCOUNT,))),
        (StopOrdered, Transition(Stopping, (_E.WRITE_MESSAGE, _E.STOP))),
        (EndLowered, Transition(None, (_E.LOWER_END,))),
        (_ANSWERS, Ignored("it is known to run")),
        (Stopped, Ignored("a listing shows its end")),
        (Time, Ignored("rules that depend on time order a stop")),
    ),
    **_rows(
        Stopping,
        (ListedAlive, Transition(None, (_E.RENEW_HEARTBEAT,))),
        (_GONE, Transition(Ended, (_E.ACCOUNT,))),
        (Stopped, Transition(None, (_E.LOOK,))),
        (Time, Transition(Stopping, (_E.STOP,), after_seconds=STOP_AGAIN_SECONDS)),
        (_PEOPLE, Ignored("it is being stopped")),
        (_ANSWERS, Ignored("it is known to run")),
    ),
    **_rows(
        Ended,
        (EndWritten, Transition(Releasing, (_E.REMEMBER_END, _E.RELEASE))),
        (Time, Transition(Ended, (_E.ACCOUNT,), after_seconds=ACCOUNT_AGAIN_SECONDS)),
        (_LISTINGS, Ignored("its end has been seen and has to be written first")),
        ((Stopped, *_PEOPLE, *_ANSWERS), Ignored("it has ended")),
    ),
    **_rows(
        Releasing,
        *_AFTER_THE_END,
        (Time, Transition(Stuck, (_E.REPORT_STUCK,), after_seconds=STUCK_SECONDS)),
    ),
    **_rows(
        Stuck,
        *_AFTER_THE_END,
        (Time, Ignored("each listing that shows it asks the engine again")),
    ),
    **_rows(
        SetAside, (STIMULI, Ignored("nothing is known of its machine; its files are read again each cycle"))
    ),
}


@dataclass(frozen=True)
class Step:
    """One application of the table."""

    before: Phase
    stimulus: Stimulus
    after: Phase
    effects: tuple[Effect, ...] = ()
    reason: str = ""
    """For people, if something failed."""


def step(phase: Phase, stimulus: Stimulus, now: float) -> Step:
    """Apply the table to a slot in this phase; now is by the clock of the phases."""
    row = TRANSITIONS[type(phase), type(stimulus)]
    if isinstance(row, Ignored):
        return Step(phase, stimulus, phase)
    if isinstance(stimulus, Listed) and stimulus.asked_time < phase.since:
        return Step(phase, stimulus, phase)
    if now - phase.since < row.after_seconds:
        return Step(phase, stimulus, phase)
    after = phase if row.next is None else _enter(row.next, phase, stimulus, now)
    return Step(phase, stimulus, after, row.effects, getattr(stimulus, "reason", row.reason))


def _enter(phase: type[Phase], before: Phase, stimulus: Stimulus, now: float) -> Phase:
    """Make the next phase. What it needs comes with the stimulus or from the phase before, or begins now."""
    needs = {}
    for name in (each.name for each in dataclasses.fields(phase)):
        if name != "since":
            needs[name] = getattr(stimulus if hasattr(stimulus, name) else before, name, now)
    return phase(now, **needs)


assert set(TRANSITIONS) == {(phase, stimulus) for phase in PHASES for stimulus in STIMULI}
