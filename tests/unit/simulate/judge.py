"""Small simulated spaces, and an independent judge of them.

The judge knows nothing but the list of machines with their starts and ends, as a site's accounting would: it shares
neither the simulator's measurement nor the scheduler's idea of shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.unit.simulate.made import machinetype
from vac.config.settings import Settings
from vac.simulate.nodes import Machine
from vac.simulate.scenario import Hardware, Scenario, Space, Work
from vac.simulate.world import BEGINNING, World

HOUR, DAY = 3600.0, 86400.0
EQUAL = ("4h-8h",) * 5
MIXED = ("1h", "12h", "5m-3h", "6h", "2h-4h")
SHARES = ((3, 1), (10, 1), (5, 3, 1), (5, 3, 1, 1), (4, 3, 2, 1, 1))
SMALL = {"1 × 1": (1, 1), "1 × 2": (1, 2), "1 × 4": (1, 4), "1 × 8": (1, 8), "3 × 4": (3, 4), "5 × 8": (5, 8)}
"""Factories and processors of each."""


@dataclass(frozen=True)
class Life:
    """One machine; times in seconds since the beginning."""

    machinetype: str
    processors: int
    start: float
    end: float


def lives(
    factories: int,
    processors: int,
    shares: Mapping[str, float],
    lifetimes: Mapping[str, str],
    days: float = 7,
    never: float = 0,
    when: Mapping[str, str] | None = None,
    types: Mapping[str, Mapping[str, object]] | None = None,
    settings: Mapping[str, object] | None = None,
    **space: object,
) -> list[Life]:
    """Simulate a space and return its machines; `never` is the share of a type that has no work, 0: there is none.

    `when` says when types have work, always by default.
    """
    made = {name: machinetype(name, share, **(types or {}).get(name, {})) for name, share in shares.items()}
    works = {
        name: Work(lifetime=lifetime, when=((when or {}).get(name, "always"),))
        for name, lifetime in lifetimes.items()
    }
    if never:
        made["never"], works["never"] = machinetype("never", never), Work(when=("never",))
    scenario = Scenario(
        Space(factories=factories, hours=days * 24, sample_seconds=HOUR, **space),  # type: ignore[arg-type]
        Settings(**(settings or {})),  # type: ignore[arg-type]
        made,
        works,
        {"node": Hardware(processors=processors)},
    )
    world = World(scenario)
    machines: list[Machine] = []
    count = world.measure.created

    def created(machine: Machine, now: float) -> None:
        machines.append(machine)
        count(machine, now)

    world.measure.created = created
    world.run()
    return [
        Life(
            one.seen.machinetype,
            one.seen.processors,
            one.seen.created_time - BEGINNING,
            (one.ended_time or world.now) - BEGINNING,
        )
        for one in machines
    ]


def processor_seconds(machines: Sequence[Life], start: float, end: float) -> dict[str, float]:
    """Return by type the processor time between these moments."""
    sums: dict[str, float] = {}
    for one in machines:
        overlap = max(0.0, min(one.end, end) - max(one.start, start))
        sums[one.machinetype] = sums.get(one.machinetype, 0.0) + one.processors * overlap
    return sums


def parts(machines: Sequence[Life], start: float, end: float, names: Sequence[str]) -> dict[str, float]:
    """Return the percentages of these types in the processor time that they had together."""
    had = processor_seconds(machines, start, end)
    total = sum(had.get(name, 0.0) for name in names) or 1.0
    return {name: 100 * had.get(name, 0.0) / total for name in names}


def share_error(
    machines: Sequence[Life], shares: Mapping[str, float], end: float, start: float = 0.0
) -> float:
    """Return the largest distance of a type from its share of the processor time, in percentage points."""
    wanted = sum(shares.values())
    found = parts(machines, start, end, list(shares))
    return max(abs(found[name] - 100 * share / wanted) for name, share in shares.items())


def used(machines: Sequence[Life], processors: int, start: float, end: float) -> float:
    """Return the percentage of the processor time in which there was a machine."""
    return 100 * sum(processor_seconds(machines, start, end).values()) / (processors * (end - start))


def longest_wait(machines: Sequence[Life], name: str, end: float) -> float:
    """Return the longest time without a machine of this type."""
    waited = until = 0.0
    for one in sorted((one for one in machines if one.machinetype == name), key=lambda one: one.start):
        waited, until = max(waited, one.start - until), max(until, one.end)
    return max(waited, end - until)


def mixes(never: bool = True) -> Iterator[tuple[str, dict[str, float], dict[str, str], float]]:
    """Yield the small spaces' machinetypes: in words, shares, lifetimes, and the share of a type without work."""
    for numbers in SHARES:
        shares = dict(zip("abcde", map(float, numbers)))
        for words, lifetimes in (("equal", EQUAL), ("mixed", MIXED)):
            for idle in (0.0, 2.0) if never else (0.0,):
                with_idle = ", and one without work" if idle else ""
                text = f"{':'.join(map(str, numbers))}, {words} lifetimes{with_idle}"
                yield text, shares, dict(zip(shares, lifetimes)), idle
