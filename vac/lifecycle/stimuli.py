"""Stimuli: everything that may happen to a slot. A stimulus about a machine is about the slot's present one."""

from __future__ import annotations

from dataclasses import dataclass, field

from vac.lifecycle.phases import PendingCreation, StopOrder


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
    """It is listed as ended; or as one that never ran, though it has left something in its joboutputs."""


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


class EngineReplaced(Stimulus):
    """The connection to its engine was closed and another one opened: answers to what was asked may be lost."""


class Time(Stimulus):
    """Time has passed."""


STIMULI: tuple[type[Stimulus], ...] = (
    *(Decided, ContextReady, NotWanted, ContextFailed, DirectoryFailed),
    *(Started, StartFailed, StartUnknown),
    *(ListedAlive, ListedEnded, ListedHalfMade, ListedAbsent),
    *(EndLowered, StopOrdered, Stopped, EndWritten, Released, ReleaseFailed),
    *(EngineReplaced, Time),
)
