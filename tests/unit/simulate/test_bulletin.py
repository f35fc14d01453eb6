"""The board's totals are those that the daemon's own code would add up."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from vac.scheduling.model import SpaceView, TypeReport, TypeTotals
from vac.scheduling.space import the_odd_ones, view
from vac.simulate.bulletin import Board, Bulletin, Reports, corrected

NOW = 1.6e9
TYPES = ("atlas", "lhcb")
NAMES = tuple(f"vac-{number}" for number in range(6))


@st.composite
def type_reports(draw: st.DrawFn) -> TypeReport:
    machines = draw(st.integers(0, 30))
    return TypeReport(
        running_machines=machines,
        running_processors=machines,
        running_hs06=8.0 * machines,
        before_fizzle=draw(st.integers(0, machines)),
        abort_time=draw(st.none() | st.integers(1, 50).map(lambda ago: NOW - ago)),
        no_work=draw(st.booleans()),
    )


saying = st.dictionaries(st.sampled_from(TYPES), type_reports(), min_size=1)
posts = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | saying), max_size=20)


def board_with(said: list[tuple[str, dict[str, TypeReport] | None]]) -> tuple[Board, dict[str, Reports]]:
    board, last = Board(TYPES), dict[str, Reports]()
    for name, reports in said:
        board.post(name, reports, NOW)
        last.pop(name, None)
        if reports is not None:
            last[name] = reports
    return board, last


def assert_same(bulletin: Bulletin, reports: Mapping[str, Reports]) -> None:
    right: SpaceView = view(NAMES[0], NAMES, reports, {}, NOW)
    assert {name: one for name, one in bulletin.types.items() if one != TypeTotals()} == {
        name: one for name, one in right.types.items() if one != TypeTotals()
    }
    assert the_odd_ones(bulletin.failing, bulletin.idle, bulletin.answering) == right.failing


@given(posts)
def test_totals_are_those_of_a_view(said: list[tuple[str, dict[str, TypeReport] | None]]) -> None:
    board, last = board_with(said)
    assert_same(board.bulletin(NOW), last)


@given(posts, st.dictionaries(st.sampled_from(NAMES), st.none() | saying))
def test_last_answers_take_the_place_of_those_not_heard(
    said: list[tuple[str, dict[str, TypeReport] | None]], heard: dict[str, dict[str, TypeReport] | None]
) -> None:
    board, last = board_with(said)
    before = board.bulletin(NOW)
    found = corrected(before, {name: board.said(name) for name in heard}, heard)
    for name, reports in heard.items():
        last.pop(name, None)
        if reports is not None:
            last[name] = reports
    assert_same(found, last)
    assert board.bulletin(NOW) == before


def test_what_was_said_earlier_is_remembered() -> None:
    board = Board(TYPES)
    for ago in (400.0, 350.0, 200.0, 100.0):
        board.post("vac-0", {"atlas": TypeReport(running_machines=int(ago))}, NOW - ago)
    assert board.said_at("vac-0", NOW - 150)["atlas"].running_machines == 200
    assert board.said_at("vac-0", NOW)["atlas"].running_machines == 100
    assert board.said_at("vac-1", NOW) == {}
