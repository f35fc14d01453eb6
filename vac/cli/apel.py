"""`vac apel-sync` and `vac apel-republish`: what the accounting service is sent besides new records."""

from __future__ import annotations

import argparse
import sys
import time

from vac.accounting import sync
from vac.cli import common
from vac.config.settings import Settings
from vac.machines.layout import StateDir


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to the parser of `vac`."""
    counts = subparsers.add_parser(
        "apel-sync",
        help="send how many jobs a month had",
        description="Write sync records to apel-outgoing: how many jobs each month had, by their ends (UTC).",
    )
    counts.add_argument(
        "months", nargs="*", type=_month, metavar="YYYYMM", help="default: the month of 24 hours ago"
    )
    counts.set_defaults(run=run, republish=False)
    again = subparsers.add_parser(
        "apel-republish",
        help="send a month's job records again",
        description="Copy the archive's job records of these months to apel-outgoing, to be sent once more.",
    )
    again.add_argument("months", nargs="+", type=_month, metavar="YYYYMM")
    again.add_argument("--site", metavar="NAME", help="as records of this site (default: the one they have)")
    again.set_defaults(run=run, republish=True)


def run(arguments: argparse.Namespace) -> int:
    """Carry out one of the two; arguments.config are the paths or None. Returns the exit status.

    Raises ConfigurationError if not even the state directory can be known.
    """
    try:
        print("\n".join(carry_out(arguments, common.settings(arguments), time.time())))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def carry_out(arguments: argparse.Namespace, settings: Settings, now: float) -> list[str]:
    """Do it; returns what to tell. Raises OSError."""
    state = StateDir(settings.state_dir)
    if arguments.republish:
        sent = sync.republish(state, arguments.months, arguments.site)
        return [f"{len(sent)} records of {' '.join(arguments.months)} copied to {state.apel_outgoing}"]
    if not settings.gocdb_sitename:
        return ["No sync records: [settings] has no gocdb_sitename, so nothing is sent to APEL from here"]
    return sync.sync(state, arguments.months, now)


def _month(text: str) -> str:
    try:
        sync.month_bounds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
