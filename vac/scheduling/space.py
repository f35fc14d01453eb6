"""From what each factory says of itself to what is known of the space.

Reports come in validated field by field (types, not NaN, not negative). What may still be wrong in one of them,
such as times in the future or absurd numbers, is kept from doing harm beyond that factory here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vac.scheduling.model import MOST_YOUNG, SpaceView, TypeReport, TypeTotals

Reports = Mapping[str, TypeReport]
"""What one factory says, by machinetype."""

CLOCK_SECONDS = 300
"""How far a factory's clock may be ahead of ours without its abort times being absurd."""
MOST_CAPACITY = 32
"""A factory that claims more than this times the median capacity is taken for one of median capacity: the nodes of
one space may have 8 processors or 256."""
FAILING_PART = 4
"""Factories on which everything fails are left out of the aborts if they are at most one in so many, and those that
run nothing too: in a space that is empty, having nothing that has outlived fizzle_seconds is no sign of a fault."""


def view(
    factory: str,
    factories: Sequence[str],
    reports: Mapping[str, Reports],
    capacities: Mapping[str, float],
    now: float,
    silent: Iterable[str] = (),
) -> SpaceView:
    """Add up the space: done once per poll, so that decisions cost the same in a space of any size.

    Reports are by factory, this one's own included; capacities are max_hs06 by factory, as far as known: what a
    factory without one runs stands in. Factories that aren't configured are left out.
    """
    names = tuple(dict.fromkeys((*factories, factory)))
    capacity_hs06 = believed_capacities(names, reports, capacities)
    believed = {name: _believed(reports[name], capacity_hs06[name], now) for name in names if name in reports}
    failing = _failing(believed)
    types = {machinetype for said in believed.values() for machinetype in said}
    return SpaceView(
        factory=factory,
        factories=names,
        capacity_hs06=sum(capacity_hs06.values()),
        types={machinetype: _totals(machinetype, believed) for machinetype in sorted(types)},
        own=believed.get(factory, {}),
        failing=failing,
        silent=tuple(silent),
    )


def beyond_probe(report: TypeReport) -> int:
    """What one factory adds to TypeTotals.beyond_probes."""
    return max(0, min(report.before_fizzle, MOST_YOUNG) - 1)


def _believed(said: Reports, capacity_hs06: float, now: float) -> dict[str, TypeReport]:
    """One factory's reports, with no abort in the future, and not running more than it can."""
    return {
        machinetype: _not_later(report, now) for machinetype, report in not_above(capacity_hs06, said).items()
    }


def believed_capacities(
    names: Sequence[str], reports: Mapping[str, Reports], capacities: Mapping[str, float]
) -> dict[str, float]:
    """HS06 that these factories have, as far as they have said so; what they run if they haven't said that.

    Who says absurdly much is taken for an ordinary factory.
    """
    known = [capacities[name] for name in names if name in capacities]
    median = statistics.median_low(known) if known else 0.0
    most = MOST_CAPACITY * median if median else float("inf")
    claimed = {
        name: capacities[name] if name in capacities else running_hs06(reports[name])
        for name in names
        if name in capacities or name in reports
    }
    return {name: median if claim > most else claim for name, claim in claimed.items()}


def running_hs06(said: Reports) -> float:
    """What a factory says it runs of all types."""
    return sum(report.running_hs06 for report in said.values())


def not_above(capacity_hs06: float, said: Reports) -> Reports:
    """One factory's reports, scaled down if it says it runs more than it can."""
    running = running_hs06(said)
    if running <= capacity_hs06:
        return said
    scale = capacity_hs06 / running
    return {
        machinetype: replace(report, running_hs06=report.running_hs06 * scale)
        for machinetype, report in said.items()
    }


def _not_later(report: TypeReport, now: float) -> TypeReport:
    time = report.abort_time
    if time is None or time <= now:
        return report
    return replace(report, abort_time=None if time > now + CLOCK_SECONDS else now)


def _failing(believed: Mapping[str, Reports]) -> frozenset[str]:
    """Factories on which everything fails, if they are few."""
    failing = frozenset(name for name, said in believed.items() if fails(said))
    return the_odd_ones(failing, sum(map(idles, believed.values())), len(believed))


def fails(said: Reports) -> bool:
    """Whether a factory that says this runs nothing that has outlived fizzle_seconds, but has aborts for which
    lack of work isn't the reason given."""
    aborted = False
    for report in said.values():
        if report.running_machines > report.before_fizzle:
            return False
        aborted = aborted or (report.abort_time is not None and not report.no_work)
    return aborted


def idles(said: Reports) -> bool:
    """Whether a factory that says this runs nothing."""
    return not any(report.running_machines for report in said.values())


def the_odd_ones(failing: frozenset[str], idle: int, answering: int) -> frozenset[str]:
    """The failing ones of so many factories that answer, of which so many are idle; none if that's no exception."""
    return failing if max(len(failing), idle) * FAILING_PART <= answering else frozenset()


def _totals(machinetype: str, believed: Mapping[str, Reports]) -> TypeTotals:
    said = [(name, reports[machinetype]) for name, reports in believed.items() if machinetype in reports]
    aborts = [(report.abort_time, name) for name, report in said if report.abort_time is not None]
    return TypeTotals(
        running_processors=sum(report.running_processors for _, report in said),
        running_hs06=sum(report.running_hs06 for _, report in said),
        running_machines=sum(report.running_machines for _, report in said),
        before_fizzle=sum(min(report.before_fizzle, MOST_YOUNG) for _, report in said),
        beyond_probes=sum(beyond_probe(report) for _, report in said),
        outlived_factories=sum(report.running_machines > report.before_fizzle for _, report in said),
        aborts=tuple(sorted(aborts, reverse=True)),
        aborted_factories=frozenset(name for _, name in aborts),
    )
