"""What this factory has of each machinetype now: for its own decisions, and to report to its peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.scheduling.backoff import History
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
        machines.setdefault(one.machinetype, []).append(one)
    found = {}
    for name, ones in machines.items():
        fizzle_seconds = machinetypes[name].fizzle_seconds if name in machinetypes else 0
        abort_time = history.get(name).abort_time
        if ones or abort_time is not None:
            found[name] = _own(ones, abort_time, fizzle_seconds, hs06_per_processor, now)
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
    abort_time: float | None,
    fizzle_seconds: float,
    hs06_per_processor: float,
    now: float,
) -> Own:
    processors = young = 0
    newest_started = newest_outlived = young_until = None
    for one in ones:
        processors += one.processors
        outlives = (now if one.started_time is None else one.started_time) + fizzle_seconds
        if one.started_time is not None and (newest_started is None or one.created_time > newest_started):
            newest_started = one.created_time
        if one.started_time is None or now < outlives:
            young += 1
            if young_until is None or outlives < young_until:
                young_until = outlives
        elif newest_outlived is None or one.created_time > newest_outlived:
            newest_outlived = one.created_time
    report = TypeReport(len(ones), processors, processors * hs06_per_processor, young, abort_time)
    return Own(report, newest_started, newest_outlived, young_until)
