"""Phases of a slot's life, each with what only that phase needs; and the one in which a restarted factory goes on.

Times are seconds of the monotonic clock CLOCK_BOOTTIME, so that no step of the wall clock moves a phase on.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.scheduling.model import Create


@dataclass(frozen=True)
class PendingCreation:
    """A machine that has been decided on and of which nothing is on disk yet."""

    order: Create
    uuid: str
    machinetype: Machinetype
    """As it was configured when the decision was made."""
    begin: float


@dataclass(frozen=True)
class StopOrder:
    """Reason to end a machine by force."""

    message: str
    """Its shutdown message, unless it leaves one itself."""
    by_people: bool = False
    """Such an end says nothing about the machinetype's work."""


@dataclass(frozen=True)
class Phase:
    """Phase of a slot's life."""

    since: float
    """When the slot entered this phase: a listing that was asked for earlier says nothing about it."""


class Empty(Phase):
    """No machine. The end of the last one that ran is on disk. If a listing still shows that one, it is released."""


@dataclass(frozen=True)
class Preparing(Phase):
    """The context of the next machine (its user_data) is being made. Nothing is on disk."""

    pending: PendingCreation


@dataclass(frozen=True)
class Starting(Phase):
    """Its directory is complete, and the engine has been asked to make it and has not answered."""

    pending: PendingCreation


class Uncertain(Phase):
    """Its directory is there, but it isn't known whether the engine has made it: the next listing decides."""


class Running(Phase):
    """It has started, and nobody has seen it end."""


@dataclass(frozen=True)
class Stopping(Phase):
    """The engine has been asked to end it, and no listing has shown yet that it did."""

    order: StopOrder


class Ended(Phase):
    """It has ended, but that isn't on disk yet: its accounting is written next."""


@dataclass(frozen=True)
class Releasing(Phase):
    """It is accounted for. The engine has been asked to release what is left of it."""

    begin: float
    """When it was asked first."""


@dataclass(frozen=True)
class Stuck(Phase):
    """The engine has not released what is left of it for a minute; the slot stays taken."""

    begin: float
    """When it was asked first."""


class SetAside(Phase):
    """The files of its machine can't be read: nothing is done with slot and machine until they can."""


PHASES: tuple[type[Phase], ...] = (
    *(Empty, Preparing, Starting, Uncertain, Running),
    *(Stopping, Ended, Releasing, Stuck, SetAside),
)


class SlotFile(enum.Enum):
    """Content of the slot file of a machine's name."""

    NAMES_IT = "names it"
    MISSING = "missing"
    NAMES_ANOTHER = "names another"


class Recovery(enum.Enum):
    """Ways to deal with a directory."""

    GO_ON = "the slot goes on with it"
    WRITE_SLOT_FILE = "its slot file is written again, and the slot goes on with it"
    ORPHAN = "if its engine lists it, it is removed as foreign; then its end is written"
    DISCARD = "it is discarded: its creation was cut short"
    KEEP = "it is kept for people until it is old"


RECOVERIES: Mapping[tuple[SlotFile, bool, bool], tuple[Recovery, type[Phase] | None]] = {
    # slot file, `started` exists, `finished` exists
    (SlotFile.NAMES_IT, False, False): (Recovery.GO_ON, Uncertain),
    (SlotFile.NAMES_IT, True, False): (Recovery.GO_ON, Running),
    (SlotFile.NAMES_IT, False, True): (Recovery.GO_ON, Empty),
    (SlotFile.NAMES_IT, True, True): (Recovery.GO_ON, Empty),
    (SlotFile.MISSING, False, False): (Recovery.DISCARD, None),
    (SlotFile.MISSING, True, False): (Recovery.WRITE_SLOT_FILE, Running),
    (SlotFile.MISSING, False, True): (Recovery.KEEP, None),
    (SlotFile.MISSING, True, True): (Recovery.KEEP, None),
    (SlotFile.NAMES_ANOTHER, False, False): (Recovery.DISCARD, None),
    (SlotFile.NAMES_ANOTHER, True, False): (Recovery.ORPHAN, None),
    (SlotFile.NAMES_ANOTHER, False, True): (Recovery.KEEP, None),
    (SlotFile.NAMES_ANOTHER, True, True): (Recovery.KEEP, None),
}
"""In Running, a machine that its engine doesn't list any more is accounted for by its latest sign of life; in Empty,
one that it still lists is released."""


def recover(slot_file: SlotFile, *, started: bool, finished: bool) -> tuple[Recovery, type[Phase] | None]:
    """Return what is done about a machine's directory, and the phase of its slot if that goes on with it."""
    return RECOVERIES[slot_file, started, finished]
