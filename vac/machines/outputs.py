"""Messages of machines and their engines: shutdown messages, details, connections, files sent to joboutputs.

A machine leaves joboutputs/shutdown_message. Its directory itself gets a file of that name, which the machine can't
write: the factory's own words, or at the end a copy of the machine's, for processes that may not read joboutputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vac.host.connections import Contact
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine

UNREADABLE = "unreadable shutdown message"
LIMIT_BYTES = 4096
_LONGEST = 255
_NAME = "shutdown_message"


def shutdown_message(machine: Machine) -> str | None:
    """Return the first line of the machine's shutdown message, made printable; None if there is none.

    UNREADABLE stands for whatever a machine has planted instead of a small regular file.
    """
    return _first_line(machine, "") or _first_line(machine, "joboutputs")


def shutdown_message_time(machine: Machine) -> float | None:
    """Return when the message was written; None if there is none."""
    for directory in (machine.directory, machine.directory / "joboutputs"):
        try:
            return files.untrusted_mtime(directory, _NAME)
        except (FileNotFoundError, files.Unreadable):
            continue
    return None


def set_shutdown_message(state: StateDir, machine: Machine, text: str) -> None:
    """Write why the factory destroys the machine, such as `700 Idle`, unless it has left a message itself."""
    if shutdown_message(machine) in (None, UNREADABLE):
        files.write_atomic(machine.directory / _NAME, text.encode("utf-8", "replace") + b"\n", tmp=state.tmp)


def keep_shutdown_message(state: StateDir, machine: Machine, now: float) -> str | None:
    """Copy the machine's own message beside its joboutputs, with its time; return the message."""
    message = shutdown_message(machine)
    if message is not None and not (machine.directory / _NAME).exists():
        written = shutdown_message_time(machine)
        kept_time = now if written is None else min(max(written, float(machine.created_time)), now)
        files.write_atomic(
            machine.directory / _NAME, message.encode() + b"\n", tmp=state.tmp, mtime=kept_time
        )
    return message


def has_any(machine: Machine) -> bool:
    """Tell if there is anything in the machine's joboutputs, into which only a machine that runs puts something."""
    try:
        with os.scandir(machine.directory / "joboutputs") as entries:
            return any(entries)
    except OSError:
        return False


def _first_line(machine: Machine, below: str) -> str | None:
    try:
        content = files.read_untrusted(machine.directory / below, _NAME, LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except files.Unreadable:
        return UNREADABLE
    line = content.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:_LONGEST] or None


MOST_CONTACTS = 500
"""Kept for each machine; of more, those that were seen last."""
CONTACTS = "contacts.json"
DETAILS = "details.json"


def note_contacts(state: StateDir, machine: Machine, contacts: Iterable[Contact], now: float) -> None:
    """Keep that the machine has had connections with these, at this time in Unix seconds."""
    known = {_contact(each): each for each in read_contacts(machine)}
    for contact in sorted(contacts):
        entry = known.pop(contact, {**contact._asdict(), "first_seen": int(now)})
        known[contact] = {**entry, "last_seen": int(now)}
    _note(state, machine, CONTACTS, list(known.values())[-MOST_CONTACTS:])


def read_contacts(machine: Machine) -> list[dict[str, Any]]:
    """Return the contacts kept, the latest last: a Contact's fields, first_seen and last_seen in Unix seconds."""
    try:
        found = json.loads((machine.directory / CONTACTS).read_bytes().decode())
    except (OSError, ValueError):
        return []
    fields = {*Contact._fields, "first_seen", "last_seen"}
    return [each for each in found if isinstance(each, dict) and each.keys() >= fields]


def _contact(entry: dict[str, Any]) -> Contact:
    return Contact(*(entry[name] for name in Contact._fields))


FILE_LIMIT_BYTES = 32 * 1024 * 1024
MACHINE_LIMIT_BYTES = 128 * 1024 * 1024
MOST_FILES = 1000
LONGEST_NAME_BYTES = 200

_turn = threading.Lock()


class Refused(Exception):
    """The file isn't accepted; the text is the reason, for the machine and for the log."""


def store(directory: Path, name: str, content: bytes, *, tmp: Path) -> None:
    """Put a file into a machine's joboutputs, as a whole, in place of what had its name.

    tmp is a directory of this process alone, on the same file system. Raises Refused, having changed
    nothing, also when the disk doesn't take it.
    """
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise Refused("a name is printable, without '/', and does not begin with '.'")
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        raise Refused(f"a name has at most {LONGEST_NAME_BYTES} bytes")
    if len(content) > FILE_LIMIT_BYTES:
        raise Refused(f"a file has at most {FILE_LIMIT_BYTES} bytes")
    temporary = files.temporary_path(tmp)
    try:
        files.write_new(temporary, content)
        with _turn:  # two files at once must not pass one limit
            with os.scandir(directory) as entries:
                others = [each.stat(follow_symlinks=False).st_size for each in entries if each.name != name]
            if len(others) >= MOST_FILES:
                raise Refused(f"a machine has at most {MOST_FILES} files in joboutputs")
            if sum(others) + len(content) > MACHINE_LIMIT_BYTES:
                raise Refused(f"a machine's joboutputs have at most {MACHINE_LIMIT_BYTES} bytes")
            files.rename(temporary, directory / name)
    except OSError as error:
        raise Refused(f"it can't be stored: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def note_details(state: StateDir, machine: Machine, details: Mapping[str, str]) -> None:
    """Keep what the engine tells of a machine, such as its image's digest, beside what it has told before."""
    _note(state, machine, DETAILS, {**read_details(machine), **details})


def _note(state: StateDir, machine: Machine, name: str, content: object) -> None:
    """Write what people can do without: on a full disk it isn't kept."""
    try:
        files.write_json(machine.directory / name, content, tmp=state.tmp)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise


def read_details(machine: Machine) -> dict[str, str]:
    """Return the details kept by note_details()."""
    return {name: str(value) for name, value in files.read_json(machine.directory / DETAILS).items()}
