"""The small files in state_dir that Nagios, site scripts and our other processes read."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from vac.machines.layout import StateDir


class ErrorKind(enum.Enum):
    """What a factory-error is about, and so what ends it."""

    CREATION = "creation"
    CONFIGURATION = "configuration"


def touch_heartbeat(state: StateDir, role: str, now: float) -> None: ...


def write_pid(state: StateDir, role: str, pid: int) -> None: ...


def write_version(state: StateDir, version: str) -> None: ...


def write_counts(
    state: StateDir, running: int, slots: int, running_processors: int, total_processors: int, running_hs06: float
) -> None: ...


def write_status(state: StateDir, status: Mapping[str, object]) -> None: ...


def set_error(state: StateDir, kind: ErrorKind, text: str) -> None: ...


def clear_error(state: StateDir, kind: ErrorKind) -> None: ...
