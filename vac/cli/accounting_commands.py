"""`vac usage` sums accounting records up; `vac apel-sync` and `vac apel-republish` send what isn't new records."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

from vac.accounting import archive, gocdb, history
from vac.cli import common
from vac.cli.common import CommandFailed
from vac.cli.space_commands import prepare
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Status
from vac.text import printable
from vac.vacquery.messages import FactoryStatus, Kind


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    if name == "apel-sync":
        help_text = "default: the month of 24 hours ago"
        parser.add_argument("months", nargs="*", type=_month, metavar="YYYYMM", help=help_text)
    elif name == "gocdb":
        help_text = "print what would be sent, and send nothing"
        parser.add_argument("--dry-run", action="store_true", help=help_text)
    elif name == "apel-republish":
        parser.add_argument("months", nargs="+", type=_month, metavar="YYYYMM")
        help_text = "as records of this site (default: the one they have)"
        parser.add_argument("--site", metavar="NAME", help=help_text)
    elif name == "usage":
        period = parser.add_mutually_exclusive_group()
        help_text = "machines that ended in the last N days (default: 30)"
        days = common.number(float, 1e-6, 36500, "a number of days above 0, at most 36500")
        period.add_argument("--days", type=days, metavar="N", default=30.0, help=help_text)
        period.add_argument("--month", type=_month, metavar="YYYYMM", help="in this month, in UTC")
        parser.add_argument("--by", choices=("type", "fqan", "model"), default="type", help="default: type")
        parser.add_argument("-J", "--json", action="store_true", help="as JSON; times are Unix seconds")
    commands = {"usage": run_usage, "apel-sync": run_sync, "gocdb": run_gocdb, "apel-bundle": run_bundle}
    parser.set_defaults(run=commands.get(name, run_republish))


def run_usage(arguments: argparse.Namespace) -> None:
    """Print sums of the archive's records."""
    state, now = StateDir(common.settings(arguments).state_dir), time.time()
    status = statuses.read(state) or Status()
    models = {one.machinetype: one.model for one in history.read(state)}
    models.update({facts.name: facts.machine_model for facts in status.machinetypes})

    def group(fields: Mapping[str, str]) -> str:
        if arguments.by == "fqan":
            return fields.get("FQAN", "none")
        return fields["Queue"] if arguments.by == "type" else models.get(fields["Queue"], "unknown")

    bounds = (
        archive.month_bounds(arguments.month) if arguments.month else (now - arguments.days * 86400, now + 1)
    )
    found = archive.usage(archive.archived(state, *bounds), group)
    targets: dict[str, float] = {}
    for facts in status.machinetypes:
        name = group({"Queue": facts.name, **({"FQAN": facts.fqan} if facts.fqan else {})})
        targets[name] = targets.get(name, 0.0) + facts.target_share
    total = sum(targets.values())
    all_seconds = sum(one.processor_seconds for one in found.values())
    table = [
        {
            arguments.by: name,
            **found.get(name, archive.Usage()).as_dict(all_seconds),
            "target_share": targets[name] / total if total and name in targets else None,
        }
        for name in sorted({*found, *targets})
    ]
    if arguments.json:
        print(json.dumps({"from": bounds[0], "until": bounds[1], "usage": table}, indent=1))
        return
    if not found:
        print(f"vac usage: no records in {state.apel_archive} of that time", file=sys.stderr)
    width = max((len(printable(str(one[arguments.by]))) for one in table), default=0)
    if sys.stdout.isatty():
        print(f"{arguments.by.upper():<{width}} {' '.join(f'{title:>10}' for title, _, _ in _COLUMNS)}")
    for one in table:
        cells = ("-" if one[key] is None else format(one[key], form) for _, key, form in _COLUMNS)
        print(f"{printable(str(one[arguments.by])):<{width}} {' '.join(f'{cell:>10}' for cell in cells)}")


_COLUMNS = (
    ("MACHINES", "machines", "d"),
    ("WALL-H", "wall_hours", ".1f"),
    ("CORE-H", "processor_hours", ".1f"),
    ("CPU-H", "cpu_hours", ".1f"),
    ("EFFICIENCY", "efficiency", ".1%"),
    ("HS06-H", "hs06_hours", ".1f"),
    ("HEPSCORE-H", "hepscore23_hours", ".1f"),
    ("SHARE", "share", ".1%"),
    ("TARGET", "target_share", ".1%"),
)
"""Headings, names and forms."""


def run_sync(arguments: argparse.Namespace) -> None:
    """Write sync records of these months."""
    settings = common.settings(arguments)
    if not settings.gocdb_sitename:
        print("No sync records: [settings] has no gocdb_sitename, so nothing is sent to APEL from here")
        return
    print("\n".join(archive.sync(StateDir(settings.state_dir), arguments.months, time.time())))


def run_gocdb(arguments: argparse.Namespace) -> None:
    """Publish the space's capacity, if that is configured."""
    configuration, now = common.configuration(arguments), time.time()
    settings = configuration.settings
    if not (settings.gocdb_sitename and settings.gocdb_cert_file and settings.gocdb_key_file):
        print("Nothing is published: that takes gocdb_sitename, gocdb_cert_file and gocdb_key_file")
        return
    result = prepare(settings, Kind.FACTORIES, client="vac-gocdb").run()
    answered = {
        factory: gocdb.Capacity(one.status.max_processors, one.status.max_machines, one.status.max_hs06)
        for factory, answers in result.answers.items()
        for one in answers
        if isinstance(one.status, FactoryStatus)
    }
    try:
        found = gocdb.census(StateDir(settings.state_dir), answered, now)
        if not found:
            raise gocdb.Failed("no factory has answered within a day")
        values = gocdb.properties(found, configuration.machinetypes.values(), now)
        if arguments.dry_run:
            print(json.dumps(values, indent=1))
        else:
            print(f"{len(found)} factories in {gocdb.publish(settings, values)}")
    except (gocdb.Failed, OSError) as error:
        raise CommandFailed(f"vac gocdb: {printable(str(error))}") from None


def run_bundle(arguments: argparse.Namespace) -> None:
    """Put waiting records together."""
    state = StateDir(common.settings(arguments).state_dir)
    for path in archive.bundle(state, time.time()):
        print(path)


def run_republish(arguments: argparse.Namespace) -> None:
    """Copy the archive's records of these months to the outgoing queue."""
    state = StateDir(common.settings(arguments).state_dir)
    sent = archive.republish(state, arguments.months, arguments.site)
    print(f"{len(sent)} records of {' '.join(arguments.months)} copied to {state.apel_outgoing}")


def _month(text: str) -> str:
    try:
        archive.month_bounds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
