"""`vac apel-sync` and `vac apel-republish`: what is sent to the accounting service besides new records."""

from __future__ import annotations

import argparse
import sys
import time

from vac.accounting import sync
from vac.cli import common
from vac.machines.layout import StateDir


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    if name == "apel-sync":
        help_text = "default: the month of 24 hours ago"
        parser.add_argument("months", nargs="*", type=_month, metavar="YYYYMM", help=help_text)
        parser.set_defaults(run=run_sync)
    else:
        parser.add_argument("months", nargs="+", type=_month, metavar="YYYYMM")
        help_text = "as records of this site (default: the one they have)"
        parser.add_argument("--site", metavar="NAME", help=help_text)
        parser.set_defaults(run=run_republish)


def run_sync(arguments: argparse.Namespace) -> int:
    """Write sync records of these months."""
    settings = common.settings(arguments)
    if not settings.gocdb_sitename:
        print("No sync records: [settings] has no gocdb_sitename, so nothing is sent to APEL from here")
        return 0
    try:
        print("\n".join(sync.sync(StateDir(settings.state_dir), arguments.months, time.time())))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_republish(arguments: argparse.Namespace) -> int:
    """Copy the archive's records of these months to the outgoing queue."""
    state = StateDir(common.settings(arguments).state_dir)
    try:
        sent = sync.republish(state, arguments.months, arguments.site)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(sent)} records of {' '.join(arguments.months)} copied to {state.apel_outgoing}")
    return 0


def _month(text: str) -> str:
    try:
        sync.month_bounds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
