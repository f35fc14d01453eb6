"""Administrators' requests to a factory: small files under requests/, which only root can write.

A command writes a file and wakes the factory; it never calls an engine itself. Draining stays in force, also over
a reboot, until its file is removed or its time is over (or the boot, of a drain for a reboot); the other requests are
removed once they are carried out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import signal
from dataclasses import dataclass

from vac.clock import Clock
from vac.decoding import filled
from vac.machines import files
from vac.machines.layout import StateDir

_ACTION = re.compile(r"(finish|destroy)-([a-z0-9._-]+)")


@dataclass(frozen=True)
class Request:
    """Something to be done with one machine."""

    action: str
    """`finish`: its shutdown time is lowered to now + grace_secs; `destroy`: it is ended at once."""
    machine: str
    """Host name of the machine, which is its slot's."""
    uuid: str
    """Of the machine that is meant: by the time the factory looks, another may be in the slot."""


@dataclass(frozen=True)
class Drain:
    """Nothing is created while this is in force."""

    since: float | None = None
    until: float | None = None
    """Unix seconds; None: until it is undone by hand."""
    reason: str = ""
    boot_id: str | None = None
    """The boot of this host whose end is the order's end as well; None: also over a reboot."""


def ask(state: StateDir, request: Request) -> None:
    """Write a request for the factory. Raises OSError."""
    target = state.requests / f"{request.action}-{request.machine}"
    files.write_atomic(target, request.uuid.encode(), tmp=state.tmp, mode=0o600)


def pending(state: StateDir) -> list[Request]:
    """Return the requests that have not been carried out, by name; other files are ignored."""
    found: list[Request] = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(state.requests.iterdir()):
            match = _ACTION.fullmatch(path.name)
            if match and path.is_file():
                found.append(
                    Request(match[1], match[2], path.read_text(encoding="ascii", errors="replace").strip())
                )
    return found


def done(state: StateDir, request: Request) -> None:
    """Remove a request that has been carried out or can't be, unless it is for the slot's next machine by now."""
    if request in pending(state):
        files.remove(state.requests / f"{request.action}-{request.machine}")


def drain(state: StateDir, order: Drain) -> None:
    """Write the order to drain."""
    files.write_json(state.requests / "drain", dataclasses.asdict(order), tmp=state.tmp, sync=True)


def undrain(state: StateDir) -> bool:
    """Remove the order to drain; return False if there was none."""
    with contextlib.suppress(FileNotFoundError):
        (state.requests / "drain").unlink()
        return True
    return False


def draining(state: StateDir, now: float) -> Drain | None:
    """Return the order to drain that is in force now, if any. A file that can't be understood is an order, too."""
    try:
        order = filled(Drain(now), json.loads((state.requests / "drain").read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        return Drain(now, None, f"the file requests/drain can't be read: {problem}")
    over = (order.until is not None and now >= order.until) or order.boot_id not in (None, Clock().boot_id)
    return None if over else order


def running(state: StateDir) -> int | None:
    """Return the process number of the factory that works on this state directory; None if none does."""
    try:
        with state.pid("factory").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read())
    except (FileNotFoundError, ValueError):
        pass
    return None


def wake(state: StateDir) -> bool:
    """Make the factory of this state directory look at its requests now; return False if none runs."""
    factory = running(state)
    if factory is None:
        return False
    try:
        os.kill(factory, signal.SIGUSR1)
    except ProcessLookupError:
        return False
    return True
