"""What factories have answered, in the terms that decisions are made in.

Machinetypes that aren't ours are left out; vac.scheduling.space judges the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from vac.scheduling.backoff import is_abort, says_no_work
from vac.scheduling.model import TypeReport
from vac.vacquery.messages import FactoryStatus, MachinetypeStatus, Received


def to_reports(
    answers: Mapping[str, Iterable[Received]], machinetypes: Collection[str]
) -> tuple[dict[str, dict[str, TypeReport]], int]:
    """Reports by factory and machinetype, and how many answers were about machinetypes that aren't ours.

    answers: of a poll for machinetypes. machinetypes: the configured ones.
    """
    reports: dict[str, dict[str, TypeReport]] = {}
    unknown = 0
    for factory, received in answers.items():
        mine = reports.setdefault(factory, {})
        for answer in received:
            status = answer.status
            if isinstance(status, MachinetypeStatus) and status.machinetype in machinetypes:
                mine[status.machinetype] = to_report(status)
            else:
                unknown += 1
    return reports, unknown


def to_report(status: MachinetypeStatus) -> TypeReport:
    """One factory's report about one machinetype."""
    aborted = status.shutdown_time if is_abort(status.shutdown_message) else None
    return TypeReport(
        running_machines=status.running_machines,
        running_processors=int(status.running_processors),
        running_hs06=status.running_hs06,
        before_fizzle=status.num_before_fizzle,
        abort_time=None if aborted is None else float(aborted),
        no_work=aborted is not None and says_no_work(status.shutdown_message),
    )


def capacities(answers: Mapping[str, Iterable[Received]]) -> dict[str, float]:
    """HS06 of each factory that has answered a poll for factories."""
    return {factory: status.max_hs06 for factory, status in _factories(answers)}


def without_hs06(answers: Mapping[str, Iterable[Received]]) -> frozenset[str]:
    """Those of them that haven't configured their processors' HS06: each counts as 1."""
    return frozenset(
        factory for factory, status in _factories(answers) if status.max_hs06 == status.max_processors
    )


def _factories(answers: Mapping[str, Iterable[Received]]) -> Iterator[tuple[str, FactoryStatus]]:
    for factory, received in answers.items():
        for answer in received:
            if isinstance(answer.status, FactoryStatus):
                yield factory, answer.status
