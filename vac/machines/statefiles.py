"""The small files in state_dir that Nagios, site scripts and our other processes read.

Where the disk doesn't take them they stay as they were: the factory has more important things to do than to tell.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
from collections.abc import Mapping

from vac.logs import OnChange
from vac.machines import files
from vac.machines.layout import StateDir

_changes = OnChange(logging.getLogger(__name__))


class ErrorKind(enum.Enum):
    """What a factory-error is about, and so what ends it."""

    CREATION = "creation"
    CONFIGURATION = "configuration"
    DISK = "disk"


def _write(state: StateDir, name: str, text: str) -> None:
    """Write one of them; if that can't be done it is logged once."""
    try:
        files.write_atomic(state.root / name, text.encode("utf-8", "replace"), tmp=state.tmp, sync=False)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            _changes.say(name, f"{state.root / name} can't be written: {error}", logging.WARNING)
    else:
        _changes.clear(name)


def touch_heartbeat(state: StateDir, role: str, now: float) -> None:
    """Show that a process (factory, responder, mjf, metadata) is at work."""
    files.set_mtime(state.heartbeat(role), now)


def write_pid(state: StateDir, role: str, pid: int) -> None:
    """Write ROLE.pid of responder, mjf or metadata; the factory's is written with its lock."""
    _write(state, state.pid(role).name, f"{pid}\n")


def write_version(state: StateDir, version: str) -> None:
    """Write VERSION, which tools read as VERSION=…."""
    _write(state, state.version.name, f"VERSION={version}\n")


def write_counts(
    state: StateDir,
    running: int,
    slots: int,
    running_processors: int,
    total_processors: int,
    running_hs06: float,
) -> None:
    """Write counts: RUNNING SLOTS RUNNING_PROCESSORS TOTAL_PROCESSORS RUNNING_HS06."""
    text = f"{running} {slots} {running_processors} {total_processors} {running_hs06:.2f}\n"
    _write(state, state.counts.name, text)


def write_status(state: StateDir, status: Mapping[str, object]) -> None:
    """Write status.json, which `vac why`, metrics and the status page show; everybody can read it."""
    _write(state, state.status.name, json.dumps(status, indent=1, sort_keys=True) + "\n")


def set_error(state: StateDir, kind: ErrorKind, text: str) -> None:
    """Keep the last error in factory-error: its first line, which check-vacd shows, and what it is about."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")
    _write(state, state.factory_error.name, f"{first}\n{kind.value}\n")


def clear_error(state: StateDir, kind: ErrorKind) -> None:
    """Remove factory-error if it is about this (or was left by a classic factory, which doesn't say)."""
    try:
        lines = state.factory_error.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    about = lines[1] if len(lines) > 1 else ""
    if about == kind.value or about not in {known.value for known in ErrorKind}:
        with contextlib.suppress(OSError):
            files.remove(state.factory_error)


def read_identity(state: StateDir) -> dict[str, str]:
    """Return factory_name and state_dir by which the machines here were made, as far as they are known."""
    try:
        found = json.loads(state.identity.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def write_identity(state: StateDir, identity: Mapping[str, str]) -> None:
    """Keep factory_name and state_dir by which machines are made here."""
    if read_identity(state) != identity:
        _write(state, state.identity.name, json.dumps(identity) + "\n")
