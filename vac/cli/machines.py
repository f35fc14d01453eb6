"""`vac machines`: the slots of all factories of the space, with the machine that each holds or held last."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from vac.cli import space, tables
from vac.vacquery.messages import AnyStatus, Kind, MachineStatus


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `machines` to the parser of `vac`."""
    text = "show every slot of the space's factories and its machine"
    parser = subparsers.add_parser("machines", help=text, description=text)
    space.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `vac machines`. Returns the exit status: 1 if no factory answered or could be asked."""
    return space.run(arguments, Kind.MACHINES, rows, lambda status: True)


def rows(statuses: Sequence[AnyStatus], colour: bool) -> list[str]:
    """The table as of now."""
    machines = [status for status in statuses if isinstance(status, MachineStatus)]
    return tables.machine_rows(machines, time.time(), colour)
