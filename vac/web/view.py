"""Source of metrics and status page: state_dir, and the form in which names and texts of others appear.

They come from pipes, machines and engines: they are shown on one line, shortened, and without secrets of URLs. The
libraries that write the formats escape them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from vac import text
from vac.machines.layout import StateDir, disk_problem
from vac.roles import ROLES, read_restarts
from vac.vacquery.responder import read_counters
from vac.vacquery.snapshot import Snapshot, SnapshotBuilder

LONGEST_NAME = 120
LONGEST_TEXT = 200


@dataclass(frozen=True)
class View:
    """The factory at one moment."""

    now: float
    """Unix seconds."""
    snapshot: Snapshot | None
    """None before the factory's first report."""
    heartbeats: Mapping[str, float]
    """By process, Unix seconds."""
    counters: Mapping[str, int]
    """Of the responder."""
    restarts: Mapping[str, int] = field(default_factory=dict)
    """By process, since the start of vacd."""
    disk_problem: str | None = None
    """Reason if state_dir can't be written; None if it can."""


def look(state: StateDir, builder: SnapshotBuilder, now: float) -> View:
    """Return the factory's present state. Unreadable parts are missing from it."""
    try:
        snapshot = builder.build(now)
    except OSError:
        snapshot = None
    times = {role.name: state.heartbeat_time(role.name) for role in ROLES}
    return View(
        now,
        snapshot,
        {role: time for role, time in times.items() if time is not None},
        read_counters(state),
        {role: one.count for role, one in read_restarts(state.root).items()},
        disk_problem(state.root),
    )


def shares(snapshot: Snapshot) -> tuple[dict[str, float], dict[str, float]]:
    """Return target shares and shares of the running HS06 by machinetype, each from 0 to 1."""
    wanted = {one.name: max(0.0, one.target_share) for one in snapshot.status.machinetypes}
    running = {one.machinetype: one.running_hs06 for one in snapshot.machinetypes}
    return _parts(wanted), _parts(running)


def _parts(numbers: dict[str, float]) -> dict[str, float]:
    total = sum(numbers.values())
    return {key: number / total if total else 0.0 for key, number in numbers.items()}


def shown(content: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text for people."""
    return text.untrusted(content, longest)


def name(content: str) -> str:
    """Return a short printable name; different names stay different."""
    plain = text.printable(content[:LONGEST_NAME])
    if plain == content:
        return plain
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain[: LONGEST_NAME - 17]}~{digest[:16]}"
