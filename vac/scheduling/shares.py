"""Which machinetype comes next.

By deficit: the machinegroup, then the machinetype within it, is drawn with weights that are what it lacks of its
share, so that the draws of many factories at one time add up to the target instead of overshooting it. Classic:
the lowest running ÷ share first, by group and then by type.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

NEGLIGIBLE = 1e-6
"""Part of the capacity below which a deficit is rounding."""


@dataclass(frozen=True)
class Candidate:
    """A machinetype of which this factory could create a machine now."""

    machinetype: str
    machinegroup: str
    target_share: float
    running_hs06: float
    """In the whole space."""
    size: int = 1
    """How large its next machine would be, relative to those of the others."""


@dataclass(frozen=True)
class Turn:
    """A candidate's place in the order."""

    machinetype: str
    lacking_hs06: float
    """What it and its group lack of their share; 0: nothing."""


Order = Callable[[Sequence[Candidate], float, random.Random], Iterator[Turn]]


def deficits(candidates: Sequence[Candidate], capacity_hs06: float) -> dict[str, float]:
    """What each candidate lacks of its share of a capacity (that of the space less what other types run), in HS06.

    Negative: it runs more than its share.
    """
    shares = sum(one.target_share for one in candidates)
    return {
        one.machinetype: one.target_share / shares * capacity_hs06 - one.running_hs06 for one in candidates
    }


def deficit_order(
    candidates: Sequence[Candidate], capacity_hs06: float, rng: random.Random
) -> Iterator[Turn]:
    """All candidates: drawn one after the other by deficit, then the others by running ÷ share.

    capacity_hs06 is the space's less what the types that aren't candidates run. The larger a type's machines are
    the rarer it is drawn. Lazy, because mostly only the first is wanted.
    """
    lacking = deficits(candidates, capacity_hs06)
    least = NEGLIGIBLE * capacity_hs06
    sizes = {one.machinetype: one.size for one in candidates}
    groups = _by_group(candidates, lambda one: lacking[one.machinetype] / one.size)
    members: dict[str, dict[str, float]] = {}
    for one in candidates:
        if groups[one.machinegroup] > least and lacking[one.machinetype] > least:
            members.setdefault(one.machinegroup, {})[one.machinetype] = lacking[one.machinetype] / one.size
    drawn = set()
    while members:
        group = _draw({name: groups[name] for name in members}, rng)
        machinetype = _draw(members[group], rng)
        yield Turn(machinetype, members[group].pop(machinetype) * sizes[machinetype])
        drawn.add(machinetype)
        if not members[group]:
            del members[group]
    rest = [one for one in candidates if one.machinetype not in drawn]
    running = _by_group(rest, lambda one: one.running_hs06)
    shares = _by_group(rest, lambda one: one.target_share)
    yield from _lowest_first(rest, {group: running[group] / shares[group] for group in running}, rng)


def classic_order(
    candidates: Sequence[Candidate], capacity_hs06: float, rng: random.Random
) -> Iterator[Turn]:
    """All candidates, lowest (group score, type score, random) first; a score is running HS06 ÷ target_share.

    A group's score is the sum of its types'. The capacity isn't used.
    """
    scores = _by_group(candidates, lambda one: one.running_hs06 / one.target_share)
    yield from _lowest_first(candidates, scores, rng)


def _by_group(candidates: Sequence[Candidate], value: Callable[[Candidate], float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for one in candidates:
        sums[one.machinegroup] = sums.get(one.machinegroup, 0.0) + value(one)
    return sums


def _lowest_first(
    candidates: Sequence[Candidate], group_scores: Mapping[str, float], rng: random.Random
) -> Iterator[Turn]:
    def score_of(one: Candidate) -> tuple[float, float, float]:
        return group_scores[one.machinegroup], one.running_hs06 / one.target_share, rng.random()

    for one in sorted(candidates, key=score_of):
        yield Turn(one.machinetype, 0.0)


def _draw(weights: dict[str, float], rng: random.Random) -> str:
    """One of the names at random; weights are positive."""
    if len(weights) == 1:
        return next(iter(weights))
    point = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        point -= weight
        if point < 0:
            return name
    return name
