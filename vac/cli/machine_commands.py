"""`vac machine`, `logs`, `exec` and `history`: this factory's machines, those that run and those that have ended.

Consoles and joboutputs are the machines' own: read without following links, and harmless on a terminal. A machine's
programs may be hostile: a command that runs in it gets no right, terminal or descriptor that the machine doesn't have.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import fcntl
import getpass
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import syslog
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vac.accounting import history
from vac.cli import common
from vac.cli.common import CommandFailed
from vac.config.machinetype import VM_MODELS
from vac.config.settings import Settings
from vac.drivers.base import EngineUnavailable
from vac.drivers.processes import launch
from vac.host.cgroups import CgroupError, open_groups
from vac.host.syscall_filter import compiled
from vac.machines import files
from vac.machines import status as statuses
from vac.machines.layout import StateDir, slot_address, slot_number
from vac.machines.machine import Machine
from vac.machines.outputs import read_contacts, read_details, shutdown_message
from vac.machines.slots import find_ended, read_slots
from vac.machines.status import Status
from vac.text import duration, escaped, local_time, printable

LOOK_SECONDS = 0.5
LOGGED_BYTES = 4 * 1024 * 1024
"""Looked through for the last lines of a log; the middle of a running machine's may be a hole."""
CONSOLE = "console.log"
_LINES = 100
_LAST_LINES = 10
"""Of the console of a machine that failed, shown with it."""
_MOST_OUTPUTS = 50
_MOST_LOGGED_BYTES = 65536
"""Of exec.log."""
_TIMES = ("created", "started", "ended", "last seen alive", "must end by")


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    if name == "history":
        help_text = "those that ended since then: 12h ago, or a time as drain takes it (default: 1d)"
        parser.add_argument("--since", metavar="TIME", default="1d", help=help_text)
        parser.add_argument("--type", metavar="MACHINETYPE", help="show machines of this type only")
        help_text = "show aborts only, and machines whose command failed"
        parser.add_argument("--failed", action="store_true", help=help_text)
    else:
        help_text = "host name of the machine, short or in full; for earlier ones the uuid or the name of the directory"
        parser.add_argument("machine", metavar="NAME", help=help_text)
    if name == "exec":
        help_text = "and its arguments (default: sh)"
        parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=help_text)
    elif name == "logs":
        help_text = "a file in the machine's joboutputs; default: what it printed on its console"
        parser.add_argument("file", nargs="?", metavar="FILE", help=help_text)
        help_text = "go on until the machine has ended"
        parser.add_argument("-f", "--follow", action="store_true", help=help_text)
        help_text = f"begin with the last so many, of at most 4 MiB (default: {_LINES})"
        parser.add_argument("-n", "--lines", type=int, metavar="LINES", default=_LINES, help=help_text)
    else:
        parser.add_argument("-J", "--json", action="store_true", help="as JSON; times are Unix seconds")
    commands = {"machine": run_machine, "logs": run_logs, "exec": run_exec, "history": run_history}
    parser.set_defaults(run=commands[name])


def in_slot(state: StateDir, name: str) -> Machine | None:
    """Return the machine in the slot of this host name, short or in full, or the slots' one with this uuid."""
    for machine in read_slots(state).values():
        if name and name.lower() in (machine.name, machine.name.partition(".")[0], machine.uuid):
            return machine
    return None


def find(arguments: argparse.Namespace) -> tuple[Machine, Settings]:
    """Return the machine that is asked for, and this factory's settings. Raises CommandFailed if there is none."""
    settings = common.settings(arguments)
    state, name = StateDir(settings.state_dir), arguments.machine
    machine = in_slot(state, name) or find_ended(state, name)
    if machine is None:
        hint = "`vac machines` and `vac history` list them"
        raise CommandFailed(f"vac: {settings.factory_name} has no machine {name}; {hint}")
    return machine, settings


def run_machine(arguments: argparse.Namespace) -> None:
    """Print what is known of a machine."""
    machine, settings = find(arguments)
    state = StateDir(settings.state_dir)
    present = in_slot(state, machine.uuid or machine.name)
    facts = known_of(machine, statuses.read(state) if present else None, settings.factory_name)
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            print(f"{name:18} {_words(name, value)}")


def known_of(machine: Machine, status: Status | None, factory: str) -> dict[str, object]:
    """Return facts of this factory's machine by name, in the order of interest; what isn't known is left out."""
    end = history.ended(machine) if machine.finished and machine.started_time is not None else None
    facts: dict[str, object] = {
        "machine": machine.name,
        "slot": slot_number(factory, machine.name),
        "machinetype": machine.machinetype,
        "machine model": machine.model,
        "uuid": machine.uuid,
        "state": statuses.state_of(machine.name, machine, status),
        "processors": machine.processors,
        "created": machine.created_time,
        "started": machine.started_time,
        "ended": end and end.ended,
        "end": end and end.words,
        "exit code": machine.exit_code,
        "signal": machine.signal,
        "shutoff reason": machine.shutoff_reason,
        "last seen alive": None if machine.finished else machine.heartbeat_time,
        "must end by": None if machine.finished else machine.shutdown_time,
        "shutdown message": shutdown_message(machine),
        "CPU seconds": machine.cpu_seconds,
        "CPU percent": machine.cpu_percent,
        "joules": None if machine.joules is None else round(machine.joules),
        "memory MiB": None if machine.finished else _mib(machine.memory_bytes),
        "peak memory MiB": _mib(machine.peak_memory_bytes),
        "bytes received": machine.network_received_bytes,
        "bytes sent": machine.network_sent_bytes,
        "accounting FQAN": machine.fqan,
        "directory": str(machine.directory),
        "machinefeatures": _features(machine, "machinefeatures"),
        "jobfeatures": _features(machine, "jobfeatures"),
        "joboutputs": _outputs(machine),
    }
    told = {name: value for name, value in read_details(machine).items() if name not in facts}
    facts = {**facts, **told, "contacts": read_contacts(machine)}
    if end is not None and end.failed:
        facts["console's end"] = _last_lines(machine)
    return {name: value for name, value in facts.items() if value not in (None, "", {}, [])}


def _mib(used_bytes: int | None) -> int | None:
    return None if used_bytes is None else used_bytes >> 20


def _features(machine: Machine, kind: str) -> dict[str, str]:
    directory = machine.directory / kind
    if not directory.is_dir():
        return {}
    return {path.name: path.read_text(errors="replace").strip() for path in sorted(directory.iterdir())}


def _outputs(machine: Machine) -> list[str]:
    """Return names only: what is in these files is the machine's."""
    directory = machine.directory / "joboutputs"
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    more = [f"and {len(names) - _MOST_OUTPUTS} more"] if len(names) > _MOST_OUTPUTS else []
    return names[:_MOST_OUTPUTS] + more


def _last_lines(machine: Machine) -> list[str]:
    try:
        with files.open_untrusted(machine.directory, CONSOLE) as (log, found):
            start = _start_of_lines(log, found.st_size, _LAST_LINES)
            return os.pread(log, 65536, start).decode("utf-8", "replace").splitlines()
    except (FileNotFoundError, files.Unreadable):
        return []


def _contact_line(entry: Mapping[str, object]) -> str:
    direction = "from {address} to own port {port}" if entry["incoming"] else "to {address} port {port}"
    seen = local_time(float(str(entry["last_seen"])))
    return "\n" + escaped(f"  {entry['protocol']} {direction.format(**entry)}, last seen {seen}")


def _words(name: str, value: object) -> str:
    if name in _TIMES and isinstance(value, (int, float)):
        return local_time(value)
    if isinstance(value, Mapping):
        return " ".join(escaped(f"{key}={content}") for key, content in value.items())
    if isinstance(value, list) and name == "contacts":
        return "".join(map(_contact_line, value))
    if isinstance(value, list) and name == "console's end":
        return "".join(f"\n  {_escaped_lines(line)}" for line in value)
    if isinstance(value, list):
        return " ".join(map(printable, value))
    return escaped(str(value))


def _escaped_lines(text: str) -> str:
    """Return the text with all but line ends and tabs escaped that a terminal would obey."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(escaped, line.split("\t"))) for line in lines)


def run_logs(arguments: argparse.Namespace) -> None:
    """Print a machine's console or a file of its joboutputs."""
    machine, settings = find(arguments)
    path = machine.directory / (f"joboutputs/{arguments.file}" if arguments.file else CONSOLE)
    try:
        if machine.model == "docker" and not arguments.file and not path.exists():
            try:
                return _print(_from_engine(arguments, machine, settings))
            except EngineUnavailable:  # it may have just ended: then its console is kept before it is removed
                if not path.exists():
                    raise
        _print(_from_file(arguments, machine))
    except FileNotFoundError:
        missing = arguments.file or f"{CONSOLE} (yet)"
        raise CommandFailed(printable(f"vac logs: {machine.name} has no {missing}")) from None
    except (files.Unreadable, EngineUnavailable) as error:
        raise CommandFailed(printable(f"vac logs: {machine.name}: {error}")) from None


def _from_engine(arguments: argparse.Namespace, machine: Machine, settings: Settings) -> Iterator[bytes]:
    """Yield what a container has printed that its engine still has. Raises EngineUnavailable."""
    from vac.drivers.docker.docker_api import Connection

    container = read_details(machine).get("container", machine.name)
    with Connection(settings.docker_host).stream_client(86400.0) as client:
        yield from client.logs(container, stream=True, follow=arguments.follow, tail=max(0, arguments.lines))


def _from_file(arguments: argparse.Namespace, machine: Machine) -> Iterator[bytes]:
    """Yield the file's last lines and, if they are wanted, those that come. Raises Unreadable and FileNotFoundError."""
    directory, name = machine.directory, arguments.file or CONSOLE
    if arguments.file:
        directory = directory / "joboutputs"
    start: int | None = None
    while True:
        with files.open_untrusted(directory, name) as (log, found):
            place = _start_of_lines(log, found.st_size, arguments.lines) if start is None else start
            while True:
                over = not arguments.follow or (machine.directory / "finished").exists()
                while piece := os.pread(log, 65536, place):
                    place += len(piece)
                    yield piece
                if over:
                    return
                time.sleep(LOOK_SECONDS)
                if (directory / name).lstat().st_ino != found.st_ino:
                    break
        start = 0


def _start_of_lines(log: int, size: int, lines: int) -> int:
    """Return where the last lines begin."""
    first = max(0, size - LOGGED_BYTES)
    end = os.pread(log, size - first, first)
    place = len(end) - end.endswith(b"\n") if lines > 0 else -1
    for _ in range(lines):
        place = end.rfind(b"\n", 0, place) if place >= 0 else place
    return first + place + 1 if lines > 0 else size


def _print(pieces: Iterator[bytes]) -> None:
    """Write pieces of a log, each at once: as they are into a file, harmless on a terminal."""
    decode, kept = codecs.getincrementaldecoder("utf-8")("replace").decode, ""
    for piece in pieces:
        if sys.stdout.isatty():
            text = kept + decode(piece)
            kept = "\r" if text.endswith("\r") else ""  # perhaps half a line end
            sys.stdout.write(_escaped_lines(text[: len(text) - len(kept)]))
        else:
            sys.stdout.buffer.write(piece)
        sys.stdout.flush()


def run_exec(arguments: argparse.Namespace) -> int:
    """Run a command in a running machine and return its exit status."""
    machine, settings = find(arguments)
    command = [word for place, word in enumerate(arguments.command) if place or word != "--"] or ["sh"]
    try:
        if machine.finished or machine.started_time is None:
            raise EngineUnavailable("it doesn't run")
        words = _entering(machine, settings, command)
        _note_command(machine, command)
        return _run_on_terminal(words)
    except (EngineUnavailable, CgroupError) as error:
        raise CommandFailed(f"vac exec: {machine.name}: {error}") from None


def _entering(machine: Machine, settings: Settings, command: list[str]) -> list[str]:
    """Return the command line that runs it in the machine. Raises EngineUnavailable, CgroupError and OSError."""
    if machine.model in VM_MODELS:
        number = slot_number(settings.factory_name, machine.name)
        raise EngineUnavailable(
            f"it is a VM: try `virsh -c {settings.libvirt_uri} console {machine.name}`, or ssh to "
            f"{'its address' if number is None else slot_address(number)} with the key of root_public_key"
        )
    if machine.model == "docker":
        podman = "podman" in settings.docker_host
        name, option = ("podman", "--url") if podman and shutil.which("podman") else ("docker", "--host")
        if shutil.which(name) is None:
            raise EngineUnavailable(
                f"the program {name} isn't installed, which runs commands in its containers"
            )
        terminal, container = "-it" if sys.stdin.isatty() else "-i", read_details(machine).get("container")
        return [name, option, settings.docker_host, "exec", terminal, container or machine.name, *command]
    groups, group = open_groups(settings.factory_name), f"{machine.name}_{machine.uuid}"
    process = launch.first_process(groups.processes(group))
    if process is None:
        raise EngineUnavailable("none of its processes is the first of a PID namespace")
    environment = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    variables = dict(line.split("=", 1) for line in environment if "=" in line)
    plan = {
        "pid": process,
        "procs_files": [str(path) for path in groups.procs_files(group)],
        "filter": compiled(False).hex(),
        "environment": {**variables, "TERM": os.environ.get("TERM", "dumb")},
        "command": command,
    }
    return [sys.executable, "-I", "-S", launch.__file__, json.dumps(plan)]


def _note_command(machine: Machine, command: list[str]) -> None:
    """Log who runs what, in the machine's exec.log and by syslog."""
    who = os.environ.get("SUDO_USER") or getpass.getuser()
    line = escaped(f"{local_time(time.time())} {who}: {shlex.join(command)}").encode(errors="replace")
    files.append_line(machine.directory / "exec.log", line, _MOST_LOGGED_BYTES)
    syslog.openlog("vac", facility=syslog.LOG_AUTHPRIV)
    text = f"{who} runs in {machine.name} ({machine.uuid}): {shlex.join(command)}"
    syslog.syslog(syslog.LOG_NOTICE, escaped(text))


def _run_on_terminal(words: list[str]) -> int:
    """Run it with a terminal of its own if we have one: ours would let the machine type commands into it.

    Without, it has no controlling terminal. Return the exit status.
    """
    if not sys.stdin.isatty() or words[0] != sys.executable:
        return subprocess.run(words, check=False, start_new_session=not sys.stdin.isatty()).returncode

    def read(terminal: int) -> bytes:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
        return os.read(terminal, 65536)

    return os.waitstatus_to_exitcode(pty.spawn(words, read))


def run_history(arguments: argparse.Namespace) -> None:
    """Print a line for each machine that ended."""
    try:
        since = common.point_in_time(arguments.since, time.time(), ago=True)
    except ValueError as problem:
        raise CommandFailed(f"vac history: --since {problem}", 2) from None
    wanted = [
        one
        for one in history.read(StateDir(common.settings(arguments).state_dir), since)
        if arguments.type in (None, one.machinetype) and (one.failed or not arguments.failed)
    ]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in wanted], indent=1))
        return
    times = local_time(since)
    if not wanted:
        print(f"vac history: no such machine is known to have ended since {times}", file=sys.stderr)
    width = max(len(name) for name in ("TYPE", *(one.machinetype for one in wanted)))
    row = (
        f"{{:<{len(times)}}} {{:<{len(times)}}} {{:<15}} {{:<{width}}} {{:>8}} {{:>5}} {{:>9}} {{:<36}} {{}}"
    )
    if sys.stdout.isatty():
        print(row.format("END", "START", "MACHINE", "TYPE", "LIVED", "CPU", "EXIT", "UUID", "MESSAGE"))
    for one in wanted:
        code = one.exit_code if one.exit_code is not None and one.signal is None else one.exit_words or "-"
        print(
            row.format(
                local_time(one.ended),
                local_time(one.started),
                printable(one.machine.partition(".")[0]),
                printable(one.machinetype),
                duration(one.lived_seconds),
                f"{one.efficiency:.0%}",
                code,
                one.uuid,
                printable(one.message or "-"),
            )
        )
