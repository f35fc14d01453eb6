"""A role's process: signals and the supervisor's messages become calls, and the role's main runs.

Signals go through a pipe (signal.set_wakeup_fd) to a thread that listens for nothing else, so that they are
heard while the main thread waits for an engine that doesn't answer.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from setproctitle import setproctitle

from vac import logs
from vac.daemon import link as messages
from vac.roles import Role, RoleOptions

STOPPING = (signal.SIGTERM, signal.SIGINT)
ORPHAN_SECONDS = 30.0
"""How long a role may take to end after its supervisor's death; nobody else would kill it."""

logger = logging.getLogger(__name__)


def signal_pipe(*numbers: signal.Signals) -> int:
    """A descriptor from which the numbers of these signals can be read, one a byte, as they arrive.

    To be called once, from the main thread. It never blocks. The signals have no other effect.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


class Listener:
    """Listens from its making on, and passes on what it has heard once somebody wants to know."""

    def __init__(self, link: socket.socket | None, log_file: Path | None) -> None:
        self._link = link
        self._log_file = log_file
        self._signals = signal_pipe(*STOPPING, signal.SIGHUP, signal.SIGUSR1)

    def listen(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        """See roles.Listen."""
        threading.Thread(target=self._run, args=(stop, wake), name="listener", daemon=True).start()

    def _run(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        stopped = False
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            if self._link is not None:
                selector.register(self._link, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj == self._signals:
                        end = self._hear_signals()
                    else:
                        end = self._hear_supervisor(selector)
                    if not stopped:
                        stopped = end
                        (stop if end else wake)()

    def _hear_signals(self) -> bool:
        """Whether it is time to end."""
        numbers = os.read(self._signals, 4096)
        if signal.SIGHUP in numbers and self._log_file is not None:
            logs.reopen(self._log_file)
        stopping = next((number for number in STOPPING if number in numbers), None)
        if stopping is not None:
            logger.info("stopping: %s", stopping.name)
        return stopping is not None

    def _hear_supervisor(self, selector: selectors.BaseSelector) -> bool:
        """Whether it is time to end: when the supervisor is gone; otherwise it has sent something."""
        assert self._link is not None
        message, log_descriptor = messages.receive(self._link)
        if log_descriptor is not None:
            logs.write_to(log_descriptor)
        if message != messages.GONE:
            return False
        selector.unregister(self._link)
        logger.warning("stopping: the supervisor is gone")
        deadline = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
        return True


def run(role: Role, configs: tuple[Path, ...], log_file: Path | None) -> int:
    """Run the role in this process until it ends; its exit status.

    log_file: what to open again after SIGHUP, if this process runs alone and has opened it.
    """
    setproctitle(f"vacd-{role.name}")
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    link = messages.inherited(os.environ)
    listener = Listener(link, log_file)

    def report(message: bytes) -> None:
        if link is not None:
            messages.send(link, message)

    options = RoleOptions(
        configs=configs,
        ready=lambda: report(messages.READY),
        alive=lambda: report(messages.ALIVE),
        need=lambda name, purpose: report(messages.need(name, purpose)),
        listen=listener.listen,
    )
    status: int = importlib.import_module(role.module).main(options)
    return status
