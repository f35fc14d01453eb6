"""`vac exec`: a command in a running container, logged with who wanted it.

Its files and programs may be hostile: the command gets no right, terminal or descriptor that the machine doesn't have.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

from vac.cli import common
from vac.cli.machine_commands import NAME_HELP, find
from vac.config.machinetype import VM_MODELS
from vac.config.settings import Settings
from vac.drivers.base import EngineUnavailable
from vac.drivers.processes import launch
from vac.host.cgroups import CgroupError, open_groups
from vac.host.syscall_filter import compiled
from vac.machines import files
from vac.machines.layout import StateDir, slot_address, slot_number
from vac.machines.machine import Machine
from vac.machines.outputs import read_details
from vac.text import escaped, local_time

_MOST_LOGGED_BYTES = 65536


def add_arguments(parser: argparse.ArgumentParser, _: str) -> None:
    """Add the arguments."""
    parser.add_argument("machine", metavar="NAME", help=NAME_HELP)
    help_text = "and its arguments (default: sh)"
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=help_text)
    parser.set_defaults(run=run_exec)


def run_exec(arguments: argparse.Namespace) -> int:
    """Run a command in a running machine and return its exit status; 1 if that is impossible."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    machine = find(arguments, settings, state)
    if machine is None:
        return 1
    command = [word for place, word in enumerate(arguments.command) if place or word != "--"] or ["sh"]
    try:
        if machine.finished or machine.started_time is None:
            raise EngineUnavailable("it doesn't run")
        words = _entering(machine, settings, command)
        _note_command(machine, command)
        return _run_on_terminal(words)
    except (EngineUnavailable, CgroupError) as error:
        print(f"vac exec: {machine.name}: {error}", file=sys.stderr)
        return 1


def _entering(machine: Machine, settings: Settings, command: list[str]) -> list[str]:
    """Return the command line that runs it in the machine. Raises EngineUnavailable, CgroupError and OSError."""
    if machine.model in VM_MODELS:
        raise EngineUnavailable(
            f"it is a VM: try `virsh -c {settings.libvirt_uri} console {machine.name}`, or ssh to "
            f"{_address(machine, settings)} with the key of root_public_key"
        )
    if machine.model == "docker":
        podman = "podman" in settings.docker_host
        name, option = ("podman", "--url") if podman and shutil.which("podman") else ("docker", "--host")
        if shutil.which(name) is None:
            raise EngineUnavailable(
                f"the program {name} isn't installed, which runs commands in its containers"
            )
        terminal = [
            "-it" if sys.stdin.isatty() else "-i",
            read_details(machine).get("container", machine.name),
        ]
        return [name, option, settings.docker_host, "exec", *terminal, *command]
    groups, group = open_groups(settings.factory_name), f"{machine.name}_{machine.uuid}"
    process = launch.first_process(groups.processes(group))
    if process is None:
        raise EngineUnavailable("none of its processes is the first of a PID namespace")
    environment = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    plan = {
        "pid": process,
        "entrances": [str(path) for path in groups.entrances(group)],
        "filter": compiled(False).hex(),
        "environment": {
            **dict(line.split("=", 1) for line in environment if "=" in line),
            "TERM": os.environ.get("TERM", "dumb"),
        },
        "command": command,
    }
    return [sys.executable, "-I", "-S", launch.__file__, json.dumps(plan)]


def _address(machine: Machine, settings: Settings) -> str:
    number = slot_number(settings.factory_name, machine.name)
    return "its address" if number is None else slot_address(number)


def _note_command(machine: Machine, command: list[str]) -> None:
    """Log who runs what, in the machine's exec.log and by syslog."""
    who = os.environ.get("SUDO_USER") or getpass.getuser()
    line = f"{local_time(time.time())} {who}: {shlex.join(command)}"
    files.append_line(
        machine.directory / "exec.log", escaped(line).encode(errors="replace"), _MOST_LOGGED_BYTES
    )
    syslog.openlog("vac", facility=syslog.LOG_AUTHPRIV)
    syslog.syslog(
        syslog.LOG_NOTICE, escaped(f"{who} runs in {machine.name} ({machine.uuid}): {shlex.join(command)}")
    )


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
