"""Answers as decisions see them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vacquery.recorded import FACTORY, NOW, SPACE, STARTED, cookies, datagrams
from vac.scheduling.model import TypeReport
from vac.vacquery.messages import Kind, MachinetypeStatus, Received, decode_answer
from vac.vacquery.poll import capacities, to_report, to_reports

COMMON: dict[str, Any] = {"space": SPACE, "site": "", "factory": FACTORY, "machinetype": "t"}


def recorded(kind: Kind) -> dict[str, tuple[Received, ...]]:
    found = [decode_answer(data, kind, SPACE, cookies(kind), NOW) for data in datagrams(kind, "response")]
    return {FACTORY: tuple(one for one in found if isinstance(one, Received))}


def test_recorded_answers_become_reports() -> None:
    reports, unknown = to_reports(recorded(Kind.MACHINETYPES), {"type-00", "type-03", "type-06"})
    assert reports == {
        FACTORY: {
            "type-00": TypeReport(1, 1, 12.5, 1, float(STARTED), no_work=True),
            "type-03": TypeReport(1, 1, 12.5, 1, None),
            "type-06": TypeReport(0, 0, 0.0, 0, float(STARTED), no_work=True),
        }
    }
    assert unknown == 7


def test_capacity_is_a_factorys_max_hs06() -> None:
    assert capacities(recorded(Kind.FACTORIES)) == {FACTORY: 100.0}


@pytest.mark.parametrize(
    ("message", "time", "abort"),
    [
        (None, None, None),
        (None, NOW, None),
        ("200 Success", NOW - 5, None),
        ("300 No work", NOW - 5, NOW - 5),
        ("700 Broken", NOW - 5, NOW - 5),
        ("300 No work", None, None),
        ("no code", NOW - 5, None),
    ],
)
def test_an_abort_counts_from_its_message(
    message: str | None, time: float | None, abort: float | None
) -> None:
    when = None if time is None else int(time)
    report = to_report(MachinetypeStatus(**COMMON, shutdown_message=message, shutdown_time=when))
    assert report.abort_time == (None if abort is None else pytest.approx(abort, abs=1))
