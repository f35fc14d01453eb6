"""Openings for machines, and superslots that end together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.one_factory import machinetype
from vac.config.machinetype import Machinetype
from vac.scheduling.model import Occupied
from vac.scheduling.superslots import Kept, Opening, Openings, find_openings, fits, size

NOW = 1_000_000.0
SMALL = machinetype("small", min_wallclock_seconds=600)
LARGE = machinetype("large", min_processors=4, max_processors=8, min_wallclock_seconds=600)
WHOLE = machinetype("whole", min_processors=8, max_processors=8, min_wallclock_seconds=86400)
LONG = machinetype("long", min_wallclock_seconds=7200)


def running(processors: int, left: float) -> Occupied:
    return Occupied("x", processors, NOW - 100, NOW - 100, NOW + left)


@pytest.mark.parametrize(
    ("occupied", "free", "total", "openings"),
    [
        ([], 16, 16, [Opening(8)]),
        ([], 3, 16, [Opening(3)]),
        ([running(8, 5000)], 8, 16, [Opening(8)]),
        ([running(5, 5000)], 11, 16, [Opening(3, int(NOW + 5000)), Opening(8)]),
        ([running(5, 5000)], 2, 16, [Opening(2, int(NOW + 5000))]),
        ([running(5, 5000), running(8, 5000)], 11, 24, [Opening(3, int(NOW + 5000)), Opening(8)]),
        (
            [running(5, 5000), running(7, 900)],
            4,
            16,
            [Opening(1, int(NOW + 900)), Opening(3, int(NOW + 5000))],
        ),
        ([running(5, 599)], 11, 16, [Opening(8)]),
        ([running(5, -130)], 11, 16, [Opening(8)]),
        ([running(5, 5000.2), running(3, 5000.9)], 8, 16, [Opening(8)]),
        ([running(5, 5000)], 8, 13, [Opening(8)]),
        ([running(4, 5000)], 9, 13, [Opening(4, int(NOW + 5000)), Opening(5)]),
    ],
)
def test_what_superslots_lack_is_reserved_from_the_earliest(
    occupied: list[Occupied], free: int, total: int, openings: list[Opening]
) -> None:
    assert list(find_openings(occupied, free, total, 8, [SMALL, LARGE], NOW).openings) == openings


def find(left: float, waiting: str | None, keep_seconds: float, types: list[Machinetype]) -> Openings:
    return find_openings([running(5, left)], 3, 8, 8, types, NOW, waiting, keep_seconds)


@pytest.mark.parametrize(
    ("left", "waiting", "keep_seconds", "kept"),
    [
        (7100, "whole", 7200, True),
        (7100, "whole", 7000, False),
        (7100, None, 7200, False),
        (-100, "whole", 7200, True),
        (-100, None, 0, True),
        (100, None, 0, True),
        (-120, "whole", 7200, False),
    ],
)
def test_what_no_type_can_join_is_kept_for_one_that_needs_more(
    left: float, waiting: str | None, keep_seconds: float, kept: bool
) -> None:
    found = find(left, waiting, keep_seconds, [LONG, WHOLE])
    assert found.kept == (Kept(3, int(NOW + left)) if kept else None)
    opening = found.openings[-1]
    assert fits(LONG, opening, NOW) is not kept
    assert not fits(WHOLE, opening, NOW), "three are too few"
    assert find(left, None, keep_seconds, [LONG]).kept is None, "no type needs more"


def test_kept_processors_go_to_the_waiting_type_when_they_are_enough() -> None:
    occupied = [running(5, 7100), running(7, 7000)]
    found = find_openings(occupied, 12, 24, 8, [LONG, WHOLE], NOW, "whole", 7200)
    assert found.openings == (Opening(8, None, 0, "whole"),)
    found = find_openings(occupied, 7, 24, 8, [LONG, WHOLE, LARGE], NOW, "whole", 7200)
    assert found.openings[-1] == Opening(3, None, 4, "whole")
    assert not fits(WHOLE, found.openings[-1], NOW)
    assert not fits(LARGE, found.openings[-1], NOW), "the kept ones are for another type"
    found = find_openings([running(4, 7100), running(4, 7000)], 8, 16, 8, [LONG, WHOLE], NOW, "whole", 7200)
    assert found.openings == (Opening(0, None, 8, "whole"),)
    assert size(WHOLE, found.openings[0]) == 8 and not fits(LONG, found.openings[0], NOW)


def test_giving_up_a_superslot_is_told_in_the_same_words_each_time() -> None:
    notes = [find_openings([running(5, 599)], 11, 16, 8, [SMALL], NOW + age).notes for age in (0, 10)]
    assert notes[0] == notes[1] and "lacks 3 processors" in notes[0][0]


@given(
    st.lists(
        st.builds(running, st.integers(1, 8), st.sampled_from([-5.0, 100, 1000, 5000, 86400])), max_size=12
    ),
    st.integers(1, 40),
    st.sampled_from([1, 4, 8]),
    st.sampled_from([None, "whole", "large"]),
    st.sampled_from([0.0, 7200.0]),
)
def test_all_that_is_free_is_offered_or_kept(
    occupied: list[Occupied], free: int, per_superslot: int, waiting: str | None, keep_seconds: float
) -> None:
    total = free + sum(one.processors for one in occupied)
    types = [SMALL, LARGE, WHOLE]
    found = find_openings(occupied, free, total, per_superslot, types, NOW, waiting, keep_seconds)
    joining = sum(one.processors for one in found.openings if one.end is not None)
    kept = found.kept.processors if found.kept else 0
    assert joining + kept <= free
    assert all(0 < one.processors + one.kept <= per_superslot for one in found.openings)
    assert joining == free or found.openings[-1].end is None
    for one in found.openings:
        if one.end is not None:
            assert any(fits(kind, one, NOW) for kind in types)
    assert found.next_time is None or found.next_time > NOW


@pytest.mark.parametrize(
    ("opening", "fitting"),
    [
        (Opening(8), {"small": 1, "large": 8}),
        (Opening(5), {"small": 1, "large": 5}),
        (Opening(3), {"small": 1}),
        (Opening(8, int(NOW + 600)), {"small": 1, "large": 8}),
        (Opening(8, int(NOW + 599)), {}),
        (Opening(8, int(NOW + 86401)), {}),
        (Opening(1, None, 7, "large"), {"small": 1, "large": 8}),
        (Opening(1, None, 7, None), {"small": 1}),
    ],
)
def test_what_fits_an_opening(opening: Opening, fitting: dict[str, int]) -> None:
    assert {one.name: size(one, opening) for one in (SMALL, LARGE) if fits(one, opening, NOW)} == fitting


def test_nothing_joins_in_the_last_ten_minutes() -> None:
    whenever, brief = (
        machinetype("whenever", min_wallclock_seconds=0),
        machinetype("brief", min_wallclock_seconds=0, max_wallclock_seconds=300),
    )
    assert fits(whenever, Opening(1, int(NOW + 600)), NOW)
    assert not fits(whenever, Opening(1, int(NOW + 599)), NOW)
    assert fits(brief, Opening(1, int(NOW + 300)), NOW)


def test_machines_of_one_moment_share_a_superslot() -> None:
    assert fits(WHOLE, Opening(8, int(NOW + 0.7 + 86400)), NOW + 0.7)
    assert not fits(WHOLE, Opening(8, int(NOW + 86400)), NOW + 1)
