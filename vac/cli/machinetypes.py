"""`vac machinetypes`: what runs of each machinetype in the space, or of one on each factory."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

from vac.cli import common, space, tables, why
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.vacquery.messages import AnyStatus, Kind, MachinetypeStatus


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `machinetypes`, and the classic `machinetype NAME`, to the parser of `vac`."""
    text = "show what runs of every machinetype in the space; with NAME, of that one on each factory"
    for name, count in (("machinetypes", "?"), ("machinetype", None)):
        parser = subparsers.add_parser(name, help=text, description=text)
        parser.add_argument("name", nargs=count, metavar="NAME", help="a machinetype")
        space.add_options(parser)
        parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `vac machinetypes`. Returns the exit status as for `vac machines`."""
    name = arguments.name

    def chosen(status: AnyStatus) -> bool:
        return name is None or (isinstance(status, MachinetypeStatus) and status.machinetype == name)

    def rows(found: Sequence[AnyStatus], colour: bool) -> list[str]:
        types = [status for status in found if isinstance(status, MachinetypeStatus)]
        table = tables.type_rows(types, colour) if name is None else tables.machinetype_rows(types, colour)
        if sys.stdout.isatty():
            return [*table, *_failures_here(arguments)]
        for line in _failures_here(arguments):
            print(line, file=sys.stderr)
        return table

    return space.run(arguments, Kind.MACHINETYPES, rows, chosen)


def _failures_here(arguments: argparse.Namespace) -> Iterator[str]:
    """What fails on this factory, creations and pipes, if it is among those that are asked and can be read."""
    status = statuses.read(StateDir(common.settings(arguments).state_dir))
    if status is None or arguments.factories or arguments.space not in (None, status.space):
        return
    for line in why.failures(status, arguments.name, time.time()):
        yield f"On {status.factory}, {line}"
    for pipe, trouble in status.pipes.items():
        if trouble and (arguments.name is None or arguments.name.startswith(f"{pipe}-")):
            yield tables.printable(f"On {status.factory}, pipe {pipe}: {trouble}")
