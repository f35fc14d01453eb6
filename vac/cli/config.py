"""`vac config check | show | options`: is the configuration right, what is in force, what can be set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from vac.config import reference
from vac.config.files import Problem
from vac.config.load import Configuration, ConfigurationError, load
from vac.host import facts
from vac.host.facts import HostFacts


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `config` and what belongs to it to the parser of `vac`."""
    parser = subparsers.add_parser("config", help="check or show the configuration, or list all options")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="check|show|options", required=True)
    helps = {
        "check": "tell all that is wrong, by file, section and option; exit status 1 if it can't be used",
        "show": "print the merged configuration, defaults included, secrets left out",
        "options": "print the reference of all options",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=text)
        style = action.add_mutually_exclusive_group()
        style.add_argument("--json", action="store_true", help="for programs")
        if name == "options":
            style.add_argument("--sample", action="store_true", help="as a sample configuration file")


def run(arguments: argparse.Namespace, host: HostFacts | None = None) -> int:
    """Carry out `vac config …`; arguments.config are the paths or None. Returns the exit status."""
    if arguments.action == "options":
        _print(reference.reference_json() if arguments.json else _options(arguments.sample))
        return 0
    host = host or facts.read()
    configuration: Configuration | None = None
    errors: Sequence[Problem] = ()
    try:
        configuration = load(arguments.config, host)
        warnings: Sequence[Problem] = configuration.warnings
    except ConfigurationError as error:
        errors, warnings = error.problems, error.warnings
    if arguments.action == "check":
        _print(
            _check_json(configuration, errors, warnings)
            if arguments.json
            else _check(configuration, errors, warnings, host)
        )
    elif configuration is not None:
        _print(reference.shown_json(configuration) if arguments.json else reference.shown(configuration))
    else:
        print("\n".join(f"error: {problem}" for problem in errors), file=sys.stderr)
    return 1 if errors else 0


def _options(sample: bool) -> str:
    return reference.sample() if sample else reference.reference()


def _check(
    configuration: Configuration | None,
    errors: Sequence[Problem],
    warnings: Sequence[Problem],
    host: HostFacts,
) -> str:
    lines = [f"error: {problem}" for problem in errors] + [f"warning: {problem}" for problem in warnings]
    for name, copy in configuration.copies.items() if configuration else ():
        if trouble := copy.trouble():
            lines.append(f"note: [vacuum_pipe {name}]: {trouble}")
    if host.assumed:
        lines.append(f"note: {facts.ASSUME_PROCESSORS} makes this a host of {host.processors} processors")
    counts = f"{_count(len(errors), 'error')}, {_count(len(warnings), 'warning')}"
    if configuration is None:
        lines.append(f"The configuration can't be used: {counts}.")
    else:
        parts = [
            _count(len(configuration.machinetypes), "machinetype"),
            _count(len(configuration.pipes), "pipe"),
        ]
        lines.append(f"The configuration can be used ({', '.join(parts)}): {counts}.")
    return "\n".join(lines)


def _check_json(
    configuration: Configuration | None, errors: Sequence[Problem], warnings: Sequence[Problem]
) -> str:
    copies = configuration.copies if configuration else {}
    content = {
        "valid": not errors,
        "errors": [vars(problem) for problem in errors],
        "warnings": [vars(problem) for problem in warnings],
        "pipes": {name: copy.trouble() for name, copy in copies.items()},
    }
    return json.dumps(content, indent=2)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print(text: str) -> None:
    """To standard output in the files' own bytes, whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write((text.rstrip("\n") + "\n").encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
