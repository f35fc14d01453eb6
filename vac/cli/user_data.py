"""`vac user-data MACHINETYPE`: the user_data that a machine of this type would get now."""

from __future__ import annotations

import argparse
import sys
import time
import uuid

from vac.cli import common
from vac.machines.layout import StateDir, slot_name


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    text = "print the user_data that a machine of this type would get now, its uuid being made up"
    command = commands.add_parser("user-data", help=text, description=text)
    command.add_argument("machinetype", metavar="MACHINETYPE")
    secrets_help = (
        "with the values of user_data_option_XXX, user_data_file_XXX and the proxy, instead of their sizes"
    )
    command.add_argument("--secrets", action="store_true", help=secrets_help)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it byte for byte; 1 with the reason if there is none. Libraries are loaded here: see `vac proxy-init`."""
    from vac.context.user_data import (
        ContextError,
        ContextRequest,
        Templates,
        load_template,
        masked,
        substitute,
        values,
    )

    configuration = common.configuration(arguments)
    kind, settings = configuration.machinetypes.get(arguments.machinetype), configuration.settings
    if kind is None:
        known = " ".join(configuration.machinetypes) or "none"
        print(
            f"vac: no machinetype {arguments.machinetype} is configured; there are: {known}", file=sys.stderr
        )
        return 1
    now = time.time()
    wanted = ContextRequest(
        kind,
        settings,
        slot_name(settings.factory_name, 0),
        str(uuid.uuid4()),
        StateDir(settings.state_dir).machinetype(kind.pipe or kind.name),
        now,
        now + kind.max_wallclock_seconds,
    )
    try:
        template, url = load_template(wanted, Templates())
        found = values(wanted, url)
        content = substitute(template, found if arguments.secrets else masked(found))
    except ContextError as error:
        print(f"vac: {kind.name}: {error}", file=sys.stderr)
        return 1
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    return 0
