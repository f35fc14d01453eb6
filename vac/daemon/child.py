"""One role's process as the supervisor sees it: how it is started, how it is doing, how it has ended."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vac
from vac import logs
from vac.daemon import link as messages
from vac.daemon import sdnotify
from vac.roles import EXIT_OTHER_AT_WORK, Role

PACKAGE_ROOT = Path(vac.__file__).resolve().parent.parent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """All in seconds."""

    first_pause: float = 1.0
    """Before a process that has died is started again; doubles each time …"""
    longest_pause: float = 60.0
    """… up to this …"""
    ran_well: float = 120.0
    """… and begins anew after a process that ran for so long."""
    stop: float = 20.0
    """From SIGTERM to SIGKILL."""
    dump: float = 2.0
    """From asking a stuck process where it is to SIGKILL."""
    other: float = 45.0
    """How long another process may do a role's work before this vacd gives way; it may be one that a killed vacd
    has left behind, which ends by itself."""


def next_pause(last: float | None, ran_seconds: float, timing: Timing) -> float:
    """How long to wait before a process that has died after ran_seconds is started again."""
    if last is None or ran_seconds >= timing.ran_well:
        return timing.first_pause
    return min(2 * last, timing.longest_pause)


def describe_end(wait_status: int) -> str:
    """What os.waitpid tells of a process's end, in words."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def spawn(command: Sequence[str], log_descriptor: int | None) -> tuple[int, socket.socket]:
    """Start a role's process; its number, to be waited for by os.waitpid, and our end of the link.

    It has a session of its own, so that Ctrl-C on a terminal reaches the supervisor alone. It starts in the
    directory that holds the package, where `-m` looks first. log_descriptor: what it writes to in place of
    our standard output and error. Raises OSError.
    """
    environment = {name: value for name, value in os.environ.items() if name not in sdnotify.VARIABLES}
    ours, theirs = messages.pair()
    try:
        environment[messages.VARIABLE] = str(theirs.fileno())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_descriptor,
            stderr=log_descriptor,
            cwd=PACKAGE_ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    process.returncode = 0  # Popen isn't to wait for it: the supervisor reaps whatever there is
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
    """When it gets SIGKILL; times are those of time.monotonic."""
    stuck: bool = False
    dismissed: bool = False
    """It has been told to end because it isn't needed as it is."""


@dataclass
class Post:
    """A role and the process that fills it at present, if any."""

    role: Role
    timing: Timing
    child: Child | None = None
    start_time: float = -math.inf
    """When to start a process if there is none."""
    pause: float | None = None
    was_ready: bool = field(default=False, init=False)
    end: str = field(default="not started", init=False)
    purpose: str = field(default="", init=False)
    """What a process of a role that is started on demand is needed for; empty: there is to be none."""
    other_since: float | None = field(default=None, init=False)
    """Since when each of its processes has ended because another does its work."""
    needs: dict[str, str] = field(default_factory=dict, init=False)
    """What its processes have last said of other roles: by name, what these are needed for."""

    @property
    def wanted(self) -> bool:
        """Is there to be such a process?"""
        return bool(self.purpose) or not self.role.on_demand

    def serve(self, purpose: str, now: float) -> None:
        """From now on it is needed for this, or for nothing; a process that is there for something else ends."""
        if purpose == self.purpose:
            return
        self.purpose, self.pause, self.start_time = purpose, None, now
        if self.child is not None:
            logger.info("%s is %s", self.role.name, "to start anew" if purpose else "not needed any more")
            self.child.dismissed = True
            self.stop(now)

    def start(self, command: Sequence[str], log_file: Path | None, now: float) -> Child | None:
        """Start a process; None if that fails: it will be tried again later."""
        try:
            log_descriptor = None if log_file is None else logs.open_file(log_file)
            try:
                pid, link = spawn(command, log_descriptor)
            finally:
                if log_descriptor is not None:
                    os.close(log_descriptor)
        except OSError as error:
            self._pause(0.0, f"can't be started: {error}", now)
            return None
        self.child = Child(pid, link, now, now)
        logger.info("%s started, process %d", self.role.name, pid)
        return self.child

    def hear(self, now: float) -> bool:
        """Take a message from the process; False when the link has no more to give."""
        assert self.child is not None
        message, _ = messages.receive(self.child.link)
        if message == messages.GONE:
            return False
        self.child.alive_time = now
        needed = messages.needed(message)
        if needed is not None:
            self.needs.update([needed])
        if message == messages.READY and not self.child.ready:
            self.child.ready = self.was_ready = True
            logger.info("%s is ready", self.role.name)
        return True

    def tell(self, message: bytes, log_file: Path | None) -> None:
        """Send a message to the process, if there is one, with a freshly opened log file if it has one."""
        if self.child is None:
            return
        descriptor = None if log_file is None else logs.try_open(log_file)
        messages.send(self.child.link, message, descriptor)
        if descriptor is not None:
            os.close(descriptor)

    def stop(self, now: float) -> None:
        """Ask the process to end, and see to it that it does."""
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGTERM)
            self.child.kill_time = min(self.child.kill_time, now + self.timing.stop)

    def attend(self, now: float) -> None:
        """Kill the process if it is stuck, or takes too long to end."""
        child = self.child
        if child is None:
            return
        if now >= child.kill_time:
            logger.error("%s (process %d) does not end: killing it", self.role.name, child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.kill_time = math.inf
        elif now >= self._stuck_time(child):
            child.stuck = True
            text = "%s (process %d) has shown no life for %.0f s: ending it; it prints where it is"
            logger.error(text, self.role.name, child.pid, now - child.alive_time)
            os.kill(child.pid, signal.SIGUSR2)
            child.kill_time = min(child.kill_time, now + self.timing.dump)

    def next_time(self) -> float:
        """When this post needs attention next, if nothing happens before."""
        if self.child is None:
            return self.start_time if self.wanted else math.inf
        return min(self.child.kill_time, self._stuck_time(self.child))

    def _stuck_time(self, child: Child) -> float:
        limit = self.role.stuck_seconds
        return math.inf if limit is None or child.stuck else child.alive_time + limit

    def hopeless_time(self) -> float:
        """When not even killing a stuck process has helped, so that somebody else should try."""
        if self.child is None or self.role.stuck_seconds is None:
            return math.inf
        return self.child.alive_time + 2 * self.role.stuck_seconds

    def ended(self, wait_status: int, now: float, *, expected: bool) -> None:
        """The process is no more; unless that was expected another one is started after a pause."""
        assert self.child is not None
        child, self.child = self.child, None
        child.link.close()
        end = describe_end(wait_status)
        if os.waitstatus_to_exitcode(wait_status) != EXIT_OTHER_AT_WORK:
            self.other_since = None
        elif self.other_since is None:
            self.other_since = child.start_time
        if expected or child.dismissed:
            self.end = end
            logger.info("%s (process %d) %s", self.role.name, child.pid, end)
        else:
            ran_seconds = now - child.start_time
            self._pause(ran_seconds, f"(process {child.pid}) {end} after {ran_seconds:.1f} s", now)

    def _pause(self, ran_seconds: float, end: str, now: float) -> None:
        self.pause = next_pause(self.pause, ran_seconds, self.timing)
        self.start_time = now + self.pause
        self.end = f"{end}; starts again in {self.pause:g} s"
        logger.warning("%s %s", self.role.name, self.end)

    def gives_way(self, now: float) -> bool:
        """Has another process done this role's work for so long that it is another vacd's?"""
        return self.other_since is not None and now - self.other_since >= self.timing.other

    def describe(self) -> str:
        """For `systemctl status`."""
        if self.child is None:
            return f"{self.role.name} {self.end}"
        return f"{self.role.name} {'ready' if self.child.ready else 'running'}"
