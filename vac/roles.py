"""The processes of vacd, what each gets at its start, and the record of their restarts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

IP_FREEBIND = 15
"""From linux/in.h."""
RESTARTS = "restarts"
"""File in state_dir, for check-vacd and metrics."""
MOST_TIMES = 20
CRASH_LOOP_SECONDS = 300
CRASH_LOOP_RESTARTS = 3


@dataclass(frozen=True)
class Role:
    """One process. Its module has `main(options: RoleOptions) -> int`, the exit status."""

    name: str
    module: str
    must_be_ready: bool = False
    """vacd as a whole isn't ready before this role."""
    stuck_seconds: float | None = None
    """Longest time without RoleOptions.alive before it is killed and restarted; None: unlimited."""
    on_demand: bool = False
    """Runs only while another role needs it (RoleOptions.need)."""
    listens: bool = False
    """Its purpose begins with HOST:PORT, where the supervisor listens, so that nobody else takes a dead role's port."""
    packages: str = ""
    """Instructions for installing the optional Python packages of its module."""


EXIT_OTHER_AT_WORK = 75
"""Exit status of a role whose work another process does; EX_TEMPFAIL of sysexits.h."""
EXIT_TO_RESTART = 79
"""Exit status of a role that needs a new process, not because of a failure; sysexits.h has no such status."""

_WAITRESS = "python3-waitress, or pip install 'vac-factory[vms]'"
ROLES = (
    Role("factory", "vac.factory.process", must_be_ready=True, stuck_seconds=600),
    Role("responder", "vac.vacquery.responder"),
    Role("metadata", "vac.web.metadata", on_demand=True, packages=_WAITRESS),
    Role("mjf", "vac.web.mjf", on_demand=True, packages=_WAITRESS),
    Role(
        "page",
        "vac.web.page",
        on_demand=True,
        listens=True,
        packages="python3-prometheus-client and python3-waitress, or pip install 'vac-factory[metrics]'",
    ),
)


@dataclass(frozen=True)
class RoleOptions:
    """Parameters of a role, and callbacks for its reports.

    A role starts processes by subprocess, never by a bare fork: a forked process would share the pipe of signals.
    """

    configs: tuple[Path, ...] = ()
    """Files and directories of --config, absolute; none: the default ones."""
    ready: Callable[[], None] = lambda: None
    """Report that the role works (the factory: that its first cycle is over, whatever its outcome)."""
    alive: Callable[[], None] = lambda: None
    """Report progress of the role's loop, much more often than Role.stuck_seconds."""
    uses: Callable[[Path], None] = lambda state_dir: None
    """Report the state_dir of the configuration, where the supervisor notes restarts."""
    need: Callable[[str, str], None] = lambda role, purpose: None
    """Report a role's name and its purpose from now on, empty for none; a changed purpose restarts it. Idempotent."""
    listening: socket.socket | None = None
    """For a role that listens: the supervisor's socket, None if it couldn't be bound."""
    listen: Callable[[Callable[[], None], Callable[[], None]], None] = lambda stop, wake: None
    """Subscribe, once, from any thread, as soon as stop can be obeyed. Both are called in a thread of their own, never
    in a signal handler: they may take locks.

    stop: after SIGTERM, SIGINT or the supervisor's death, also if before this call; main is to return soon.
    wake: after SIGUSR1 (there are requests) and SIGHUP (the configuration may be new).
    """


@dataclass(frozen=True)
class Restarts:
    """Unexpected ends of a role's processes since the start of vacd."""

    count: int
    times: tuple[float, ...]
    """Unix seconds of the last ones."""
    end: str
    """The last one in words."""


def write_restarts(state_dir: Path, restarts: Mapping[str, Restarts]) -> None:
    """Write restarts by role. Raises OSError."""
    temporary = state_dir / f".{RESTARTS}"
    content = {role: asdict(one) for role, one in restarts.items()}
    temporary.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(state_dir / RESTARTS)


def read_restarts(state_dir: Path) -> dict[str, Restarts]:
    """Return restarts by role, none without a readable file."""
    try:
        found = json.loads((state_dir / RESTARTS).read_text(encoding="utf-8"))
        return {
            str(role): Restarts(int(one["count"]), tuple(map(float, one["times"])), str(one["end"]))
            for role, one in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def crash_loop(state_dir: Path, now: float) -> str | None:
    """Return a text about a process that is restarted again and again; None if there is none."""
    for role, one in read_restarts(state_dir).items():
        recent = sum(0 <= now - time < CRASH_LOOP_SECONDS for time in one.times)
        if recent >= CRASH_LOOP_RESTARTS:
            return f"vacd-{role} restarted {recent} times in {CRASH_LOOP_SECONDS // 60} minutes: {one.end}"
    return None


def bind(host: str, port: int, *, future: bool = False) -> socket.socket:
    """Return a socket bound to the first available address of a host, `::` for IPv6 and IPv4. Raises OSError.

    future: also bind an address that this host may get later.
    """
    problem = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in found:
        with contextlib.ExitStack() as stack:
            try:
                bound = stack.enter_context(socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol))
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
                if future:
                    bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bound.bind(address)
            except OSError as error:
                problem = error
            else:
                stack.pop_all()
                return bound
    raise problem
