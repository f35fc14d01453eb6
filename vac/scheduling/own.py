"""What this factory has of each machinetype now: for its own decisions, and to report to its peers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.scheduling.backoff import History, TypeHistory
from vac.scheduling.model import Occupied, TypeReport


@dataclass(frozen=True)
class Own:
    """What this factory has of one machinetype."""

    report: TypeReport
    newest_started: float | None = None
    """Creation time of the newest machine that has started."""
    newest_outlived: float | None = None
    """Creation time of the newest machine that has outlived fizzle_seconds."""
    young_until: float | None = None
    """When the first of the machines before fizzle can have outlived it; None: there are none."""


def survey(
    machinetypes: Mapping[str, Machinetype],
    occupied: Iterable[Occupied],
    history: History,
    hs06_per_processor: float,
    now: float,
) -> dict[str, Own]:
    """What there is of every configured machinetype, and of others that still run."""
    machines: dict[str, list[Occupied]] = {name: [] for name in machinetypes}
    for one in occupied:
        if one.machinetype in machines:
            machines[one.machinetype].append(one)
        else:
            machines[one.machinetype] = [one]
    found = {}
    for name, ones in machines.items():
        fizzle_seconds = machinetypes[name].fizzle_seconds if name in machinetypes else 0
        past = history.get(name)
        if ones or past.abort_time is not None:
            found[name] = _own(ones, past, fizzle_seconds, hs06_per_processor, now)
        else:
            found[name] = _NONE
    return found


def own_reports(
    machinetypes: Mapping[str, Machinetype],
    occupied: Iterable[Occupied],
    history: History,
    hs06_per_processor: float,
    now: float,
) -> dict[str, TypeReport]:
    """What this factory says of itself: the same as survey, as reports."""
    found = survey(machinetypes, occupied, history, hs06_per_processor, now)
    return {name: own.report for name, own in found.items()}


_NONE = Own(TypeReport())


def _own(
    ones: Sequence[Occupied],
    past: TypeHistory,
    fizzle_seconds: float,
    hs06_per_processor: float,
    now: float,
) -> Own:
    processors = young = 0
    newest_started = newest_outlived = -math.inf
    youngest = math.inf
    for one in ones:
        processors += one.processors
        started = one.started_time
        if started is None:
            young += 1
            if now + fizzle_seconds < youngest:
                youngest = now + fizzle_seconds
            continue
        if one.created_time > newest_started:
            newest_started = one.created_time
        if now < started + fizzle_seconds:
            young += 1
            if started + fizzle_seconds < youngest:
                youngest = started + fizzle_seconds
        elif one.created_time > newest_outlived:
            newest_outlived = one.created_time
    hs06 = processors * hs06_per_processor
    report = TypeReport(len(ones), processors, hs06, young, past.abort_time, past.abort_says_no_work)
    return Own(report, _known(newest_started), _known(newest_outlived), _known(youngest))


def _known(time: float) -> float | None:
    return time if math.isfinite(time) else None
