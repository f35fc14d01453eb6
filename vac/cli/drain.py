"""`vac drain` and `vac undrain`: let this factory's machines finish and create no more, and the reverse."""

from __future__ import annotations

import argparse
import sys
import time

from vac.cli import common
from vac.machines import requests
from vac.machines.layout import StateDir
from vac.machines.slots import read_slots

_LOOK_SECONDS = 1.0
_NAMED = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    drain = commands.add_parser("drain", help="create no machines; those that run finish by themselves")
    drain.add_argument(
        "--until", metavar="TIME", help="+2h, 2026-11-21T18:00 or Unix seconds; else until undrain"
    )
    drain.add_argument(
        "--reason", metavar="TEXT", default="", help="shown to whoever asks why nothing is created"
    )
    drain.add_argument(
        "--wait",
        action="store_true",
        help="return when no machine is left; alone, it keeps an order to drain that is in force as it is",
    )
    drain.set_defaults(run=run_drain)
    commands.add_parser("undrain", help="create machines again").set_defaults(run=run_undrain)


def run_drain(arguments: argparse.Namespace) -> int:
    """`vac drain`."""
    now = time.time()
    try:
        until = common.point_in_time(arguments.until, now) if arguments.until else None
    except ValueError as problem:
        print(f"vac drain: --until {problem}", file=sys.stderr)
        return 2
    if until is not None and until <= now:
        print(f"vac drain: --until {arguments.until} is in the past", file=sys.stderr)
        return 2
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    order = requests.Drain(now, until, arguments.reason)
    if arguments.wait and until is None and not arguments.reason:
        order = requests.draining(state, now) or order
    requests.drain(state, order)
    until = order.until
    end = f" until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(until))}" if until else ""
    print(f"{settings.factory_name} drains{end}{common.tell_factory(state)}")
    if arguments.wait:
        _wait(state)
    return 0


def run_undrain(arguments: argparse.Namespace) -> int:
    """`vac undrain`."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    if not requests.undrain(state):
        print(f"{settings.factory_name} was not draining by command")
    else:
        print(f"{settings.factory_name} no longer drains{common.tell_factory(state)}")
    if settings.draining:
        print("but [settings] draining = yes is in its configuration")
    return 0


def _wait(state: StateDir) -> None:
    before = -1
    while left := [name for name, machine in read_slots(state).items() if not machine.finished]:
        if len(left) != before:
            before = len(left)
            print(f"{before} left: {' '.join(name.partition('.')[0] for name in left[:_NAMED])}", flush=True)
        time.sleep(_LOOK_SECONDS)
