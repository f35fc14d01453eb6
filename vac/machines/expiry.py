"""Removal of what is old: directories of ended machines, slots that a factory has no more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.machines.layout import StateDir


class Expiry:
    """Remembers what it has read of finished machines, so that each call costs little."""

    def __init__(self, state: StateDir) -> None: ...

    def run(
        self, machinetypes: Mapping[str, Machinetype], occupied: Collection[Path], now: float, limit: int = 50
    ) -> list[Path]:
        """Remove at most `limit` directories of ended machines; `occupied` are those of machines in slots."""
        ...


def remove_orphaned_slots(state: StateDir, factory_name: str, slots: int, occupied: Collection[str]) -> list[str]:
    """Remove the slot files of this factory numbered `slots` or above whose names aren't occupied."""
    ...
