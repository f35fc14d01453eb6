"""A logical machine: its directory, mirrored in memory, and what its life writes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.machines.ending import EndingOptions
from vac.machines.layout import StateDir


@dataclass
class Machine:
    """One machine as its directory says. Times are Unix seconds."""

    directory: Path
    created_time: int
    machinetype: str
    name: str
    uuid: str
    """job_id."""
    processors: int
    options: EndingOptions
    shutdown_time: int
    """When it must end."""
    started_time: float | None = None
    finished: bool = False
    heartbeat_time: float | None = None
    """When it was last seen alive."""
    cpu_seconds: float = 0.0
    cpu_percent: float | None = None
    """Recent CPU use, in percent of one processor."""
    peak_memory_bytes: int | None = None
    fqan: str | None = None
    """accounting_fqan as it was when the machine was created."""
    final: bool = False
    """Its last heartbeat is written: nothing may move its end time any more."""

    @property
    def model(self) -> str: ...

    @property
    def hs06(self) -> float:
        """HS06 of the whole machine; 1.0 a processor if none is configured."""
        ...


def load(
    state: StateDir,
    directory: Path,
    *,
    model: str | None = None,
    machinetypes: Mapping[str, Machinetype] | None = None,
    settings: Settings | None = None,
) -> Machine | None: ...


def mark_started(state: StateDir, machine: Machine, now: float) -> None: ...


def renew_heartbeat(
    state: StateDir, machine: Machine, now: float, cpu_seconds: float | None, peak_memory_bytes: int | None = None
) -> None: ...


def lower_shutdown_time(state: StateDir, machine: Machine, shutdown_time: int) -> bool: ...


def end_time(machine: Machine) -> float: ...


def set_shutdown_message(state: StateDir, machine: Machine, text: str) -> None:
    """Record why the factory destroys the machine, unless the machine has left a message itself."""


def shutdown_message(machine: Machine) -> str | None: ...


def shutdown_message_time(machine: Machine) -> float | None: ...
