"""Runs the scenarios of examples/simulate with both policies and prints the tables of docs/scheduling.md.

    PYTHONPATH=. python tools/simulations.py [--kept] [FACTORIES …]

With 10 and 100 factories it takes some five minutes, with 1,000 three quarters of an hour more.
Finished runs are kept in build/simulations and not run again: remove that after a change. --kept prints what
is there, and runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.simulate import simulate
from vac.simulate.results import Result, duration, from_json, percent
from vac.simulate.scenario import POLICIES, read_scenario

HERE = Path(__file__).resolve().parent.parent
SCENARIOS = HERE / "examples" / "simulate"
KEPT = HERE / "build" / "simulations"
ORDER = ("fill", "days", "idle", "broken", "return", "loss", "crashes", "mixed", "superslots", "half-classic")
HEADER = (
    "| factories | policy | time to fill | in use | free despite work | error while filling, at most "
    "| error settled, mean (at most) | error since full, mean | probes per backoff period "
    "| 90 % of the share after (possible after) |"
)


def main(words: list[str]) -> None:
    """Run what has not been run and print the tables."""
    sizes = [int(word) for word in words if word != "--kept"] or [10, 100]
    results = {
        (name, size, policy): run(name, size, policy, "--kept" in words)
        for size in sizes
        for policy in POLICIES
        for name in ORDER
        if (name, policy) != ("half-classic", "classic")
    }
    for name in ORDER:
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


def run(name: str, size: int, policy: str, kept_only: bool) -> Result | None:
    """One run, or what was kept of it."""
    kept = KEPT / f"{name}-{size}-{policy}.json"
    if kept.exists():
        return from_json(json.loads(kept.read_text()))
    if kept_only:
        return None
    print(f"{name} {size} {policy}", file=sys.stderr, flush=True)
    scenario = read_scenario(SCENARIOS / f"{name}.ini", no_site)
    finished = simulate(scenario.changed(factories=size, policy=policy))
    result = dataclasses.replace(finished, samples=())
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result.json(), indent=1))
    return result


def no_site() -> tuple[Settings, dict[str, Machinetype]]:
    """The scenarios have machinetypes of their own."""
    return Settings(), {}


def row(size: int, policy: str, result: Result) -> str:
    """One line of a table."""
    settled = percent(result.full.mean) if result.full else "–"
    if result.full and not result.recoveries:
        settled += f" ({percent(result.full.most)})"
    probes = ", ".join(f"{one.machinetype} {one.median:g} ({one.mean:.1f})" for one in result.probes)
    returns = ", ".join(
        f"{one.machinetype} {duration(one.arrived_seconds)} ({duration(one.possible_seconds)})"
        for one in result.recoveries
    )
    cells = (
        f"{size:,}",
        policy,
        duration(result.fill_seconds),
        percent(result.used),
        percent(result.lost),
        percent(result.way.most),
        settled,
        percent(result.error.mean) if result.error else "–",
        probes or "–",
        returns or "–",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
