"""Prints the tables of docs/scheduling.md from simulations.

    PYTHONPATH=. python tools/simulations.py [--kept] [--only WORD] [FACTORIES …]

First small spaces and superslots, by a judge that sees only when machines began and ended
(tests/unit/simulate/judge.py): some twenty minutes of one processor. Then the scenarios of examples/simulate with both
policies: with 10 and 100 factories some ten minutes, with 1,000 an hour more. Finished runs are kept in
build/simulations and not run again: remove that after a change. --kept prints the runs that are there; --only runs the
tables whose title has the word.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.unit.simulate.judge import (
    DAY,
    HOUR,
    SMALL,
    lives,
    longest_wait,
    mixes,
    parts,
    share_error,
    used,
)
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.simulate import simulate
from vac.simulate.results import duration, percent
from vac.simulate.scenario import POLICIES, Hardware, Scenario, Space, Work, read_scenario

HERE = Path(__file__).resolve().parent.parent
SCENARIOS = HERE / "examples" / "simulate"
KEPT = HERE / "build" / "simulations"
SEEDS = range(1, 17)
FEW_SEEDS = range(1, 5)
ORDER = ("fill", "days", "idle", "broken", "return", "loss", "crashes", "mixed", "superslots", "half-classic")
HEADER = (
    "| factories | policy | time to fill | in use | free despite work | error while filling, at most "
    "| error settled, mean (at most) | error since full, mean | probes per backoff period "
    "| 90 % of the share after (possible after) |"
)
LONG = (
    ("1 × 1", (3, 1), ("1h", "24h")),
    ("1 × 1", (10, 1), ("5m", "12h")),
    ("1 × 2", (3, 1), ("4h-8h", "4h-8h")),
    ("1 × 2", (5, 3, 1, 1), ("1h", "24h", "5m-3h", "12h")),
    ("1 × 4", (10, 1), ("1h", "24h")),
    ("3 × 4", (5, 3, 1, 1), ("1h", "24h", "5m-3h", "12h")),
)
SIZES = {"one": 1, "four": 4, "eight": 8}


def main(words: list[str]) -> None:
    """Run what has not been run and print the tables."""
    kept_only = "--kept" in words
    only = words[words.index("--only") + 1] if "--only" in words else ""
    tables: dict[str, Callable[[bool], Iterator[str]]] = {
        "Small spaces over a week": small_spaces,
        "Long and short machines": long_machines,
        "A hundredth of the shares": hundredth,
        "Results for superslots": superslots,
        "Share and use": curve,
        "Many factories at one moment": moment,
    }
    for title, lines in tables.items():
        if only in title:
            print(f"### {title}\n")
            for line in lines(kept_only):
                print(line, flush=True)
            print()
    sizes = [int(word) for word in words if word.isdigit()] or ([] if only else [10, 100])
    scenarios(sizes, kept_only)


def once(name: str, kept_only: bool, make: Callable[..., Any], *given: Any) -> Any:
    """Return what was kept of a run, or make it; None if only kept ones are wanted."""
    kept = KEPT / f"{name}.json"
    if not kept.exists():
        if kept_only:
            return None
        print(name, file=sys.stderr, flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(make(*given), indent=1))
    return json.loads(kept.read_text())


def table(*columns: str) -> str:
    """Return the head of a table."""
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


def small_spaces(kept_only: bool) -> Iterator[str]:
    """Yield errors after a week and a day: 2 to 5 types, equal and mixed lifetimes, with and without an idle type."""
    yield table("space", "runs", "error after 7 days, mean (worst)", "after 24 hours, mean (worst)", "worst")
    week: list[float] = []
    day: list[float] = []
    for name, size in SMALL.items():
        found = once(f"small-{name}", kept_only, week_of, *size)
        if found is not None:
            weeks, days = [one[0] for one in found], [one[1] for one in found]
            week, day = week + weeks, day + days
            yield (
                f"| {name} | {len(found)} | {statistics.fmean(weeks):.2f} ({max(weeks):.1f}) "
                f"| {statistics.fmean(days):.1f} ({max(days):.0f}) | {max(found)[2]} |"
            )
    if week:
        yield (
            f"| all | {len(week)} | {statistics.fmean(week):.2f} ({max(week):.1f}) "
            f"| {statistics.fmean(day):.1f} ({max(day):.0f}) | |"
        )


def week_of(factories: int, processors: int) -> list[tuple[float, float, str]]:
    """Return the errors after a week and after a day of all mixes and seeds."""
    found = []
    for words, shares, lifetimes, idle in mixes():
        for seed in SEEDS if processors * factories < 40 else FEW_SEEDS:
            machines = lives(factories, processors, shares, lifetimes, never=idle, seed=seed)
            found.append((share_error(machines, shares, 7 * DAY), share_error(machines, shares, DAY), words))
    return found


def long_machines(kept_only: bool) -> Iterator[str]:
    """Yield errors after a week where lifetimes differ most."""
    yield table("space", "shares", "lifetimes", "error after 7 days, mean (worst)")
    for name, numbers, lifetimes in LONG:
        shares = dict(zip("abcd", map(float, numbers)))
        key = f"long-{name}-{'-'.join(map(str, numbers))}"
        errors = once(key, kept_only, long_errors, name, shares, dict(zip(shares, lifetimes)))
        if errors:
            ratio, times = ":".join(map(str, numbers)), ", ".join(lifetimes)
            yield f"| {name} | {ratio} | {times} | {statistics.fmean(errors):.1f} ({max(errors):.1f}) |"


def long_errors(name: str, shares: dict[str, float], lifetimes: dict[str, str]) -> list[float]:
    """Return the errors after a week, by seed."""
    return [share_error(lives(*SMALL[name], shares, lifetimes, seed=seed), shares, 7 * DAY) for seed in SEEDS]


def hundredth(kept_only: bool) -> Iterator[str]:
    """Yield the longest wait of a type with a hundredth of another's share, machines of one hour, 60 days."""
    yield table("space", "runs", "longest wait, mean (worst)", "a turn is due every")
    for name in ("1 × 1", "1 × 2", "1 × 8"):
        waits = once(f"hundredth-{name}", kept_only, small_waits, name)
        if waits:
            due = 101 / SMALL[name][1]
            mean, worst = statistics.fmean(waits) / HOUR, max(waits) / HOUR
            yield f"| {name} | {len(waits)} | {mean:.0f} h ({worst:.0f} h) | {due:.0f} h |"


def small_waits(name: str) -> list[float]:
    """Return the small type's longest waits in seconds, by seed."""
    shares = {"large": 100.0, "small": 1.0}
    lifetimes = dict.fromkeys(shares, "1h")
    return [
        longest_wait(lives(*SMALL[name], shares, lifetimes, days=60, seed=seed), "small", 60 * DAY)
        for seed in range(20)
    ]


def multi(
    factories: int,
    processors: int,
    types: tuple[str, ...],
    hours: float,
    keep_hours: float = 24,
    seeds: int = 5,
) -> list[list[float]]:
    """Return, by seed, the percentages of days 3 to 7 that each type had, and that were in use."""
    shares = dict.fromkeys(types, 1.0)
    options = {
        name: {
            "min_processors": SIZES[name],
            "max_processors": SIZES[name],
            "min_wallclock_seconds": int(hours * HOUR),
        }
        for name in types
    }
    settings = {"processors_per_superslot": 8, "superslot_keep_seconds": int(keep_hours * HOUR)}
    found = []
    for seed in range(1, seeds + 1):
        lifetimes = dict.fromkeys(types, "6h-18h")
        machines = lives(
            factories, processors, shares, lifetimes, types=options, settings=settings, seed=seed
        )
        had = parts(machines, 2 * DAY, 7 * DAY, types)
        found.append([*had.values(), used(machines, factories * processors, 2 * DAY, 7 * DAY)])
    return found


def superslots(kept_only: bool) -> Iterator[str]:
    """Yield shares and use with 8-core (and 4-core) types beside single-core ones, all with equal shares."""
    yield table(
        "space", "types", "min_wallclock_seconds", "shares of days 3 to 7, mean (least to most)", "in use"
    )
    spaces = (
        (1, 8, ("eight", "one")),
        (5, 8, ("eight", "one")),
        (1, 64, ("eight", "one")),
        (1, 16, ("eight", "four", "one")),
        (10, 64, ("eight", "four", "one")),
    )
    for factories, processors, types in spaces:
        for hours in (0, 2, 12, 24):
            seeds = {8: 20, 640: 2}.get(factories * processors, 5)
            found = once(
                f"superslots-{factories}-{processors}-{len(types)}-{hours}",
                kept_only,
                multi,
                factories,
                processors,
                types,
                hours,
                24.0,
                seeds,
            )
            if found:
                shares = ", ".join(
                    f"{SIZES[name]}-core {statistics.fmean(of):.1f} ({min(of):.0f} to {max(of):.0f})"
                    for name, of in zip(types, zip(*found))
                    if name != "one"
                )
                words = f"{hours} h" + (" (default)" if hours == 24 else "")
                cores = ":".join(str(SIZES[name]) for name in types)
                use = statistics.fmean(one[-1] for one in found)
                yield f"| {factories} × {processors} | {cores} | {words} | {shares} | {use:.1f} % |"


def curve(kept_only: bool) -> Iterator[str]:
    """Yield the 8-core share and the use for values of superslot_keep_seconds."""
    yield table(
        "superslot_keep_seconds",
        *(f"{space}, {hours} h" for space in ("1 × 8", "1 × 64") for hours in (12, 24)),
    )
    for keep in (0, 2, 4, 6, 8, 12, 16, 24):
        cells = []
        for processors in (8, 64):
            for hours in (12, 24):
                found = once(
                    f"keep-{processors}-{hours}-{keep}",
                    kept_only,
                    multi,
                    1,
                    processors,
                    ("eight", "one"),
                    hours,
                    keep,
                )
                if found:
                    share, *_, use = (statistics.fmean(of) for of in zip(*found))
                    cells.append(f"{share:.0f} %, in use {use:.1f} %")
        if cells:
            yield f"| {keep * 3600:,} | " + " | ".join(cells) + " |"


def moment(kept_only: bool) -> Iterator[str]:
    """Yield the error when all factories start at one moment, as after a common undrain."""
    yield table("space", "error when full, mean (worst)")
    for factories, processors in ((100, 1), (100, 8)):
        errors = once(
            f"moment-{factories}-{processors}",
            kept_only,
            full_errors,
            factories,
            processors,
        )
        if errors:
            yield f"| {factories} × {processors} | {statistics.fmean(errors):.2f} ({max(errors):.1f}) |"


def full_errors(factories: int, processors: int) -> list[float]:
    """Return the errors when the space is full, by seed."""
    return [full_at_once(factories, processors, seed) for seed in range(1, 11)]


def full_at_once(factories: int, processors: int, seed: int) -> float:
    """Return the error in percentage points when a space is full whose factories all start at one moment."""
    shares = {"atlas": 5.0, "lhcb": 3.0, "cms": 2.0}
    scenario = Scenario(
        Space(factories=factories, hours=0.5, seed=seed, start="0s"),
        Settings(),
        {name: Machinetype(name=name, target_share=one, machinegroup=name) for name, one in shares.items()},
        dict.fromkeys(shares, Work(lifetime="12h")),
        {"node": Hardware(processors=processors)},
    )
    return 100 * simulate(scenario).samples[-1].error


def scenarios(sizes: list[int], kept_only: bool) -> None:
    """Print the tables of the scenarios of examples/simulate."""
    results = {
        (name, size, policy): run(name, size, policy, kept_only)
        for size in sizes
        for policy in POLICIES
        for name in ORDER
        if (name, policy) != ("half-classic", "classic")
    }
    for name in ORDER if sizes else ():
        print(f"### {name}\n")
        print((SCENARIOS / f"{name}.ini").read_text().splitlines()[0].lstrip("# "))
        print(f"`vac simulate examples/simulate/{name}.ini --factories N --policy POLICY`\n")
        print(HEADER + "\n" + "|---" * HEADER.count(" |") + "|")
        for size in sizes:
            for policy in POLICIES:
                result = results.get((name, size, policy))
                if result is not None:
                    print(row(size, policy, result))
        print()


def run(name: str, size: int, policy: str, kept_only: bool) -> Any:
    """Make one run, or return what was kept of it, as plain values."""

    def make() -> Any:
        scenario = read_scenario(SCENARIOS / f"{name}.ini", no_site)
        finished = simulate(scenario.changed(factories=size, policy=policy))
        return dataclasses.replace(finished, samples=()).json()

    return once(f"{name}-{size}-{policy}", kept_only, make)


def no_site() -> tuple[Settings, dict[str, Machinetype]]:
    """Return nothing: the scenarios have machinetypes of their own."""
    return Settings(), {}


def row(size: int, policy: str, result: Any) -> str:
    """Return one line of a table."""
    full, error = result["full"], result["error"]
    settled = percent(full["mean"]) if full else "–"
    if full and not result["recoveries"]:
        settled += f" ({percent(full['most'])})"
    probes = ", ".join(
        f"{one['machinetype']} {one['median']:g} ({one['mean']:.1f})" for one in result["probes"]
    )
    returns = ", ".join(
        f"{one['machinetype']} {duration(one['arrived_seconds'])} ({duration(one['possible_seconds'])})"
        for one in result["recoveries"]
    )
    cells = (
        f"{size:,}",
        policy,
        duration(result["fill_seconds"]),
        percent(result["used"]),
        percent(result["lost"]),
        percent(result["way"]["most"]),
        settled,
        percent(error["mean"]) if error else "–",
        probes or "–",
        returns or "–",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
