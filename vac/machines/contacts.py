"""With whom a machine has had connections, kept as contacts.json in its directory for those who trace an incident."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vac.host.connections import Contact
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine

MOST_CONTACTS = 500
"""Kept for each machine; of more, those that were seen last."""
NAME = "contacts.json"


def note_contacts(state: StateDir, machine: Machine, contacts: Iterable[Contact], now: float) -> None:
    """Keep that the machine has had connections with these, at this time in Unix seconds.

    On a full disk it isn't kept: people can do without.
    """
    known = {_contact(each): each for each in read_contacts(machine)}
    for contact in sorted(contacts):
        entry = known.pop(contact, {**contact._asdict(), "first_seen": int(now)})
        known[contact] = {**entry, "last_seen": int(now)}
    kept = list(known.values())[-MOST_CONTACTS:]
    content = json.dumps(kept, indent=1).encode("ascii") + b"\n"
    try:
        files.write_atomic(machine.directory / NAME, content, tmp=state.tmp, sync=False)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise


def read_contacts(machine: Machine) -> list[dict[str, Any]]:
    """What was kept, the one seen last at the end: a Contact's fields, first_seen and last_seen in Unix seconds."""
    try:
        found = json.loads((machine.directory / NAME).read_bytes())
    except (OSError, ValueError):
        return []
    fields = {*Contact._fields, "first_seen", "last_seen"}
    return [each for each in found if isinstance(each, dict) and each.keys() >= fields]


def _contact(entry: dict[str, Any]) -> Contact:
    return Contact(*(entry[name] for name in Contact._fields))
