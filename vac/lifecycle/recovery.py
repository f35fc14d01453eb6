"""Recovery at the factory's start: the phase in which a slot goes on, by its machine's directory on disk."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from vac.lifecycle.phases import Empty, Phase, Running, Uncertain


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
