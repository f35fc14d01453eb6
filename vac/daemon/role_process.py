"""A role's process, and the socket between it and the supervisor.

The socket carries the role's reports, and messages to the role that there may be news, perhaps with a log file to
continue with; it closes when the other side ends. The number of the role's end is in its environment. Signals
arrive through a pipe (signal.set_wakeup_fd) in a thread of their own, even while the main thread waits for an engine.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import selectors
import signal
import socket
import struct
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path

from setproctitle import setproctitle

from vac import logs
from vac.roles import Role, RoleOptions

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)
ORPHAN_SECONDS = 30.0
"""Time for a role to end after its supervisor's death; nobody else would kill it."""
LOG_CHECK_SECONDS = 20.0
LINK_VARIABLE = "VAC_SUPERVISOR_FD"
LISTENING_VARIABLE = "VAC_LISTENING_FD"

READY, ALIVE = "ready", "alive"
NEED = "need"
"""Followed by a role's name and its purpose."""
USES = "uses"
"""Followed by the state_dir."""
LONGEST = 8192
GONE = b""
"""Received when nothing more will come."""


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Return the supervisor's end and the role's. Neither blocks, and message boundaries are kept."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


def inherited(environ: MutableMapping[str, str], variable: str = LINK_VARIABLE) -> socket.socket | None:
    """Return the socket with the number in this variable, if any; this process's own children won't have it."""
    number = environ.pop(variable, None)
    if number is None:
        return None
    found = socket.socket(fileno=int(number))
    found.set_inheritable(False)
    return found


def send(link: socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """Send without waiting. The message is lost if the other side has ended or reads too slowly."""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        socket.send_fds(link, [message], [] if descriptor is None else [descriptor])


def receive(link: socket.socket) -> tuple[bytes, int | None]:
    """Return the next message and its descriptor. GONE at the end, or if reading would block."""
    room = socket.CMSG_SPACE(struct.calcsize("i"))
    try:
        message, ancillary, _, _ = link.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    except (BlockingIOError, ConnectionError):
        return GONE, None
    return message, struct.unpack("i", ancillary[0][2])[0] if ancillary else None


def is_renamed(log_file: Path, opened: os.stat_result) -> bool:
    """Return True if the file of this name isn't the opened one any more, as after logrotate without a signal."""
    try:
        found = log_file.stat()
    except OSError:
        return True
    return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino)


def signal_pipe(*numbers: signal.Signals) -> int:
    """Return a non-blocking descriptor that yields the numbers of these signals as bytes when they arrive.

    To be called once, from the main thread. The signals have no other effect.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


class Listener:
    """Signals and messages, collected from its creation on; listen() delivers them."""

    def __init__(self, link: socket.socket | None, log_file: Path | None) -> None:
        self._link = link
        self._log_file = log_file
        self._signals = signal_pipe(*STOPPING, signal.SIGHUP, signal.SIGUSR1)

    def listen(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        """See RoleOptions.listen."""
        threading.Thread(target=self._run, args=(stop, wake), name="listener", daemon=True).start()

    def _run(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        stopped = False
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            if self._link is not None:
                selector.register(self._link, selectors.EVENT_READ)
            while True:
                ready = selector.select(None if self._log_file is None else LOG_CHECK_SECONDS)
                if self._log_file is not None and is_renamed(self._log_file, os.fstat(2)):
                    logs.reopen(self._log_file)
                for key, _ in ready:
                    if key.fileobj == self._signals:
                        end = self._read_signals()
                    else:
                        end = self._read_message(selector)
                    if not stopped:
                        stopped = end
                        (stop if end else wake)()

    def _read_signals(self) -> bool:
        """Return True if the process is to end."""
        numbers = os.read(self._signals, 4096)
        stopping = next((number for number in STOPPING if number in numbers), None)
        if stopping is not None:
            logger.info("stopping: %s", stopping.name)
        return stopping is not None

    def _read_message(self, selector: selectors.BaseSelector) -> bool:
        """Return True if the process is to end, since the supervisor has."""
        assert self._link is not None
        message, log_descriptor = receive(self._link)
        if log_descriptor is not None:
            logs.write_to(log_descriptor)
        if message != GONE:
            return False
        selector.unregister(self._link)
        logger.warning("stopping: the supervisor has ended")
        deadline = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
        return True


def run(role: Role, configs: tuple[Path, ...], log_file: Path | None) -> int:
    """Run the role in this process until it ends, and return its exit status.

    log_file: to be reopened after it has been renamed, if this process runs alone.
    """
    setproctitle(f"vacd-{role.name}")
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    link, listening = inherited(os.environ), inherited(os.environ, LISTENING_VARIABLE)
    listener = Listener(link, log_file)

    def report(*words: str | Path) -> None:
        if link is not None:
            send(link, b" ".join(map(os.fsencode, words)))

    options = RoleOptions(
        configs=configs,
        ready=lambda: report(READY),
        uses=lambda state_dir: report(USES, state_dir),
        alive=lambda: report(ALIVE),
        need=lambda name, purpose: report(NEED, name, purpose),
        listening=listening,
        listen=listener.listen,
    )
    main = load_main(role)
    return 1 if main is None else main(options)


def load_main(role: Role) -> Callable[[RoleOptions], int] | None:
    """Return the role's main function; None, and a log line, if an optional Python package of it is missing."""
    try:
        main: Callable[[RoleOptions], int] = importlib.import_module(role.module).main
    except ModuleNotFoundError as error:
        if (error.name or "vac").startswith("vac") or not role.packages:
            raise
        logger.error("the Python package %s is missing: install %s", error.name, role.packages)
        return None
    return main
