"""What each machinetype should have of a space in which not every node can run every type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Nodes that have the same machinetypes configured."""

    machinetypes: frozenset[str]
    hs06: float


def targets(kinds: Sequence[Kind], shares: Mapping[str, float], capacity: float) -> dict[str, float]:
    """HS06 by type: by share, but no set of types more than the nodes that can run any of them.

    Where nodes limit a set of types, it gets all of these nodes, and the others divide the rest (max-min
    fair). The sets that are looked at are those of the types that only some kinds of nodes can run. capacity
    may be less than that of all nodes; what is missing is taken from each kind alike.
    """
    total = sum(kind.hs06 for kind in kinds)
    scale = capacity / total if total else 0.0
    left = dict(shares)
    found: dict[str, float] = {}
    while left:
        tightest, level = _tightest(kinds, left, found, scale)
        for name in tightest:
            found[name] = left.pop(name) * level
    return found


def _tightest(
    kinds: Sequence[Kind], left: Mapping[str, float], found: Mapping[str, float], scale: float
) -> tuple[frozenset[str], float]:
    """The set of types with the least HS06 per share."""
    best: tuple[float, frozenset[str]] | None = None
    for names in _sets(kinds, left):
        share = sum(left[name] for name in names)
        usable = {kind for kind in kinds if kind.machinetypes & names}
        hs06 = scale * sum(kind.hs06 for kind in usable)
        hs06 -= sum(
            hs06_of
            for name, hs06_of in found.items()
            if all(kind in usable for kind in kinds if name in kind.machinetypes)
        )
        level = max(0.0, hs06) / share
        if best is None or level < best[0]:
            best = level, names
    assert best is not None
    return best[1], best[0]


def _sets(kinds: Sequence[Kind], left: Mapping[str, float]) -> set[frozenset[str]]:
    where = {name: frozenset(kind for kind in kinds if name in kind.machinetypes) for name in left}
    places = set(where.values())
    places |= {one | other for one in places for other in places}
    return {names for place in places if (names := frozenset(name for name in left if where[name] <= place))}
