"""Slots: which machine is, or was last, in each; rebuilt from disk at start."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Optional

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.scheduling.model import Outcome

Report = Callable[[Optional[str], float, float, float], Optional[str]]
"""vac.scheduling.backoff.reported_message(message, started, ended, fizzle_seconds)."""


def load_slots(
    state: StateDir, machinetypes: Mapping[str, Machinetype], settings: Settings | None
) -> dict[str, Machine]:
    """The present or last machine of every slot, by name, also of slots above the present number.

    Half-created directories are removed; a machine that runs but whose slot file was lost gets it back.
    """
    ...


def strays(
    state: StateDir,
    slots: Iterable[Machine],
    machinetypes: Mapping[str, Machinetype],
    settings: Settings | None,
) -> list[Machine]:
    """Machines that started, are in no slot and have no `finished`: to be finished with live=False."""
    ...


def free_slot(factory_name: str, slots: int, occupied: Collection[str]) -> str | None:
    """The name of the lowest slot that isn't occupied."""
    ...


def finished_machines(state: StateDir, report: Report) -> list[Outcome]:
    """The outcomes of all machines whose directories are there, oldest creation first."""
    ...
