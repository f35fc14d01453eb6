"""What the commands that ask the space have in common: options, the poll, and words for who didn't answer."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from vac.cli import common
from vac.config.settings import Settings
from vac.vacquery.messages import AnyStatus, Kind
from vac.vacquery.poll import PollResult, poll
from vac.vacquery.resolver import Names, Resolver
from vac.vacquery.signed_json import read_key

WATCH_SECONDS = 5.0
UNTRUSTING = "with a vacquery_key_file answers nobody who has another key, or whose clock is 300 s off"
_CLEAR = "\033[H\033[2J"

Rows = Callable[[Sequence[AnyStatus], bool], Iterable[str]]
"""Makes a table of the statuses; True: with colours."""


@dataclass(frozen=True)
class Asking:
    """A question to the space, ready to be asked."""

    kind: Kind
    settings: Settings
    factories: tuple[str, ...]
    space: str
    timeout: float
    key: bytes | None
    names: Names

    def ask(self) -> PollResult:
        """Poll the factories."""
        return poll(
            self.factories,
            self.kind,
            self.space,
            names=self.names,
            port=self.settings.vacquery_port,
            timeout=self.timeout,
            key=self.key,
            client="vac-command",
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options and the FACTORY arguments that all of these commands take."""
    parser.add_argument(
        "factories", nargs="*", metavar="FACTORY", help="ask these only; default: all of them"
    )
    parser.add_argument("-s", "--space", help="name of the space, instead of the configured one")
    parser.add_argument(
        "-t",
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="longest that it may take; udp_timeout_seconds",
    )
    parser.add_argument("-J", "--json", action="store_true", help="the factories' messages, as JSON")
    parser.add_argument("-H", "--include-hs06", action="store_true", help="accepted and ignored")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"again and again, so often; default {WATCH_SECONDS:g}",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds


def run(arguments: argparse.Namespace, kind: Kind, rows: Rows, chosen: Callable[[AnyStatus], bool]) -> int:
    """Ask and print, once or again and again. chosen: which statuses are printed. Returns the exit status."""
    try:
        asking = prepare(arguments, kind)
    except PermissionError:
        raise
    except OSError as error:
        print(f"vac: {error}", file=sys.stderr)
        return 1
    if not arguments.watch:
        return show(asking, asking.ask(), rows, chosen, as_json=arguments.json)
    try:
        while True:
            result = asking.ask()
            if sys.stdout.isatty():
                print(_CLEAR, end="")
            show(asking, result, rows, chosen, as_json=arguments.json)
            sys.stdout.flush()
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return 0


def prepare(arguments: argparse.Namespace, kind: Kind, names: Names | None = None) -> Asking:
    """The question of these arguments. Raises ConfigurationError, or OSError for its key file."""
    settings = common.settings(arguments)
    return Asking(
        kind,
        settings,
        full_names(arguments.factories, settings) or settings.factories,
        arguments.space or settings.vac_space,
        arguments.timeout or settings.udp_timeout_seconds,
        read_key(settings.vacquery_key_file),
        names or Resolver(settings.factory_name),
    )


def full_names(given: Iterable[str], settings: Settings) -> tuple[str, ...]:
    """Factories as people name them: `.` is this one, a bare name gets this one's domain."""
    domain = settings.factory_name.partition(".")[2]
    names = (settings.factory_name if name == "." else name.lower() for name in given)
    return tuple(name if "." in name or not domain else f"{name}.{domain}" for name in names)


def show(
    asking: Asking,
    result: PollResult,
    rows: Rows,
    chosen: Callable[[AnyStatus], bool] = lambda status: True,
    *,
    as_json: bool = False,
    out: TextIO | None = None,
    errors: TextIO | None = None,
) -> int:
    """Print what was answered, and to errors what wasn't. 1 if nobody answered, else 0."""
    out, errors = out or sys.stdout, errors or sys.stderr
    answers = [answer for factory in sorted(result.answers) for answer in result.answers[factory]]
    wanted = [answer for answer in answers if chosen(answer.status)]
    if as_json:
        print(f"[{','.join(json.dumps(answer.message) for answer in wanted)}]", file=out)
    else:
        coloured = out.isatty() and "NO_COLOR" not in os.environ
        for row in rows([answer.status for answer in wanted], coloured):
            print(row, file=out)
    for line in problems(asking, result):
        print(line, file=errors)
    return 0 if result.answers else 1


def problems(asking: Asking, result: PollResult) -> list[str]:
    """In words, which factories didn't answer (in full), and when none did the likely causes."""
    lines = []
    silent = False
    for factory in result.missing:
        if factory in result.unresolved:
            lines.append(f"vac: {factory}: its address can't be found")
        elif factory in result.unusable:
            lines.append(f"vac: {factory}: its answer can't be used: {result.unusable[factory]}")
        elif factory in result.answers:
            lines.append(f"vac: {factory}: only a part of its answer arrived")
        else:
            silent = True
            addresses = ", ".join(asking.names.known(factory))
            lines.append(f"vac: {factory} ({addresses}): no answer within {asking.timeout:g} s")
    if result.dropped:
        counts = ", ".join(f"{count} {reason.value}" for reason, count in result.dropped.items())
        lines.append(f"vac: datagrams that came and were not used: {counts}")
    if silent and not result.answers:
        lines += _likely_causes(asking)
    elif silent and asking.key is not None:
        lines.append(f"vac: A factory {UNTRUSTING}.")
    return lines


def _likely_causes(asking: Asking) -> list[str]:
    port = asking.settings.vacquery_port
    lines = [
        f"A factory answers queries about its own space only ({asking.space} was asked for);",
        f"it {UNTRUSTING};",
        "and it answers its space's factories, its own host and the networks of its vacquery_allow",
        "(without that, those directly connected to it). If this host is elsewhere, run vac on a factory,",
        "or have this network added to vacquery_allow. Otherwise see whether vacd runs there, and whether",
        f"UDP port {port} is open.",
    ]
    return [f"vac: {line}" for line in lines]
