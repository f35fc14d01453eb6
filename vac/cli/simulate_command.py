"""`vac simulate [SCENARIO]`: the behaviour of a space, by the factories' own code in virtual time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vac.cli import common
from vac.cli.common import CommandFailed
from vac.simulate import simulate
from vac.simulate.results import draw, lines
from vac.simulate.scenario import MOST_FACTORIES, POLICIES, Scenario, Site, Space, read_scenario


def add_arguments(parser: argparse.ArgumentParser, _: str) -> None:
    """Add the arguments."""
    help_text = "a scenario file; machinetypes that it doesn't have are those of the configuration"
    parser.add_argument("scenario", nargs="?", type=Path, metavar="SCENARIO", help=help_text)
    parser.add_argument("--policy", choices=POLICIES, help="how factories decide")
    number = common.number(int, 1, MOST_FACTORIES, f"an integer from 1 to {MOST_FACTORIES}")
    parser.add_argument("--factories", type=number, metavar="N", help="number of factories")
    parser.add_argument("--hours", type=float, help="duration in virtual time")
    parser.add_argument("--seed", type=int, help="another one makes another run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, with samples, as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a picture of them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Simulate and report."""
    if arguments.plot and arguments.plot.suffix != ".svg":
        raise CommandFailed(f"vac simulate: --plot {arguments.plot}: the name has to end in .svg", 2)
    if arguments.hours is not None and not 0 < arguments.hours <= 10000:
        text = f"vac simulate: --hours {arguments.hours:g}: has to be above 0, at most 10000"
        raise CommandFailed(text, 2)
    options = {name: getattr(arguments, name) for name in ("policy", "factories", "hours", "seed")}
    result = simulate(_scenario(arguments).changed(**options))
    print("\n".join(lines(result)))
    try:
        if arguments.json:
            arguments.json.write_text(json.dumps(result.json(), indent=1, sort_keys=True) + "\n")
        if arguments.plot:
            arguments.plot.write_bytes(draw(result))
    except OSError as error:
        text = f"vac simulate: {error.filename}: can't be written: {error.strerror}"
        raise CommandFailed(text) from None


def _scenario(arguments: argparse.Namespace) -> Scenario:
    def site() -> Site:
        configuration = common.configuration(arguments)
        return configuration.settings, configuration.machinetypes

    if arguments.scenario is not None:
        return read_scenario(arguments.scenario, site)
    settings, machinetypes = site()
    return Scenario(Space(), settings, machinetypes, name="configuration")
