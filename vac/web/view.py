"""What metrics and the status page are made of, and how texts of others may appear in them.

Names and texts come from pipes' documents, machines and engines: whatever they hold, they end up on one line, of
limited length, and without what may be secret in a URL. Escaping is left to the libraries that write the formats.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vac.machines.layout import StateDir
from vac.vacquery.responder import read_counters
from vac.vacquery.snapshot import Snapshot, SnapshotBuilder

LONGEST_NAME = 120
LONGEST_TEXT = 200
STALE_SECONDS = 180.0
"""A factory that hasn't reported for so long isn't at work."""
ROLES = ("factory", "responder", "metadata", "mjf", "page")
_USER = re.compile(r"(://)[^/\s@]*@")
_QUERY = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")


@dataclass(frozen=True)
class View:
    """All there is to show at one moment."""

    now: float
    """Unix seconds."""
    snapshot: Snapshot | None
    """None: no factory has reported yet."""
    heartbeats: Mapping[str, float]
    """By process, Unix seconds."""
    counters: Mapping[str, int]
    """The responder's."""


class Viewer:
    """Looks at a state_dir; what hasn't changed since the last time isn't read again."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._builder = SnapshotBuilder(state, "vacd-page")

    def view(self, now: float) -> View:
        """The factory as it is now. What can't be read is as if it weren't there."""
        try:
            snapshot = self._builder.build(now)
        except OSError:
            snapshot = None
        return View(now, snapshot, self._heartbeats(), read_counters(self._state))

    def _heartbeats(self) -> dict[str, float]:
        found = {}
        for role in ROLES:
            try:
                found[role] = self._state.heartbeat(role).stat().st_mtime
            except OSError:
                continue
        return found


def shares(snapshot: Snapshot) -> tuple[dict[str, float], dict[str, float]]:
    """By machinetype its target share and its share of what runs here, both from 0 to 1."""
    wanted = {one.name: max(0.0, one.target_share) for one in snapshot.status.machinetypes}
    running = {one.machinetype: one.running_hs06 for one in snapshot.machinetypes}
    return _parts(wanted), _parts(running)


def _parts(numbers: dict[str, float]) -> dict[str, float]:
    whole = sum(numbers.values())
    return {key: number / whole if whole else 0.0 for key, number in numbers.items()}


def shown(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text for people."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[: 10 * longest])
    plain = _QUERY.sub(r"\1?…", _USER.sub(r"\1***@", plain))
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def name(text: str) -> str:
    """A name, short or made so in a way that keeps different ones different."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST_NAME])
    if plain == text:
        return plain
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain[: LONGEST_NAME - 17]}~{digest[:16]}"
