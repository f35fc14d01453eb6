"""`vac machine NAME`: everything that this host knows of one machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

from vac.cli import common
from vac.machines import status as statuses
from vac.machines.layout import StateDir, slot_number
from vac.machines.machine import Machine
from vac.machines.outputs import read_contacts, read_details, shutdown_message
from vac.machines.slots import find_by_uuid
from vac.machines.status import Status
from vac.text import escaped

_OUTPUTS_LISTED = 50
_TIMES = ("created", "started", "last seen alive", "must end by")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser("machine", help="everything known of one machine of this factory")
    command.add_argument(
        "machine",
        metavar="NAME",
        help="host name of the machine, short or in full, or its uuid, which finds earlier ones too",
    )
    command.add_argument("-J", "--json", action="store_true", help="as JSON; times are Unix seconds")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what is known; 1 if there is no such machine."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    machine, status = common.find_machine(state, arguments.machine), statuses.read(state)
    if machine is None:
        machine, status = find_by_uuid(state, arguments.machine), None
    if machine is None:
        print(
            f"vac machine: {settings.factory_name} has no machine {arguments.machine}; `vac machines` lists them",
            file=sys.stderr,
        )
        return 1
    facts = known_of(machine, status, settings.factory_name)
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            print(escaped(f"{name:18} {_words(name, value)}"))
    return 0


def known_of(machine: Machine, status: Status | None, factory: str) -> dict[str, object]:
    """Facts of this factory's machine by name, in the order in which people want them; what isn't known is left out."""
    facts: dict[str, object] = {
        "machine": machine.name,
        "slot": slot_number(factory, machine.name),
        "machinetype": machine.machinetype,
        "machine model": machine.model,
        "uuid": machine.uuid,
        "state": state_of(machine, status),
        "processors": machine.processors,
        "created": machine.created_time,
        "started": machine.started_time,
        "last seen alive": machine.heartbeat_time,
        "must end by": None if machine.finished else machine.shutdown_time,
        "shutdown message": shutdown_message(machine),
        "CPU seconds": machine.cpu_seconds,
        "CPU percent": machine.cpu_percent,
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
    contacts = {"contacts": read_contacts(machine)}
    return {
        name: value
        for name, value in {**facts, **told, **contacts}.items()
        if value not in (None, "", {}, [])
    }


def state_of(machine: Machine, status: Status | None) -> str:
    """Shut down, Starting or Running, or what only the engine knows: Paused, Zombie, Unknown."""
    if status and machine.name in status.slot_states:
        return status.slot_states[machine.name]
    if machine.finished:
        return "Shut down"
    return "Starting" if machine.started_time is None else "Running"


def _mib(used_bytes: int | None) -> int | None:
    return None if used_bytes is None else used_bytes >> 20


def _features(machine: Machine, kind: str) -> dict[str, str]:
    directory = machine.directory / kind
    if not directory.is_dir():
        return {}
    return {path.name: path.read_text(errors="replace").strip() for path in sorted(directory.iterdir())}


def _outputs(machine: Machine) -> list[str]:
    """Names only: what is in them is the machine's."""
    directory = machine.directory / "joboutputs"
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    more = [f"and {len(names) - _OUTPUTS_LISTED} more"] if len(names) > _OUTPUTS_LISTED else []
    return names[:_OUTPUTS_LISTED] + more


def _contact_line(entry: Mapping[str, object]) -> str:
    which = "from {address} to own port {port}" if entry["incoming"] else "to {address} port {port}"
    seen = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(float(str(entry["last_seen"]))))
    return f"\n  {entry['protocol']} {which.format(**entry)}, last seen {seen}"


def _words(name: str, value: object) -> str:
    if name in _TIMES and isinstance(value, (int, float)):
        return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(value))
    if isinstance(value, Mapping):
        return " ".join(f"{key}={content}" for key, content in value.items())
    if isinstance(value, list) and name == "contacts":
        return "".join(map(_contact_line, value))
    if isinstance(value, list):
        return " ".join("".join(c if c.isprintable() else "?" for c in text) for text in value)
    return str(value)
