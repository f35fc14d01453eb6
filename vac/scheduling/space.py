"""The space as one factory knows it: the sum of the factories' reports, and how old these may be.

Reports come in validated field by field (types, not NaN, not negative). Other wrong numbers, such as times in the
future or absurd capacities, are kept from doing harm beyond the factory that sent them.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vac.config.machinetype import Machinetype
from vac.scheduling.backoff import History
from vac.scheduling.model import NO_REPORT, Occupied, Own, SpaceView, TypeReport, TypeTotals

FRESH_SECONDS = 30.0
"""Age up to which a view of the space is good enough to decide on."""
RENEW_SECONDS_PER_FACTORY = 0.03
"""Age, times the number of factories, from which a decision has peers asked again without waiting for them. So each
factory is asked by others 33 times a second at most, and in small spaces corrections aren't made twice."""
LEAST_RENEW_SECONDS = 1.0
SILENT_SECONDS = 300.0
"""Age up to which a silent peer's last answer counts."""
CAPACITY_SECONDS = 600.0
"""Pause between questions for capacities."""
REMEMBERED_CAPACITY_SECONDS = 3600.0
"""Age up to which a silent factory's capacity counts."""
CYCLE_SECONDS = 60.0
"""Longest pause between decisions, since load and disk change without an event."""

CLOCK_SECONDS = 300
"""Most that a factory's clock may be ahead of ours without its abort times being ignored."""
MOST_CAPACITY = 32
"""A factory that claims more than this times the median capacity is taken for one of median capacity: the nodes of
one space may have 8 processors or 256."""
FAILING_PART = 4
"""Factories on which everything fails are left out of the aborts if they are at most one in so many, and those that
run nothing too: in a space that is empty, having nothing that has outlived fizzle_seconds is no sign of a fault."""

Reports = Mapping[str, TypeReport]
"""Reports of one factory by machinetype."""


def is_fresh(age: float | None) -> bool:
    """Return True if a view of this age in seconds is good enough to decide on; None: there is none yet."""
    return age is not None and 0 <= age < FRESH_SECONDS


def is_due(age: float | None, factories: int) -> bool:
    """Return True if peers are to be asked again at a decision on a view of this age, in a space of this size."""
    renew = max(LEAST_RENEW_SECONDS, RENEW_SECONDS_PER_FACTORY * factories)
    return age is None or not 0 <= age < renew


# This factory's own part


def survey(
    machinetypes: Mapping[str, Machinetype],
    occupied: Iterable[Occupied],
    history: History,
    hs06_per_processor: float,
    now: float,
) -> dict[str, Own]:
    """Return what this factory has of every configured machinetype, and of others that still run."""
    machines: dict[str, list[Occupied]] = {name: [] for name in machinetypes}
    for one in occupied:
        machines.setdefault(one.machinetype, []).append(one)
    found = {}
    for name, ones in machines.items():
        past = history.get(name)
        fizzle_seconds = machinetypes[name].fizzle_seconds if name in machinetypes else 0
        started, outlived, fizzle_times = [], [], []
        for one in ones:
            if one.started_time is not None:
                started.append(one.created_time)
            fizzle_time = (now if one.started_time is None else one.started_time) + fizzle_seconds
            if one.started_time is None or now < fizzle_time:
                fizzle_times.append(fizzle_time)
            else:
                outlived.append(one.created_time)
        processors = sum([one.processors for one in ones])
        hs06 = processors * hs06_per_processor
        report = TypeReport(
            len(ones), processors, hs06, len(fizzle_times), past.abort_time, past.abort_says_no_work
        )
        newest, proven = max(started, default=None), max(outlived, default=None)
        found[name] = Own(report, newest, proven, min(fizzle_times, default=None))
    return found


def own_reports(
    machinetypes: Mapping[str, Machinetype],
    occupied: Iterable[Occupied],
    history: History,
    hs06_per_processor: float,
    now: float,
) -> dict[str, TypeReport]:
    """Return the same as survey in the form of reports."""
    found = survey(machinetypes, occupied, history, hs06_per_processor, now)
    return {name: own.report for name, own in found.items()}


# The sum of all


@dataclass
class _Sums:
    """One machinetype in the whole space; the last result is kept until something changes."""

    hs06: float = 0.0
    before_fizzle: int = 0
    beyond_probes: int = 0
    outlived: int = 0
    aborts: list[tuple[float, str]] = field(default_factory=list)
    """Oldest first."""
    totals: TypeTotals | None = None

    def change(self, factory: str, before: TypeReport, after: TypeReport) -> None:
        for sign, report in ((1, after), (-1, before)):
            self.hs06 = max(0.0, self.hs06 + sign * report.running_hs06)
            self.before_fizzle += sign * report.counted_before_fizzle
            self.beyond_probes += sign * report.beyond_probe
            self.outlived += sign * report.outlived
        self.totals = None
        if before.abort_time != after.abort_time:
            if before.abort_time is not None:
                del self.aborts[bisect.bisect_left(self.aborts, (before.abort_time, factory))]
            if after.abort_time is not None:
                bisect.insort(self.aborts, (after.abort_time, factory))

    def result(self) -> TypeTotals:
        if self.totals is None:
            aborts = tuple(reversed(self.aborts))
            self.totals = TypeTotals(self.hs06, self.before_fizzle, self.beyond_probes, self.outlived, aborts)
        return self.totals


class SpaceTotals:
    """The sum of all factories' reports, kept up to date report by report."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._failing: set[str] = set()
        self._idle = 0
        self._answering = 0

    def change(self, factory: str, before: Reports | None, after: Reports | None) -> None:
        """Replace one factory's reports, None for one that doesn't answer, by new ones."""
        was, will_be = before or {}, after or {}
        for name in {**was, **will_be} if was else will_be:
            old, new = was.get(name, NO_REPORT), will_be.get(name, NO_REPORT)
            if name not in self._sums:
                self._sums[name] = _Sums()
            if old != new:
                self._sums[name].change(factory, old, new)
        self._answering += (after is not None) - (before is not None)
        self._idle += (after is not None and _idles(after)) - (before is not None and _idles(before))
        (self._failing.add if _fails(will_be) else self._failing.discard)(factory)

    def copy(self) -> SpaceTotals:
        """Return an independent copy."""
        other = SpaceTotals()
        other._sums = {name: replace(sums, aborts=list(sums.aborts)) for name, sums in self._sums.items()}
        other._failing = set(self._failing)
        other._idle, other._answering = self._idle, self._answering
        return other

    def view(
        self,
        factory: str,
        factories: tuple[str, ...],
        capacity_hs06: float,
        own: Reports,
        silent: Iterable[str] = (),
    ) -> SpaceView:
        """Return the space as this factory sees it; own is its part of the sum."""
        exceptional = max(len(self._failing), self._idle) * FAILING_PART <= self._answering
        return SpaceView(
            factory=factory,
            factories=factories,
            capacity_hs06=capacity_hs06,
            types={name: self._sums[name].result() for name in sorted(self._sums)},
            own=own,
            failing=frozenset(self._failing) if exceptional else frozenset(),
            silent=tuple(silent),
        )


def view(
    factory: str,
    factories: Sequence[str],
    reports: Mapping[str, Reports],
    capacities: Mapping[str, float],
    now: float,
    silent: Iterable[str] = (),
) -> SpaceView:
    """Add up the space: done once per poll, so that decisions cost the same in a space of any size.

    Reports are by factory, this one's own included; capacities are max_hs06 by factory, as far as known: the HS06 that
    a factory without one runs stands in. Factories that aren't configured are left out.
    """
    names = tuple(dict.fromkeys((*factories, factory)))
    capacity_hs06 = plausible_capacities(names, reports, capacities)
    totals = SpaceTotals()
    own: Reports = {}
    for name in names:
        if name in reports:
            plausible = capped_reports(capacity_hs06[name], reports[name])
            plausible = {machinetype: _not_later(one, now) for machinetype, one in plausible.items()}
            totals.change(name, None, plausible)
            if name == factory:
                own = plausible
    return totals.view(factory, names, sum(capacity_hs06.values()), own, silent)


def plausible_capacities(
    names: Sequence[str], reports: Mapping[str, Reports], capacities: Mapping[str, float]
) -> dict[str, float]:
    """Return the HS06 of these factories as far as they have told it, else what they run.

    A factory with an absurdly high claim is taken for an ordinary one.
    """
    known = [capacities[name] for name in names if name in capacities]
    median = statistics.median_low(known) if known else 0.0
    most = MOST_CAPACITY * median if median else float("inf")
    claimed = {
        name: capacities[name] if name in capacities else _running_hs06(reports[name])
        for name in names
        if name in capacities or name in reports
    }
    return {name: median if claim > most else claim for name, claim in claimed.items()}


def capped_reports(capacity_hs06: float, said: Reports) -> Reports:
    """Return one factory's reports, scaled down if it claims to run more than it can."""
    running = _running_hs06(said)
    if running <= capacity_hs06:
        return said
    scale = capacity_hs06 / running
    return {name: replace(one, running_hs06=one.running_hs06 * scale) for name, one in said.items()}


def _running_hs06(said: Reports) -> float:
    return sum([report.running_hs06 for report in said.values()])


def _not_later(report: TypeReport, now: float) -> TypeReport:
    """Return the report without an abort in the future."""
    time = report.abort_time
    if time is None or time <= now:
        return report
    return replace(report, abort_time=None if time > now + CLOCK_SECONDS else now)


def _fails(said: Reports) -> bool:
    """Return True for a factory without a machine that has outlived fizzle_seconds, but with aborts for other reasons
    than a lack of work."""
    aborted = any(one.abort_time is not None and not one.no_work for one in said.values())
    return aborted and not any(one.outlived for one in said.values())


def _idles(said: Reports) -> bool:
    return not any(report.running_machines for report in said.values())
