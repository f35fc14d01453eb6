"""Shutdown messages: what a machine says of its end, or the factory that ended it.

A machine leaves joboutputs/shutdown_message. The machine's directory itself gets a file of that name, which
the machine can't write: the factory's own words, or at the end a copy of the machine's, for processes that
may not read joboutputs.
"""

from __future__ import annotations

from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine

UNREADABLE = "unreadable shutdown message"
LIMIT_BYTES = 4096
_LONGEST = 255
_NAME = "shutdown_message"


def shutdown_message(machine: Machine) -> str | None:
    """The first line of the machine's shutdown message, made printable; None if there is none.

    UNREADABLE stands for whatever a machine has planted instead of a small regular file.
    """
    return _first_line(machine, "") or _first_line(machine, "joboutputs")


def shutdown_message_time(machine: Machine) -> float | None:
    """When the message was written; None if there is none."""
    for directory in (machine.directory, machine.directory / "joboutputs"):
        try:
            return files.untrusted_mtime(directory, _NAME)
        except (FileNotFoundError, files.Unreadable):
            continue
    return None


def set_shutdown_message(state: StateDir, machine: Machine, text: str) -> None:
    """Keep why the factory destroys the machine, such as `700 Idle`, unless the machine has said so
    itself."""
    if shutdown_message(machine) in (None, UNREADABLE):
        files.write_atomic(machine.directory / _NAME, text.encode("utf-8", "replace") + b"\n", tmp=state.tmp)


def keep_shutdown_message(state: StateDir, machine: Machine, now: float) -> str | None:
    """Copy the machine's own message beside its joboutputs, with its time; returns the message."""
    message = shutdown_message(machine)
    if message is not None and not (machine.directory / _NAME).exists():
        written = shutdown_message_time(machine)
        kept_time = now if written is None else min(max(written, float(machine.created_time)), now)
        files.write_atomic(
            machine.directory / _NAME, message.encode() + b"\n", tmp=state.tmp, mtime=kept_time
        )
    return message


def _first_line(machine: Machine, below: str) -> str | None:
    try:
        content = files.read_untrusted(machine.directory / below, _NAME, LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except files.Unreadable:
        return UNREADABLE
    line = content.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:_LONGEST] or None
