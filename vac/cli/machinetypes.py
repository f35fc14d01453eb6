"""`vac machinetypes`: what runs of each machinetype in the space, or of one on each factory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vac.cli import common, space, tables
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

    def rows(statuses: Sequence[AnyStatus], colour: bool) -> list[str]:
        types = [status for status in statuses if isinstance(status, MachinetypeStatus)]
        return tables.type_rows(types, colour) if name is None else tables.machinetype_rows(types, colour)

    code = space.run(arguments, Kind.MACHINETYPES, rows, chosen)
    if not arguments.watch:
        _tell_pipes(arguments)
    return code


def _tell_pipes(arguments: argparse.Namespace) -> None:
    """What is the matter with this host's pipes: why machinetypes may be missing or old."""
    status = statuses.read(StateDir(common.settings(arguments).state_dir))
    for pipe, trouble in (status.pipes if status else {}).items():
        if trouble and _matches(arguments.name, pipe):
            print(tables.printable(f"vac: pipe {pipe}: {trouble}"), file=sys.stderr)


def _matches(machinetype: str | None, pipe: str) -> bool:
    """Is it about all machinetypes, or one that would come from this pipe?"""
    return machinetype is None or machinetype.startswith(f"{pipe}-")
