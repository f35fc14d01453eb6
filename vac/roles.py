"""The processes that vacd consists of, and what each is given when it starts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

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
    """Is vacd as a whole ready only when this role has said that it is?"""
    stuck_seconds: float | None = None
    """Killed and started again when it has shown no life for so long. None: it shows none."""
    on_demand: bool = False
    """There is such a process only as long as another role says that it is needed (RoleOptions.need)."""
    listens: bool = False
    """Its purpose begins with HOST:PORT, where the supervisor listens, so that nobody else takes a dead role's port."""
    packages: str = ""
    """How to install the optional Python packages that its module imports."""


EXIT_OTHER_AT_WORK = 75
"""Exit status of a role that can't work because another process does its work; EX_TEMPFAIL of sysexits.h."""

_WAITRESS = "python3-waitress, or pip install 'vac-factory[vms]'"
ROLES = (
    Role("factory", "vac.factory", must_be_ready=True, stuck_seconds=600),
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


def _do_nothing() -> None:
    """Stands in where nobody listens."""


def _need_nothing(role: str, purpose: str) -> None:
    """Likewise."""


def _use_nothing(state_dir: Path) -> None:
    """Likewise."""


class Listen(Protocol):
    """From now on `stop` is called, once, when the process has to end, and `wake` when there may be news."""

    def __call__(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        """Both are called from a thread of their own, never in a signal handler: they may take locks.

        stop: after SIGTERM, SIGINT or the supervisor's death, also when these came before this call. The
        role's main is to return soon.
        wake: after SIGUSR1 (there are requests) and SIGHUP (the configuration may be new).
        """


def _listen_to_nobody(stop: Callable[[], None], wake: Callable[[], None]) -> None:
    """For a role without a process of its own, as in tests."""


@dataclass(frozen=True)
class RoleOptions:
    """What a role needs to know and whom it reports to.

    A role starts processes by subprocess, never by a bare fork: a forked process would share the pipe
    through which signals arrive, and what ends it would end the role.
    """

    configs: tuple[Path, ...] = ()
    """Files and directories of --config, absolute; none: the default ones."""
    ready: Callable[[], None] = _do_nothing
    """Say that the role does its work (the factory: its first cycle is over, whatever came of it)."""
    alive: Callable[[], None] = _do_nothing
    """Say that the role's loop goes round; to be called much more often than Role.stuck_seconds."""
    uses: Callable[[Path], None] = _use_nothing
    """Report the state_dir of the configuration, where the supervisor notes restarts."""
    need: Callable[[str, str], None] = _need_nothing
    """Say for what the role of that name is needed from now on; empty: for nothing, it may go. For another purpose
    than before it is started anew. May be repeated as often as one likes."""
    listening: socket.socket | None = None
    """For a role that listens: the supervisor's socket, None if it couldn't be bound."""
    listen: Listen = _listen_to_nobody
    """Call it once, from the main thread or any other, when stop can be obeyed."""


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
