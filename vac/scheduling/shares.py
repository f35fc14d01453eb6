"""The next machinetype: shares, the ledger of debts, and the order of types.

By deficit: what becomes free in the space at this moment is given out to the types that lack most, and a type is
drawn with its part of that, so that the draws of many factories at one time add up to the shares instead of
overshooting them. A type lacks its share of what will run soon, less what runs of it, plus its debt: what it had too
little of in the past. Without the debt any space is biased in which share × processors isn't whole. Classic: the
lowest running ÷ share first, by group and then by type.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

NEGLIGIBLE = 1e-6
"""Part of the capacity below which a deficit is rounding."""
ROUNDING = 1e-9
GOLDEN = (math.sqrt(5) - 1) / 2
MOMENT_SECONDS = 15
"""Draws within this time are spread evenly over the factories."""
REPAY_SECONDS = 3 * 3600.0
"""Time in which a debt is repaid by whole machines. From 1 to 6 h it makes little difference."""
PARTIAL_MACHINE_WEIGHT = 60.0 / REPAY_SECONDS
"""How much a part of a machine counts: a debt of a minute of a machine outweighs it."""
LONGEST_STEP_SECONDS = 3600.0
"""A longer time between two decisions counts as this: the running machines of that time are a guess."""
MOST_ROUNDS = 24
"""Up to so many machines are given out one by one; more are divided as if machines could be."""


@dataclass(frozen=True)
class Ledger:
    """Debts by machinetype in HS06·s: what each had less (positive) or more of than its share."""

    debts: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    """HS06 by which the debts have grown per second since the last decision."""
    time: float | None = None
    """When that was."""

    def advance(self, now: float, limits: Mapping[str, float]) -> Ledger:
        """Return the ledger at this time; limits are HS06·s by configured machinetype, beyond which no debt grows.

        There is no decay: it would leave a bias.
        """
        passed = 0.0 if self.time is None else min(max(0.0, now - self.time), LONGEST_STEP_SECONDS)
        debts = {
            name: max(-most, min(self.debts.get(name, 0.0) + passed * self.rates.get(name, 0.0), most))
            for name, most in limits.items()
        }
        return Ledger(debts, self.rates, now)

    def counting(self, shares: Mapping[str, float], running_hs06: Mapping[str, float]) -> Ledger:
        """Return the ledger with new rates: from now on these types are compared, whose HS06 run in the space."""
        total = sum(shares.values())
        running = sum(running_hs06[name] for name in shares)
        rates = {name: share / total * running - running_hs06[name] for name, share in shares.items()}
        return replace(self, rates=rates)


@dataclass(frozen=True)
class Candidate:
    """A machinetype of which this factory could create a machine now."""

    machinetype: str
    machinegroup: str
    target_share: float
    running_hs06: float
    """In the whole space."""
    machine_hs06: float = 1.0
    """Size of its next machine."""
    debt_hs06s: float = 0.0
    probe: bool = False
    """Only one may be created, to see if it has work: it has no debt."""


@dataclass(frozen=True)
class RankedType:
    """A candidate's place in the order."""

    machinetype: str
    lacking_hs06: float
    """Part of its share that it and its group lack; 0: none."""


Order = Callable[[Sequence[Candidate], float, float, float, random.Random], Iterator[RankedType]]
"""Candidates; HS06 that they will have together soon; HS06 that become free for them in the space now; a number from
0 to 1 that decides the first draw; chance."""


def stratified_point(
    factories: Sequence[str], factory: str, now: float, number: int, rng: random.Random
) -> float:
    """Return a number from 0 to 1 for this factory's draw of this number in a decision.

    Those of factories that decide at one moment are spread evenly, like multiples of the golden ratio, wherever in
    the list of factories these are: so their draws add up better than independent ones.
    """
    digest = hashlib.sha256(f"{now // MOMENT_SECONDS:.0f} {number}".encode()).digest()
    common = int.from_bytes(digest[:8], "big") / 2**64
    return (factories.index(factory) * GOLDEN + common + rng.random() / len(factories)) % 1.0


def lacking(candidates: Sequence[Candidate], reached_hs06: float) -> dict[str, float]:
    """Return what each candidate lacks, in HS06, of its share of what they will have together; negative: too much."""
    owed = owed_hs06(candidates)
    return {name: lack + owed[name] for name, lack in missing_hs06(candidates, reached_hs06).items()}


def missing_hs06(candidates: Sequence[Candidate], reached_hs06: float) -> dict[str, float]:
    """Return the same as far as their debts don't count."""
    total = sum(one.target_share for one in candidates)
    return {one.machinetype: one.target_share / total * reached_hs06 - one.running_hs06 for one in candidates}


def owed_hs06(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Return by how much each candidate's debt changes what it lacks.

    The debts are weighted as _weights says, and shifted to sum to 0, so that they change nothing but the order.
    """
    weights = _weights({one.machinetype: one.target_share for one in candidates})
    mean = sum(weights[one.machinetype] * one.debt_hs06s for one in candidates) / sum(weights.values())
    return {
        one.machinetype: weights[one.machinetype] * (one.debt_hs06s - mean) / REPAY_SECONDS
        for one in candidates
    }


def _weights(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the weights by which types (or groups) with these shares lack alike: square roots, 1 for equal shares.

    Compared as they are, a small type that comes back would have nine tenths of its share an hour later, since what a
    large one lacks meanwhile goes first; relative to the shares, what large types lack would wait too long.
    """
    mean = sum(shares.values()) / len(shares)
    return {name: math.sqrt(share / mean) for name, share in shares.items()}


def deficit_order(
    candidates: Sequence[Candidate], reached_hs06: float, free_hs06: float, point: float, rng: random.Random
) -> Iterator[RankedType]:
    """Yield all candidates, drawn one after the other by their parts of what is free.

    Lazy, because mostly only the first is wanted.
    """
    missing, owed = missing_hs06(candidates, reached_hs06), owed_hs06(candidates)
    lacks = {name: missing[name] + owed[name] for name in missing}
    groups = _by_group(candidates, lacks)
    least = NEGLIGIBLE * reached_hs06
    left = list(candidates)
    while left:
        parts = [1.0] if len(left) == 1 else apportion(left, missing, owed, free_hs06, rng)
        drawn = left.pop(_draw(parts, point))
        point = rng.random()
        lack = lacks[drawn.machinetype]
        yield RankedType(drawn.machinetype, lack if min(lack, groups[drawn.machinegroup]) > least else 0.0)


def apportion(
    candidates: Sequence[Candidate],
    missing: Mapping[str, float],
    owed: Mapping[str, float],
    free_hs06: float,
    rng: random.Random,
) -> list[float]:
    """Return how many machines of each candidate are to be made of what is free in the space.

    They are given out one by one to the group, and in it to the type, that lacks most; random among equals. A part of a
    machine counts little: where shares aren't whole machines, types have to take turns by their debts. A probe of a
    type that lacks something comes first, as it might never have its turn otherwise.
    """
    shares = {one.machinetype: one.target_share for one in candidates}
    weights, group_weights = _weights(shares), _weights(_by_group(candidates, shares))
    if free_hs06 > MOST_ROUNDS * min(one.machine_hs06 for one in candidates):
        lacks = {name: missing[name] + owed[name] for name in weights}
        return _divide(candidates, lacks, weights, group_weights, free_hs06)
    left, groups, groups_owed = dict(missing), _by_group(candidates, missing), _by_group(candidates, owed)
    sizes: dict[str, float] = {}
    for one in candidates:
        sizes[one.machinegroup] = max(sizes.get(one.machinegroup, 0.0), one.machine_hs06)
    numbers = dict.fromkeys(weights, 0.0)

    def need(one: Candidate) -> tuple[float, float]:
        name, group = one.machinetype, one.machinegroup
        if one.probe and left[name] > 0:
            return math.inf, math.inf
        return (
            _lack(groups[group], groups_owed[group], sizes[group], group_weights[group]),
            _lack(left[name], owed[name], one.machine_hs06, weights[name]),
        )

    while True:
        needs = [need(one) for one in candidates]
        most = max(needs)
        drawn = rng.choice([one for one, its in zip(candidates, needs) if its == most])
        numbers[drawn.machinetype] += 1
        left[drawn.machinetype] -= drawn.machine_hs06
        groups[drawn.machinegroup] -= drawn.machine_hs06
        free_hs06 -= drawn.machine_hs06
        if free_hs06 < drawn.machine_hs06 / 2:
            return list(numbers.values())


def _lack(missing: float, owed: float, size: float, weight: float) -> float:
    """Return what something lacks for its weight, with parts of a machine counting little."""
    whole = math.floor(missing / size + ROUNDING) * size
    return (whole + owed) / weight + (missing - whole) * PARTIAL_MACHINE_WEIGHT


def _divide(
    candidates: Sequence[Candidate],
    lacks: Mapping[str, float],
    weights: Mapping[str, float],
    group_weights: Mapping[str, float],
    free_hs06: float,
) -> list[float]:
    """Return the same for so many machines that it doesn't matter that these are whole."""
    parts: dict[str, float] = {}
    for group, part in _level(_by_group(candidates, lacks), group_weights, free_hs06).items():
        members = {one.machinetype: lacks[one.machinetype] for one in candidates if one.machinegroup == group}
        parts.update(_level(members, weights, part) if len(members) > 1 else dict.fromkeys(members, part))
    return [parts[one.machinetype] / one.machine_hs06 for one in candidates]


def _level(lacks: Mapping[str, float], weights: Mapping[str, float], amount: float) -> dict[str, float]:
    """Divide an amount so that those who get some then lack equally for their weights, and no one else lacks more."""
    level = total = width = 0.0
    for name in sorted(lacks, key=lambda name: lacks[name] / weights[name], reverse=True):
        total += lacks[name]
        width += weights[name]
        if width > weights[name] and (total - amount) / width > lacks[name] / weights[name]:
            break
        level = (total - amount) / width
    return {name: max(0.0, lack - level * weights[name]) for name, lack in lacks.items()}


def classic_order(
    candidates: Sequence[Candidate], reached_hs06: float, free_hs06: float, point: float, rng: random.Random
) -> Iterator[RankedType]:
    """Yield all candidates, lowest (group score, type score, random) first; a score is running HS06 ÷ target_share.

    A group's score is the sum of its types'. Only the candidates and chance count.
    """
    scores = {one.machinetype: one.running_hs06 / one.target_share for one in candidates}
    groups = _by_group(candidates, scores)
    ranks = {
        one.machinetype: (groups[one.machinegroup], scores[one.machinetype], rng.random())
        for one in candidates
    }
    for name in sorted(ranks, key=ranks.__getitem__):
        yield RankedType(name, 0.0)


def _by_group(candidates: Sequence[Candidate], values: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of machinetypes' values by machinegroup."""
    sums: dict[str, float] = {}
    for one in candidates:
        sums[one.machinegroup] = sums.get(one.machinegroup, 0.0) + values[one.machinetype]
    return sums


def _draw(weights: Sequence[float], point: float) -> int:
    """Return the place by weight that a number from 0 to 1 points to."""
    left = point * sum(weights)
    for place, weight in enumerate(weights):
        if weight > 0:
            drawn = place
            left -= weight
            if left < 0:
                break
    return drawn
