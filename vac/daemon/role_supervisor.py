"""Supervision of one role: starting its process, noticing that it is stuck, restarting it after its end."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import vac
from vac import logs
from vac.daemon import role_process
from vac.roles import EXIT_OTHER_AT_WORK, EXIT_TO_RESTART, Role, bind

BACKLOG = 1024
NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
"""For the supervisor alone, see supervisor.Notifier."""
logger = logging.getLogger(__name__)

PACKAGE_ROOT = Path(vac.__file__).resolve().parent.parent
FIRST_PAUSE_SECONDS = 1.0
"""Pause before a restart, doubled with each restart …"""
LONGEST_PAUSE_SECONDS = 60.0
"""… up to this, …"""
STABLE_SECONDS = 120.0
"""… and reset after a process that ran this long."""
STOP_SECONDS = 20.0
"""From SIGTERM to SIGKILL."""
DUMP_SECONDS = 2.0
"""From the request for a stuck process's stack to SIGKILL."""
OTHER_SECONDS = 45.0
"""Longest time with another process at a role's work: it may remain from a killed vacd and end by itself."""


def next_pause(last: float | None, ran_seconds: float) -> float:
    """Return the pause before the restart of a process that ended after ran_seconds."""
    if last is None or ran_seconds >= STABLE_SECONDS:
        return FIRST_PAUSE_SECONDS
    return min(2 * last, LONGEST_PAUSE_SECONDS)


def describe_end(wait_status: int) -> str:
    """Return the wait status of os.waitpid in words."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def spawn(
    command: Sequence[str], log: BinaryIO | None, listening: socket.socket | None
) -> tuple[int, socket.socket]:
    """Start a role's process. Return its number, for os.waitpid, and our end of the link.

    It gets its own session, so that Ctrl-C on a terminal reaches the supervisor alone, and starts in the directory of
    the package, where `-m` looks first. log: its standard output and error. Raises OSError.
    """
    ours, theirs = role_process.link_pair()
    passed = {role_process.LINK_VARIABLE: theirs.fileno()}
    if listening is not None:
        passed[role_process.LISTENING_VARIABLE] = listening.fileno()
    environment = {name: value for name, value in os.environ.items() if name not in NOTIFY_VARIABLES}
    environment.update({name: str(descriptor) for name, descriptor in passed.items()})
    with theirs:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=PACKAGE_ROOT,
                env=environment,
                pass_fds=list(passed.values()),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    process.returncode = 0  # the supervisor reaps it, not Popen
    return process.pid, ours


@dataclass
class Child:
    """A running process of a role."""

    pid: int
    link: socket.socket
    start_time: float
    alive_time: float
    ready: bool = False
    kill_time: float = math.inf
    """Time of SIGKILL, as all times by time.monotonic."""
    stuck: bool = False
    dismissed: bool = False
    """Told to end because it isn't needed in this form."""


@dataclass
class RoleSupervisor:
    """A role and its present process, if any."""

    role: Role
    stored: MutableMapping[str, socket.socket] = field(default_factory=dict)
    """Sockets kept by the service manager, by address."""
    child: Child | None = None
    start_time: float = -math.inf
    """Time of the next start."""
    pause: float | None = None
    was_ready: bool = field(default=False, init=False)
    end: str = field(default="not started", init=False)
    purpose: str = field(default="", init=False)
    """Purpose of its process; empty: a role on demand isn't needed, that of any other role isn't known."""
    address: str = field(default="", init=False)
    listening: socket.socket | None = field(default=None, init=False)
    """At this address, for a role that listens."""
    other_since: float | None = field(default=None, init=False)
    """Since this time its processes have ended because another one does the work."""
    needs: dict[str, str] = field(default_factory=dict, init=False)
    """Purposes of other roles, as its processes last reported them."""
    state_dir: Path | None = field(default=None, init=False)
    """The state_dir that its processes last reported."""
    log_opened: os.stat_result | None = field(default=None, init=False)
    """The log file of the present process."""
    failures: list[float] = field(default_factory=list, init=False)
    """Unix seconds of unexpected ends and failed starts."""

    @property
    def wanted(self) -> bool:
        """True if such a process should run."""
        return bool(self.purpose) or not self.role.on_demand

    def serve(self, purpose: str, now: float) -> None:
        """Set the purpose, empty for none; a process with another purpose ends.

        A role that always runs was started for the first purpose that is reported.
        """
        if purpose == self.purpose:
            return
        running_for_it = not self.purpose and not self.role.on_demand
        self.purpose = purpose
        if running_for_it:
            return
        self.pause, self.start_time = None, now
        address = purpose.partition(" ")[0] if self.role.listens else ""
        if address != self.address and self.listening is not None:
            self.listening.close()
            self.listening = None
        self.address = address
        self._hold()
        if self.child is not None:
            logger.info("%s: %s", self.role.name, "restarting" if purpose else "not needed any more")
            self.child.dismissed = True
            self.stop(now)

    def _hold(self) -> None:
        """Listen at the role's address, if that works; else the role's own attempt tells the reason."""
        if not self.address or self.listening is not None:
            return
        self.listening = self.stored.pop(self.address, None)
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            self.listening = self.listening or bind(host.strip("[]"), int(port))
            self.listening.listen(BACKLOG)

    def start(self, command: Sequence[str], log_file: Path | None, now: float) -> Child | None:
        """Start a process; None if that fails, to be retried later."""
        self._hold()
        try:
            with contextlib.ExitStack() as opened:
                log = None if log_file is None else opened.enter_context(log_file.open("ab"))
                self.log_opened = None if log is None else os.fstat(log.fileno())
                pid, link = spawn(command, log, self.listening)
        except OSError as error:
            self.failures.append(time.time())
            self._pause(0.0, f"can't be started: {error}", now)
            return None
        self.child = Child(pid, link, now, now)
        logger.info("%s started, process %d", self.role.name, pid)
        return self.child

    def hear(self, now: float) -> bool:
        """Take a message from the process; False at the end of the link."""
        assert self.child is not None
        message, _ = role_process.receive(self.child.link)
        if message == role_process.GONE:
            return False
        self.child.alive_time = now
        kind, _, rest = os.fsdecode(message).partition(" ")
        if kind == role_process.NEED:
            role, _, purpose = rest.partition(" ")
            self.needs[role] = purpose
        elif kind == role_process.USES:
            self.state_dir = Path(rest)
        elif kind == role_process.READY and not self.child.ready:
            self.child.ready = self.was_ready = True
            logger.info("%s is ready", self.role.name)
        return True

    def wake(self, log_file: Path | None = None) -> None:
        """Tell the process, if any, that there may be news, with its log file opened anew if it is given."""
        if self.child is None:
            return
        descriptor = None if log_file is None else logs.try_open(log_file)
        role_process.send(self.child.link, b"wake", descriptor)
        if descriptor is not None:
            self.log_opened = os.fstat(descriptor)
            os.close(descriptor)

    def stop(self, now: float) -> None:
        """Send SIGTERM, and SIGKILL after a while."""
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGTERM)
            self.child.kill_time = min(self.child.kill_time, now + STOP_SECONDS)

    def attend(self, now: float) -> None:
        """Kill the process if it is stuck or takes too long to end."""
        child = self.child
        if child is None:
            return
        if now >= child.kill_time:
            logger.error("%s (process %d) doesn't end: killing it", self.role.name, child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.kill_time = math.inf
        elif now >= self._stuck_time(child):
            child.stuck = True
            text = "%s (process %d) has been stuck for %.0f s: killing it after it has logged its stack"
            logger.error(text, self.role.name, child.pid, now - child.alive_time)
            os.kill(child.pid, signal.SIGUSR2)
            child.kill_time = min(child.kill_time, now + DUMP_SECONDS)

    def next_time(self) -> float:
        """Return the time at which attend() is due, if nothing happens before."""
        if self.child is None:
            return self.start_time if self.wanted else math.inf
        return min(self.child.kill_time, self._stuck_time(self.child))

    def _stuck_time(self, child: Child) -> float:
        limit = self.role.stuck_seconds
        return math.inf if limit is None or child.stuck else child.alive_time + limit

    def kill_failed_time(self) -> float:
        """Return the time at which killing the stuck process counts as failed."""
        if self.child is None or self.role.stuck_seconds is None:
            return math.inf
        return self.child.alive_time + 2 * self.role.stuck_seconds

    def ended(self, wait_status: int, now: float, *, expected: bool) -> None:
        """Note the end of the process, and schedule a restart unless the end was expected."""
        assert self.child is not None
        child, self.child = self.child, None
        child.link.close()
        end = describe_end(wait_status)
        status = os.waitstatus_to_exitcode(wait_status)
        other = status == EXIT_OTHER_AT_WORK
        self.other_since = (self.other_since or child.start_time) if other else None
        if expected or child.dismissed:
            self.end = end
            logger.info("%s (process %d) %s", self.role.name, child.pid, end)
        else:
            ran_seconds = now - child.start_time
            if status not in (EXIT_OTHER_AT_WORK, EXIT_TO_RESTART):
                self.failures.append(time.time())
            self._pause(ran_seconds, f"(process {child.pid}) {end} after {ran_seconds:.1f} s", now)

    def _pause(self, ran_seconds: float, end: str, now: float) -> None:
        self.pause = next_pause(self.pause, ran_seconds)
        self.start_time = now + self.pause
        self.end = f"{end}; starts again in {self.pause:g} s"
        logger.warning("%s %s", self.role.name, self.end)

    def yields_to_other(self, now: float) -> bool:
        """Return True if another process has done this role's work for so long that it is another vacd's."""
        return self.other_since is not None and now - self.other_since >= OTHER_SECONDS

    def describe(self) -> str:
        """Return a text for `systemctl status`."""
        if self.child is None:
            return f"{self.role.name} {self.end}"
        return f"{self.role.name} {'ready' if self.child.ready else 'running'}"
