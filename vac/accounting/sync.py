"""APEL sync records, and records sent once more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vac.machines.layout import StateDir


def sync(state: StateDir, months: Sequence[str], now: float) -> list[str]:
    """Write sync records of these months (YYYYMM) to apel-outgoing; returns what was done, in words."""
    ...


def republish(state: StateDir, months: Sequence[str], site: str | None = None) -> list[Path]:
    """Copy the archive's records of these months (YYYYMM, by EndTime in UTC) to apel-outgoing."""
    ...
