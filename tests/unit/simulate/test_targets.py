"""What each type should have where not every node can run every type."""

from __future__ import annotations

import pytest

from vac.simulate.targets import Kind, targets

ALL = frozenset("ab")


@pytest.mark.parametrize(
    ("kinds", "shares", "capacity", "expected"),
    [
        ([Kind(ALL, 100)], {"a": 3, "b": 1}, 100, {"a": 75, "b": 25}),
        ([Kind(ALL, 100)], {"a": 3}, 100, {"a": 100}),
        ([Kind(ALL, 100)], {}, 100, {}),
        ([Kind(frozenset("a"), 90), Kind(ALL, 10)], {"a": 1, "b": 1}, 100, {"a": 90, "b": 10}),
        ([Kind(frozenset("a"), 90), Kind(ALL, 10)], {"a": 19, "b": 1}, 100, {"a": 95, "b": 5}),
        ([Kind(frozenset("a"), 90), Kind(ALL, 10)], {"a": 1, "b": 1}, 50, {"a": 45, "b": 5}),
        ([Kind(frozenset("a"), 50), Kind(frozenset("b"), 50)], {"a": 9, "b": 1}, 100, {"a": 50, "b": 50}),
        (
            [Kind(frozenset("a"), 60), Kind(frozenset("abc"), 40)],
            {"a": 1, "b": 1, "c": 1},
            100,
            {"a": 60, "b": 20, "c": 20},
        ),
    ],
)
def test_shares_within_what_nodes_can_run(
    kinds: list[Kind], shares: dict[str, float], capacity: float, expected: dict[str, float]
) -> None:
    assert targets(kinds, shares, capacity) == pytest.approx(expected)
