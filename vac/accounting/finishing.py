"""The end of a machine on disk: final heartbeat, record, `finished`, finishes/TYPE, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vac.drivers.base import Usage
from vac.machines.layout import StateDir
from vac.machines.machine import Machine


class FinishFailed(Exception):
    """The end can't be written now (the reason is the text); try again, nothing is lost or doubled."""


@dataclass(frozen=True)
class Finished:
    """What was written."""

    ended_time: float
    message: str | None
    """Shutdown message of the machine (or of the factory that destroyed it)."""
    record: Path | None
    """Its accounting record in apel-archive; None if it never started or fizzled."""
    outgoing: Path | None


def finish(state: StateDir, machine: Machine, usage: Usage | None, now: float, *, live: bool) -> Finished:
    """Write the machine's end.

    live: this process has itself seen the machine alive within its last observations, so that it ended now;
    else the stored heartbeat's time is its end. Raises FinishFailed.
    """
    ...
