"""What all factories say of themselves, added up as vac.scheduling.space.view does, but kept up to date
change by change: a poll in a space of a thousand factories then costs about as much as in a space of ten.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vac.scheduling.model import MOST_YOUNG, TypeReport, TypeTotals
from vac.scheduling.space import beyond_probe, fails, idles

Reports = Mapping[str, TypeReport]

REMEMBERED_SECONDS = 330.0
"""How far back it must be known what a factory said: a silent one's last answer counts for five minutes."""
NOTHING = TypeReport()


@dataclass
class _Sums:
    """One machinetype in the whole space."""

    processors: int = 0
    hs06: float = 0.0
    machines: int = 0
    young: int = 0
    beyond_probes: int = 0
    outlived: int = 0
    aborts: list[tuple[float, str]] = field(default_factory=list)
    """Oldest first."""
    told: TypeTotals | None = None
    """These as they were told last; None: they have changed since."""
    told_aborts: tuple[tuple[tuple[float, str], ...], frozenset[str]] | None = None

    def change(self, name: str, before: TypeReport, after: TypeReport) -> None:
        self.processors += after.running_processors - before.running_processors
        self.hs06 += after.running_hs06 - before.running_hs06
        self.machines += after.running_machines - before.running_machines
        self.young += min(after.before_fizzle, MOST_YOUNG) - min(before.before_fizzle, MOST_YOUNG)
        self.beyond_probes += beyond_probe(after) - beyond_probe(before)
        self.outlived += _outlived(after) - _outlived(before)
        self.told = None
        if before.abort_time != after.abort_time:
            self.told_aborts = None
            if before.abort_time is not None:
                del self.aborts[bisect.bisect_left(self.aborts, (before.abort_time, name))]
            if after.abort_time is not None:
                bisect.insort(self.aborts, (after.abort_time, name))

    def totals(self) -> TypeTotals:
        if self.told_aborts is None:
            self.told_aborts = tuple(reversed(self.aborts)), frozenset(name for _, name in self.aborts)
        if self.told is None:
            self.told = TypeTotals(
                running_processors=self.processors,
                running_hs06=self.hs06,
                running_machines=self.machines,
                before_fizzle=self.young,
                beyond_probes=self.beyond_probes,
                outlived_factories=self.outlived,
                aborts=self.told_aborts[0],
                aborted_factories=self.told_aborts[1],
            )
        return self.told


@dataclass(frozen=True)
class Bulletin:
    """What all factories that can answer say at one moment."""

    time: float
    types: Mapping[str, TypeTotals]
    failing: frozenset[str]
    """Factories on which everything fails, be they many or few."""
    idle: int
    """How many factories run nothing."""
    answering: int
    """How many factories can answer."""


class Board:
    """Where factories post what they say of themselves."""

    def __init__(self, machinetypes: Iterable[str]) -> None:
        self._sums = {name: _Sums() for name in sorted(machinetypes)}
        self._said: dict[str, Reports] = {}
        self._hs06: dict[str, float] = {}
        self._journal: dict[str, deque[tuple[float, Reports]]] = {}
        self._failing: set[str] = set()
        self._idle: set[str] = set()
        self._last: Bulletin | None = None

    def post(self, name: str, reports: Reports | None, now: float) -> None:
        """This factory says this from now on; None: it doesn't answer any more."""
        before, after = self._said.get(name, {}), reports or {}
        for machinetype, sums in self._sums.items():
            was, will_be = before.get(machinetype, NOTHING), after.get(machinetype, NOTHING)
            if was != will_be:
                sums.change(name, was, will_be)
        self._hs06[name] = sum(report.running_hs06 for report in after.values())
        if reports is None:
            self._said.pop(name, None)
        else:
            self._said[name] = reports
        _put(name, self._failing, fails(after))
        _put(name, self._idle, reports is not None and idles(reports))
        journal = self._journal.setdefault(name, deque())
        journal.append((now, after))
        while len(journal) > 1 and journal[1][0] < now - REMEMBERED_SECONDS:
            journal.popleft()
        self._last = None

    def bulletin(self, now: float) -> Bulletin:
        """What is said now."""
        if self._last is None:
            types = {name: sums.totals() for name, sums in self._sums.items()}
            self._last = Bulletin(now, types, frozenset(self._failing), len(self._idle), len(self._said))
        return self._last

    def said(self, name: str) -> Reports:
        """What this factory says now; nothing if it doesn't answer."""
        return self._said.get(name, {})

    def running_hs06(self, names: Iterable[str]) -> float:
        """HS06 that these factories say they run."""
        return sum(self._hs06.get(name, 0.0) for name in names)

    def said_at(self, name: str, time: float) -> Reports:
        """What it said at that time, which is not more than REMEMBERED_SECONDS ago."""
        found: Reports = {}
        for since, reports in self._journal.get(name, ()):
            if since > time:
                break
            found = reports
        return found


def _put(name: str, names: set[str], there: bool) -> None:
    (names.add if there else names.discard)(name)


def corrected(
    bulletin: Bulletin, now_said: Mapping[str, Reports], heard: Mapping[str, Reports | None]
) -> Bulletin:
    """The bulletin as a factory has it that did not hear some others: their last answers take their place.

    now_said is what these would have said, nothing for those that can't answer; heard is by factory what was
    heard last, None if that is too long ago or was never.
    """
    types = dict(bulletin.types)
    for machinetype, totals in bulletin.types.items():
        changes = [
            (name, now_said[name].get(machinetype, NOTHING), (last or {}).get(machinetype, NOTHING))
            for name, last in heard.items()
        ]
        changes = [one for one in changes if one[1] != one[2]]
        if changes:
            types[machinetype] = _changed(totals, changes)
    failing_ones = (bulletin.failing - heard.keys()) | {
        name for name, last in heard.items() if last is not None and fails(last)
    }
    before = [now_said[name] for name in heard if now_said[name]]
    after = [last for last in heard.values() if last is not None]
    idle = bulletin.idle + sum(map(idles, after)) - sum(map(idles, before))
    answering = bulletin.answering + len(after) - len(before)
    return Bulletin(bulletin.time, types, frozenset(failing_ones), idle, answering)


def _changed(totals: TypeTotals, changes: list[tuple[str, TypeReport, TypeReport]]) -> TypeTotals:
    sums = _Sums(
        totals.running_processors,
        totals.running_hs06,
        totals.running_machines,
        totals.before_fizzle,
        totals.beyond_probes,
        totals.outlived_factories,
        list(reversed(totals.aborts)),
        told_aborts=(totals.aborts, totals.aborted_factories),
    )
    for name, before, after in changes:
        sums.change(name, before, after)
    return replace(sums.totals(), running_hs06=max(0.0, sums.hs06))


def _outlived(report: TypeReport) -> bool:
    return report.running_machines > report.before_fizzle
