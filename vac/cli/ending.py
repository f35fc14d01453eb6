"""`vac finish NAME` and `vac destroy NAME`: end one of this factory's machines, gently or at once."""

from __future__ import annotations

import argparse
import sys

from vac.cli import common
from vac.machines import requests
from vac.machines.layout import StateDir


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    for action, words in (
        ("finish", "tell a machine to end: its shutdown time becomes now + grace_secs"),
        ("destroy", "end a machine at once; what it did is accounted"),
    ):
        command = commands.add_parser(action, help=words)
        command.add_argument(
            "machine",
            metavar="NAME",
            help="host name of the machine, the short form will do; or its uuid, which never means its successor",
        )
        command.set_defaults(run=run, action=action)


def run(arguments: argparse.Namespace) -> int:
    """Leave the request and wake the factory; 1 if there is no such machine."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    machine = common.find_machine(state, arguments.machine)
    if machine is None or machine.finished:
        what = "has ended already" if machine else f"is no machine of {settings.factory_name}"
        print(
            f"vac {arguments.action}: {arguments.machine} {what}; `vac machines` lists them", file=sys.stderr
        )
        return 1
    requests.ask(state, requests.Request(arguments.action, machine.name, machine.uuid))
    told = common.tell_factory(state)
    print(f"{machine.name}: asked to {arguments.action} machine {machine.uuid}{told}")
    return 0
