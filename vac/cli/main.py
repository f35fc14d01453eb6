"""The command `vac`: what a site's administrator asks of a factory and of its space."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vac
from vac.config.load import ConfigurationError

_MODULES = (
    "machines",
    "machinetypes",
    "factories",
    "machine",
    "why",
    "drain",
    "ending",
    "doctor",
    "config",
    "pipe",
    "simulate",
    "apel",
    "signature",
    "proxy",
    "user_data",
)


class _Command(argparse.ArgumentParser):
    """A sub-command's parser: --config may stand before the command or after it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument(
            "--config",
            action="append",
            type=Path,
            metavar="PATH",
            dest="more_config",
            default=argparse.SUPPRESS,
            help="as before the command",
        )


def parser() -> argparse.ArgumentParser:
    """The command line of `vac`: every module of the table adds its own sub-commands."""
    top = argparse.ArgumentParser(prog="vac", description=__doc__)
    top.add_argument("--version", action="version", version=f"Vac {vac.__version__}")
    top.add_argument(
        "--config",
        action="append",
        type=Path,
        metavar="PATH",
        help="a configuration file, or a directory of *.conf, instead of /etc/vac.d and the others; repeatable",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Command)
    for name in _MODULES:
        importlib.import_module(f"vac.cli.{name}").add_parser(commands)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 not done or bad news, 2 used wrongly."""
    arguments = parser().parse_args(words)
    arguments.config = [*(arguments.config or ()), *getattr(arguments, "more_config", ())] or None
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"vac: {problem}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"vac: {error.filename or error}: permission denied (try as root)", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(
            f"vac: {error.filename}: there is no such file or directory (has vacd never run here?)",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code
