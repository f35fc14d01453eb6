"""vacd itself: it starts and restarts the roles' processes, reports to the service manager, and touches no machine.

One thread with one selector: signals arrive through a pipe, reports of the processes through their links. Children are
reaped here only, so that a process number stays valid until its end has been handled. The service manager's protocol
is that of sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vac import __version__, logs
from vac.daemon.role_process import LOG_CHECK_SECONDS, STOPPING, is_renamed, signal_pipe
from vac.daemon.role_supervisor import RoleSupervisor
from vac.host.privileges import become_subreaper
from vac.roles import MOST_TIMES, Restarts, Role, write_restarts
from vac.text import escaped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notifier:
    """Connection to the service manager; without an address nothing is sent."""

    address: str | None = None
    """Path of a datagram socket, abstract if it begins with `@`."""
    watchdog_seconds: float | None = None
    """Longest interval between signs of life."""
    _trouble: logs.OnChange = field(default_factory=lambda: logs.OnChange(logger), compare=False)

    def send(self, *assignments: str, descriptors: Sequence[int] = ()) -> None:
        """Send `NAME=value` lines, and descriptors to be stored. Failures are logged."""
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        trouble = None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.connect(address)
                socket.send_fds(sender, ["\n".join(assignments).encode()], descriptors)
        except OSError as error:
            trouble = f"can't notify the service manager at {self.address}: {error}"
        self._trouble.tell(self.address, trouble)


def notifier_from(environ: Mapping[str, str], pid: int) -> Notifier:
    """Return the notifier that the manager has described in the environment of the process with this number."""
    address = environ.get("NOTIFY_SOCKET") or None
    microseconds = environ.get("WATCHDOG_USEC", "")
    mine = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
    enabled = mine and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0
    return Notifier(address, int(microseconds) / 1e6 if enabled else None)


def stored_sockets(environ: MutableMapping[str, str], pid: int) -> dict[str, socket.socket]:
    """Return the sockets that the manager kept during a restart, by address; see sd_listen_fds(3).

    Their names have `|` in place of `:`, which the manager doesn't allow.
    """
    mine = environ.pop("LISTEN_PID", "") == str(pid)
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    number = environ.pop("LISTEN_FDS", "")
    numbers = range(3, 3 + int(number)) if mine and number.isascii() and number.isdigit() else ()
    found = {name.replace("|", ":"): socket.socket(fileno=one) for one, name in zip(numbers, names)}
    for one in found.values():
        one.set_inheritable(False)
    return found


class Supervisor:
    """command: returns the command line of a role. log_dir: None if all log to the present standard error."""

    def __init__(
        self,
        roles: Sequence[Role],
        command: Callable[[Role], Sequence[str]],
        notifier: Notifier,
        log_dir: Path | None,
        stored: MutableMapping[str, socket.socket],
    ) -> None:
        self._command = command
        self._notifier = notifier
        self._log_dir = log_dir
        self._roles = [RoleSupervisor(role, stored) for role in roles]
        self._stored: dict[str, str] = {}
        """By role, the address of its socket that the service manager keeps, if any."""
        self._selector = selectors.DefaultSelector()
        self._signals = signal_pipe(*STOPPING, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
        self._stopping = False
        self._status = 0
        self._sent_ready = False
        self._sent_status = ""
        self._watchdog_time = -math.inf if notifier.watchdog_seconds else math.inf
        self._log_time = math.inf if log_dir is None else -math.inf
        self._noted: object = None

    def run(self) -> int:
        """Supervise until SIGTERM, SIGINT or the discovery of another vacd. Return the exit status."""
        logger.info("vacd %s started, process %d", __version__, os.getpid())
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        try:
            become_subreaper()
        except OSError as error:
            logger.warning("can't adopt orphaned processes: %s", error)
        self._selector.register(self._signals, selectors.EVENT_READ, self._read_signals)
        while not self._stopping or any(one.child for one in self._roles):
            now = time.monotonic()
            needs = {name: purpose for one in self._roles for name, purpose in one.needs.items()}
            for one in self._roles:
                one.serve(needs.get(one.role.name, "" if one.role.on_demand else one.purpose), now)
                self._attend(one, now)
                self._store_socket(one)
            self._notify(now)
            self._reopen_logs(now)
            self._note_restarts()
            for key, _ in self._selector.select(self._timeout(now)):
                key.data()
            self._reap()
        self._selector.close()
        logger.info("vacd ended")
        return self._status

    def _store_socket(self, one: RoleSupervisor) -> None:
        """Let the service manager keep a role's socket while vacd is restarted."""
        name = "" if one.listening is None else one.address.replace(":", "|")
        before = self._stored.get(one.role.name, "")
        if name == before:
            return
        self._stored[one.role.name] = name
        if before:
            self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={before}")
        if one.listening is not None:
            self._notifier.send("FDSTORE=1", f"FDNAME={name}", descriptors=[one.listening.fileno()])

    def _attend(self, one: RoleSupervisor, now: float) -> None:
        one.attend(now)
        if one.child is None and one.wanted and not self._stopping and now >= one.start_time:
            child = one.start(self._command(one.role), self._log_file(one), now)
            if child is not None:
                self._selector.register(child.link, selectors.EVENT_READ, partial(self._hear, one))

    def _timeout(self, now: float) -> float | None:
        """Return the longest time to wait for events; None: forever."""
        roles = [one for one in self._roles if one.child is not None or not self._stopping]
        next_time = min([self._watchdog_time, self._log_time, *(one.next_time() for one in roles)])
        return None if next_time == math.inf else max(0.0, next_time - now)

    def _log_file(self, one: RoleSupervisor) -> Path | None:
        return None if self._log_dir is None else self._log_dir / f"vacd-{one.role.name}"

    def _reopen_logs(self, now: float) -> None:
        """Reopen log files that have been renamed without a signal."""
        if self._log_dir is None or now < self._log_time:
            return
        self._log_time = now + LOG_CHECK_SECONDS
        if is_renamed(self._log_dir / "vacd", os.fstat(2)):
            logs.reopen(self._log_dir / "vacd")
        for one in self._roles:
            log_file = self._log_file(one)
            if one.child and log_file and one.log_opened and is_renamed(log_file, one.log_opened):
                one.wake(log_file)

    def _note_restarts(self) -> None:
        """Write changed counts of restarts to state_dir, for check-vacd and metrics; not to that of another vacd."""
        state_dir = next((one.state_dir for one in self._roles if one.state_dir is not None), None)
        restarts = {
            one.role.name: Restarts(len(one.failures), tuple(one.failures[-MOST_TIMES:]), one.end)
            for one in self._roles
            if one.failures
        }
        others = any(one.other_since is not None for one in self._roles)
        if state_dir is None or others or self._noted == (state_dir, restarts):
            return
        try:
            write_restarts(state_dir, restarts)
            self._noted = (state_dir, restarts)
        except FileNotFoundError:  # the factory makes it
            return
        except OSError as error:
            self._noted = (state_dir, restarts)
            logger.warning("restarts can't be noted in %s: %s", state_dir, error)

    def _hear(self, one: RoleSupervisor) -> None:
        assert one.child is not None
        if not one.hear(time.monotonic()):
            self._selector.unregister(one.child.link)

    def _read_signals(self) -> None:
        numbers = os.read(self._signals, 4096)
        if signal.SIGHUP in numbers:
            if self._log_dir is not None:
                logs.reopen(self._log_dir / "vacd")
            for one in self._roles:
                one.wake(self._log_file(one))
        if signal.SIGUSR1 in numbers:
            for one in self._roles:
                one.wake()
        stopping = next((number for number in STOPPING if number in numbers), None)
        if stopping is not None and not self._stopping:
            logger.info("stopping: %s; machines go on running", stopping.name)
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._watchdog_time = math.inf
        self._notifier.send("STOPPING=1", "STATUS=stopping")
        for one in self._roles:
            one.stop(time.monotonic())

    def _reap(self) -> None:
        """Reap all ended children, including orphans of our own children."""
        pid = -1
        while pid != 0:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            for one in self._roles:
                if one.child is not None and one.child.pid == pid:
                    self._role_ended(one, one.child.link, wait_status)

    def _role_ended(self, one: RoleSupervisor, link: socket.socket, wait_status: int) -> None:
        """Take the last messages of a process, and note its end. End if another vacd works on the same state_dir."""
        if link in self._selector.get_map():
            while one.hear(time.monotonic()):
                pass
            self._selector.unregister(link)
        one.ended(wait_status, time.monotonic(), expected=self._stopping)
        if one.yields_to_other(time.monotonic()) and not self._stopping:
            logger.critical("ending: another vacd works on the same state_dir")
            self._status = 1
            self._stop()

    def _notify(self, now: float) -> None:
        if self._stopping:
            return
        status = "; ".join(one.describe() for one in self._roles if one.wanted)
        if status != self._sent_status:
            self._sent_status = status
            self._notifier.send(f"STATUS={escaped(status)}")
        if not self._sent_ready and all(one.was_ready for one in self._roles if one.role.must_be_ready):
            self._sent_ready = True
            self._notifier.send("READY=1")
        if now >= self._watchdog_time:
            assert self._notifier.watchdog_seconds is not None
            self._watchdog_time = now + self._notifier.watchdog_seconds / 2
            if all(now < one.kill_failed_time() for one in self._roles):
                self._notifier.send("WATCHDOG=1")
