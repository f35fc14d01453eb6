"""`vac factories`: the factories of the space with their load, disk and memory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vac.cli import space, tables
from vac.vacquery.messages import AnyStatus, FactoryStatus, Kind


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `factories` to the parser of `vac`."""
    text = (
        "show the space's factories: processors and machines in use, load, KB free on / and state_dir, memory"
    )
    parser = subparsers.add_parser("factories", help="show the space's factories", description=text)
    space.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `vac factories`. Returns the exit status as for `vac machines`."""
    return space.run(arguments, Kind.FACTORIES, rows, lambda status: True)


def rows(statuses: Sequence[AnyStatus], colour: bool) -> list[str]:
    """The table; it has no colours."""
    return tables.factory_rows([status for status in statuses if isinstance(status, FactoryStatus)])
