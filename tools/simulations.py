"""Runs the scenarios of examples/simulate with both policies and prints the tables of docs/scheduling.md.

    PYTHONPATH=. python tools/simulations.py [FACTORIES …]

With 10 and 100 factories it takes some ten minutes, with 1,000 an hour or two more. Finished runs are kept in
build/simulations and not run again: remove that after a change.
"""

import dataclasses
import json
import sys
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.simulate import simulate
from vac.simulate.reading import read_scenario
from vac.simulate.report import duration, percent
from vac.simulate.result import Result, from_json
from vac.simulate.scenario import POLICIES

HERE = Path(__file__).resolve().parent.parent
SCENARIOS = HERE / "examples" / "simulate"
KEPT = HERE / "build" / "simulations"
ORDER = ("fill", "return", "idle", "days", "superslots", "loss", "crashes", "broken", "mixed", "half-classic")
HEADER = (
    "| factories | policy | time to fill | in use | free despite of work | error while filling, at most "
    "| error settled, mean (at most) | probes per backoff period | 90 % of the share after (possible after) |"
)


def main(words: list[str]) -> None:
    """Run what has not been run and print the tables."""
    sizes = [int(word) for word in words] or [10, 100]
    results = {
        (name, size, policy): run(name, size, policy)
        for size in sizes
        for name in ORDER
        for policy in POLICIES
    }
    for name in ORDER:
        print(f"### {name}\n")
        print((SCENARIOS / f"{name}.ini").read_text().splitlines()[0].lstrip("# "))
        print(f"`vac simulate examples/simulate/{name}.ini --factories N --policy POLICY`\n")
        print(HEADER + "\n" + "|---" * HEADER.count(" |") + "|")
        for size in sizes:
            for policy in POLICIES:
                print(row(size, policy, results[name, size, policy]))
        print()


def run(name: str, size: int, policy: str) -> Result:
    """One run, or what was kept of it."""
    kept = KEPT / f"{name}-{size}-{policy}.json"
    if kept.exists():
        return from_json(json.loads(kept.read_text()))
    print(f"{name} {size} {policy}", file=sys.stderr, flush=True)
    scenario = read_scenario(SCENARIOS / f"{name}.ini", no_site)
    result = dataclasses.replace(simulate(scenario.changed(factories=size, policy=policy)), samples=())
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result.json(), indent=1))
    return result


def no_site() -> tuple[Settings, dict[str, Machinetype]]:
    """The scenarios have machinetypes of their own."""
    return Settings(), {}


def row(size: int, policy: str, result: Result) -> str:
    """One line of a table."""
    settled = f"{percent(result.full.mean)} ({percent(result.full.most)})" if result.full else "–"
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
        probes or "–",
        returns or "–",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
