"""The factories of a scenario: which hardware each has, and which are classic or broken."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from vac.simulate.node import Load, Node
from vac.simulate.scenario import Hardware, Scenario

CLASSIC_MACHINES_PER_CYCLE = 1
T = TypeVar("T")


def make_nodes(scenario: Scenario, now: float) -> list[Node]:
    """All factories; kinds are spread at random, but in exact numbers."""
    space = scenario.space
    rng = random.Random(f"{space.seed} nodes")
    names = tuple(f"vac-{number:04}.example.org" for number in range(space.factories))
    kinds = list((scenario.hardware or {"default": Hardware()}).values())
    hardware = _dealt(kinds, [kind.part for kind in kinds], len(names), rng)
    part = 1.0 if space.policy == "classic" else space.classic
    classic = _dealt([True, False], [part, 1 - part], len(names), rng)
    broken = _dealt([True, False], [space.broken, 1 - space.broken], len(names), rng)
    return [
        _node(scenario, name, names, one, old, bad, now)
        for name, one, old, bad in zip(names, hardware, classic, broken)
    ]


def _node(
    scenario: Scenario,
    name: str,
    names: tuple[str, ...],
    hardware: Hardware,
    classic: bool,
    broken: bool,
    now: float,
) -> Node:
    settings = replace(
        scenario.settings,
        factory_name=name,
        factories=names,
        share_policy="classic" if classic else "deficit",
        machines_per_cycle=CLASSIC_MACHINES_PER_CYCLE if classic else scenario.settings.machines_per_cycle,
        total_processors=hardware.processors,
        host_processors=hardware.processors,
        hs06_per_processor=hardware.hs06_per_processor,
    )
    wanted = hardware.machinetypes or tuple(scenario.machinetypes)
    return Node(
        name=name,
        settings=settings,
        machinetypes={key: one for key, one in scenario.machinetypes.items() if key in wanted},
        factories=names,
        rng=random.Random(f"{scenario.space.seed} {name}"),
        load=Load(now),
        classic=classic,
        broken=broken,
    )


def _dealt(values: Sequence[T], parts: Sequence[float], number: int, rng: random.Random) -> list[T]:
    """So many of the values, each as often as its part says; the largest remainders are rounded up."""
    total = sum(parts)
    exact = [part / total * number for part in parts]
    counts = [int(one) for one in exact]
    remainders = sorted(range(len(parts)), key=lambda place: counts[place] - exact[place])
    for place in remainders[: number - sum(counts)]:
        counts[place] += 1
    dealt = [value for value, times in zip(values, counts) for _ in range(times)]
    rng.shuffle(dealt)
    return dealt
