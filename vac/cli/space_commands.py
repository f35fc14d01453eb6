"""`vac machines`, `machinetypes` and `factories`: the factories of the space are asked by VacQuery and shown as tables.

The columns are the classic ones, which sites' scripts read. Everything comes from other hosts: what can't be printed
becomes question marks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from vac.cli import common
from vac.cli.common import CommandFailed
from vac.config.machinetype import MODELS
from vac.config.settings import Settings
from vac.machines.layout import StateDir
from vac.text import duration, printable
from vac.vacquery.messages import FactoryStatus, Kind, MachineStatus, MachinetypeStatus
from vac.vacquery.poll import Poll, PollResult, Resolver

WATCH_SECONDS = 5.0
REFUSED_SECONDS = 0.2
SILENT_SECONDS = 600.0
"""Without a heartbeat of the factory's process; peers' clocks differ, too."""
UNTRUSTING = "with a vacquery_key_file answers nobody who has another key, or whose clock is 300 s off"
COLOURS = {"Running": "32", "Starting": "33", "Paused": "35", "Zombie": "35", "Unknown": "35"}
ABORT_COLOUR = "31"
_CLEAR = "\033[H\033[2J"
_KINDS = {"machines": Kind.MACHINES, "factories": Kind.FACTORIES}
_SORT_KEYS: dict[Kind, dict[str, Callable[[Any], Any]]] = {
    Kind.MACHINES: {
        "name": lambda status: status.machine,
        "type": lambda status: (status.machinetype or "", status.machine),
        "state": lambda status: (status.state, status.machine),
        "age": lambda status: status.created_time or math.inf,
        "processors": lambda status: -status.num_processors,
    },
    Kind.FACTORIES: {
        "name": lambda status: status.factory,
        "load": lambda status: -status.load_average,
        "machines": lambda status: -status.running_machines,
        "processors": lambda status: -status.running_processors,
    },
}


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    kind = _KINDS.get(name, Kind.MACHINETYPES)
    parser.set_defaults(run=run, kind=kind, name=None, state=None, sort=None)
    if kind is Kind.MACHINETYPES:
        number = "?" if name == "machinetypes" else None
        parser.add_argument("name", nargs=number, metavar="NAME", help="a machinetype")
    help_text = "ask these only; default: all of them"
    parser.add_argument("factories", nargs="*", metavar="FACTORY", help=help_text)
    seconds = common.number(float, 0.1, 86400, "a number of seconds from 0.1 to 86400")
    parser.add_argument("-s", "--space", help="name of the space, instead of the configured one")
    help_text = "longest that it may take; default: udp_timeout_seconds"
    parser.add_argument("-t", "--timeout", type=seconds, metavar="SECONDS", help=help_text)
    parser.add_argument("-J", "--json", action="store_true", help="print the factories' messages as JSON")
    if kind is Kind.MACHINES:
        parser.add_argument("--state", metavar="STATE", help="show these only, such as running or starting")
        help_text = "show machines of this machinetype only"
        parser.add_argument("--type", dest="name", metavar="NAME", help=help_text)
    if kind in _SORT_KEYS:
        help_text = "order of the rows; default: by factory"
        parser.add_argument("--sort", choices=_SORT_KEYS[kind], help=help_text)
    parser.add_argument("-H", "--include-hs06", action="store_true", help="accepted and ignored")
    help_text, default = f"ask again and again, so often; default {WATCH_SECONDS:g}", WATCH_SECONDS
    parser.add_argument("--watch", nargs="?", type=seconds, const=default, metavar="SECONDS", help=help_text)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print, once or again and again. Return 1 if no factory answered or could be asked."""
    settings, space, timeout = common.settings(arguments), arguments.space, arguments.timeout
    try:
        poll = prepare(settings, arguments.kind, arguments.factories, space, timeout)
    except PermissionError:
        raise
    except OSError as error:
        raise CommandFailed(f"vac: {error}") from None
    if problem := _reason_of_own_silence(settings):
        print(f"vac: {problem}", file=sys.stderr)
        others = [name for name in poll.factories if name != settings.factory_name]
        poll = replace(poll, factories=others)
    if not arguments.watch:
        return _ask_and_show(arguments, settings, poll)
    try:
        while True:
            if sys.stdout.isatty():
                print(_CLEAR, end="")
            _ask_and_show(arguments, settings, poll)
            sys.stdout.flush()
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return 0


def _reason_of_own_silence(settings: Settings) -> str | None:
    """Return the reason why this factory can't answer, as far as this host tells; None if it can, or none is known."""
    state, name = StateDir(settings.state_dir), settings.factory_name
    factory, responder = (state.runs(role) for role in ("factory", "responder"))
    if factory and not responder:
        return f"vacd-responder doesn't run on {name}: its log says why (journalctl -u vacd, or --log-dir's)"
    if factory or responder:
        return None
    ended = factory is False or responder is False
    if ended or (name in settings.factories and _is_refused(settings.vacquery_port)):
        return f"vacd doesn't run on {name}: systemctl start vacd"
    return None


def _is_refused(port: int) -> bool:
    """Return True if the kernel says that nobody listens at this UDP port of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(REFUSED_SECONDS)
        try:
            asking.connect(("127.0.0.1", port))
            asking.send(b"")
            asking.recv(1)
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
    return False


def prepare(
    settings: Settings,
    kind: Kind,
    factories: Iterable[str] = (),
    space: str | None = None,
    timeout: float | None = None,
    client: str = "vac-command",
) -> Poll:
    """Return the poll of these factories (or all) of this space (or the configured one). Raises OSError for the key.

    Of factories' names, `.` is this one, and a bare name gets this one's domain.
    """
    own = settings.factory_name
    domain = own.partition(".")[2]
    full = (own if name == "." else name.lower() for name in factories)
    chosen = tuple(name if "." in name or not domain else f"{name}.{domain}" for name in full)
    poll = Poll.configured(settings, kind, Resolver(own), chosen or settings.factories, client)
    return replace(poll, space=space or poll.space, timeout=timeout or poll.timeout)


def _ask_and_show(arguments: argparse.Namespace, settings: Settings, poll: Poll) -> int:
    """Print the answers, and as errors which factories didn't answer. Return 1 if none did, else 0."""
    result, kind, name = poll.run(), poll.kind, arguments.name
    answers = [answer for factory in sorted(result.answers) for answer in result.answers[factory]]
    wanted = [one for one in answers if name in (None, getattr(one.status, "machinetype", name))]
    if arguments.state:
        state = arguments.state.lower()
        wanted = [one for one in wanted if getattr(one.status, "state", "").lower() == state]
    if arguments.sort:
        key = _SORT_KEYS[kind][arguments.sort]
        wanted.sort(key=lambda answer: key(answer.status))
    if arguments.json:
        print(f"[{','.join(json.dumps(answer.message) for answer in wanted)}]")
    else:
        for row in _rows(kind, name, [answer.status for answer in wanted]):
            print(row)
    for line in problems(poll, result):
        print(f"vac: {line}", file=sys.stderr)
    known = {answer.status.machinetype for answer in answers if isinstance(answer.status, MachinetypeStatus)}
    unknown = bool(known) and name not in (None, *known)
    if unknown:
        names = printable(" ".join(sorted(known)))
        print(f"vac: no factory has a machinetype {name}; there are: {names}", file=sys.stderr)
    if not arguments.json:
        told = (
            _failures_here(arguments, settings)
            if kind is Kind.MACHINETYPES
            else blocked_factories(result, time.time())
        )
        for line in told:
            print(line, file=sys.stdout if sys.stdout.isatty() else sys.stderr)
    return int(unknown or not result.answers)


def _rows(kind: Kind, name: str | None, statuses: Sequence[Any]) -> list[str]:
    """Return the table of these answers; on a terminal only, it has a heading and colours."""
    terminal = sys.stdout.isatty()
    colour = terminal and "NO_COLOR" not in os.environ
    heading = [_HEADERS[kind]] if terminal and kind in _HEADERS else []
    if kind is Kind.MACHINES:
        now = time.time()
        return heading + [_machine_row(status, now, colour) for status in statuses]
    if kind is Kind.FACTORIES:
        return heading + factory_rows(statuses)
    return _type_rows(statuses, colour) if name is None else machinetype_rows(statuses, colour)


def problems(poll: Poll, result: PollResult) -> list[str]:
    """Say which factories didn't answer in full, and if none did, the likely causes."""
    lines = []
    silent = False
    for factory in result.missing:
        if factory in result.unresolved:
            lines.append(f"{factory}: its address can't be found")
        elif factory in result.unusable:
            lines.append(f"{factory}: its answer can't be used: {result.unusable[factory]}")
        elif factory in result.answers:
            lines.append(f"{factory}: only a part of its answer arrived")
        else:
            silent = True
            addresses = ", ".join(poll.names.known(factory))
            lines.append(f"{factory} ({addresses}): no answer within {poll.timeout:g} s")
    if result.dropped:
        counts = ", ".join(f"{count} {reason.value}" for reason, count in result.dropped.items())
        lines.append(f"datagrams that came and were not used: {counts}")
    if silent and not result.answers:
        lines += [
            f"A factory answers queries about its own space only ({poll.space} was asked for);",
            f"it {UNTRUSTING};",
            "and it answers its space's factories, its own host and the networks of its vacquery_allow",
            "(without that, those directly connected to it). If this host is elsewhere, run vac on a factory,",
            "or have this network added to vacquery_allow. Otherwise see whether vacd runs there, and whether",
            f"UDP port {poll.port} is open.",
        ]
    elif silent and poll.key is not None:
        lines.append(f"A factory {UNTRUSTING}.")
    return lines


def blocked_factories(result: PollResult, now: float) -> Iterator[str]:
    """Yield which factories create nothing and why; those that don't answer are problems()."""
    for factory in sorted(result.answers):
        for status in (answer.status for answer in result.answers[factory]):
            if isinstance(status, FactoryStatus):
                silent = now - status.factory_heartbeat_time
                if status.factory_heartbeat_time and silent > SILENT_SECONDS:
                    yield f"{factory}: its vacd-factory has been silent for {duration(silent)}, vacd-responder answers"
                elif status.creation_blocked:
                    yield printable(f"{factory}: nothing is created: {status.creation_blocked}")


def _failures_here(arguments: argparse.Namespace, settings: Settings) -> Iterator[str]:
    """Yield failures of this factory's creations and pipes, if it is among those asked and they can be read."""
    from vac.machines import status as statuses

    status = statuses.read(StateDir(settings.state_dir))
    if status is None or arguments.factories or arguments.space not in (None, status.space):
        return
    name = arguments.name
    for line in common.creation_failures(status, name, time.time()):
        yield f"On {status.factory}, {line}"
    for pipe, trouble in status.pipes.items():
        if trouble and (name is None or name.startswith(f"{pipe}-")):
            yield printable(f"On {status.factory}, pipe {pipe}: {trouble}")


_HEADERS = {
    Kind.MACHINES: (
        f"{'MACHINE':<15} {'MACHINETYPE':<14}   {'STATE':<9}{'CPUS':>4} {'':2} {'LIFE AND CPU USE':<21}{'RECENT':>6}"
    ),
    Kind.FACTORIES: "FACTORY PROCESSORS MACHINES LOAD FREE-ROOT-KB FREE-STATE-KB MEMORY-KB VERSION",
}
"""Headings, on a terminal only: programs read bare columns."""


def short_host(name: str) -> str:
    """Return the first label of a host name."""
    return printable(name.partition(".")[0])


def _machine_row(status: MachineStatus, now: float, colour: bool) -> str:
    name = short_host(status.machine)
    machinetype = printable(status.machinetype or "----------")
    state = f"  {printable(status.state):<9}"
    model = MODELS.get(status.machine_model or "")
    recent = f"{status.cpu_percentage:5.1f}%" if status.state == "Running" else " " * 6
    aborted = colour and status.state == "Shut down" and _is_abort(status.shutdown_message)
    code = ABORT_COLOUR if aborted else COLOURS.get(status.state, "")
    return (
        f"{name:<15} {machinetype:<14.14} {_coloured(state, code if colour else '')}  "
        f"{status.num_processors:2d} {model.code if model else '??'} {_machine_details(status, now):<21}{recent}"
    )


def _machine_details(status: MachineStatus, now: float) -> str:
    if status.state == "Running":
        started = status.started_time or now
        lived = (status.heartbeat_time or 0) - started
        percent = 100.0 * status.cpu_seconds / lived if lived > 0 else 0.0
        return f"{(now - started) / 3600:5.2f} hrs {percent:0.1f}%"
    if status.state == "Starting":
        return f" {(now - (status.created_time or now)) / 60:0.2f} mins"
    if status.state == "Shut down" and status.shutdown_message:
        return f'"{printable(status.shutdown_message[:19])}"'
    return ""


def _is_abort(message: str | None) -> bool:
    """Return True if the shutdown message tells of an abort. The scheduler is imported only where this is shown."""
    from vac.scheduling.backoff import is_abort

    return is_abort(message)


def _coloured(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if code else text


def _end(status: MachinetypeStatus, colour: bool) -> str:
    """Return when and with which message the last machine ended."""
    when = "-"
    if status.shutdown_time is not None:
        when = time.strftime("%d %b %H:%M:%S", time.localtime(status.shutdown_time))
    code = ABORT_COLOUR if colour and _is_abort(status.shutdown_message) else ""
    return _coloured(f'{when} "{printable(status.shutdown_message or "-")}"', code)


def machinetype_rows(answers: Sequence[MachinetypeStatus], colour: bool = False) -> list[str]:
    """Return a row per factory, about one machinetype."""
    width = max((len(short_host(status.factory)) for status in answers), default=0)
    return [
        f"{short_host(status.factory):<{width}} {int(status.running_processors):2d} "
        f"{status.running_hs06:5.1f} {_end(status, colour)}"
        for status in answers
    ]


def _type_rows(answers: Iterable[MachinetypeStatus], colour: bool = False) -> list[str]:
    """Return a heading and a row per machinetype with the totals of the space and its latest end anywhere."""
    by_type: dict[str, list[MachinetypeStatus]] = {}
    for status in answers:
        by_type.setdefault(printable(status.machinetype), []).append(status)
    width = max(map(len, (*by_type, "MACHINETYPE")))
    table = [
        f"{'MACHINETYPE':<{width}} FACTORIES MACHINES PROCESSORS      HS06 YOUNG LAST END ({time.strftime('%Z')})"
    ]
    for name, mine in sorted(by_type.items()):
        last = max(mine, key=lambda status: status.shutdown_time or 0)
        table.append(
            f"{name:<{width}} {len(mine):9d} {sum(status.running_machines for status in mine):8d} "
            f"{sum(int(status.running_processors) for status in mine):10d} "
            f"{sum(status.running_hs06 for status in mine):9.1f} "
            f"{sum(status.num_before_fizzle for status in mine):5d} {_end(last, colour)}"
        )
    return table


def factory_rows(answers: Sequence[FactoryStatus]) -> list[str]:
    """Return a row per factory."""
    width = max((len(short_host(status.factory)) for status in answers), default=0)
    return [
        f"{short_host(status.factory):<{width}} "
        f"{status.running_processors:2d}/{status.max_processors} "
        f"{status.running_machines:2d}/{status.max_machines} {status.load_average:6.2f} "
        f"{status.root_disk_avail_kb:9d} {status.daemon_disk_avail_kb:9d} "
        f'{status.mem_used_kb:8d}/{status.mem_total_kb} "{printable(status.version)}"'
        for status in answers
    ]
