"""vacd itself: starts the roles' processes, starts them again when they die, and touches no machine.

One thread, one selector: signals come through a pipe, what processes report through their links. Children
are reaped here only, so a process number stays a child's until its end has been dealt with.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vac import __version__, logs
from vac.daemon import link as messages
from vac.daemon.child import Post, Timing
from vac.daemon.role import STOPPING, signal_pipe
from vac.daemon.sdnotify import Notifier
from vac.host.privileges import become_subreaper
from vac.roles import Role

logger = logging.getLogger(__name__)


class Supervisor:
    """command gives what to execute for a role; log_dir is None when all log to standard error as it is."""

    def __init__(
        self,
        roles: Sequence[Role],
        command: Callable[[Role], Sequence[str]],
        notifier: Notifier,
        log_dir: Path | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._command = command
        self._notifier = notifier
        self._log_dir = log_dir
        self._posts = [Post(role, timing or Timing()) for role in roles]
        self._selector = selectors.DefaultSelector()
        self._signals = signal_pipe(*STOPPING, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
        self._stopping = False
        self._status = 0
        self._told_ready = False
        self._told_status = ""
        self._watchdog_time = -math.inf if notifier.watchdog_seconds else math.inf

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or another vacd turns out to do the work; the exit status."""
        logger.info("vacd %s started, process %d", __version__, os.getpid())
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        try:
            become_subreaper()
        except OSError as error:
            logger.warning("can't adopt what dead processes leave behind: %s", error)
        self._selector.register(self._signals, selectors.EVENT_READ, self._hear_signals)
        while not self._stopping or any(post.child for post in self._posts):
            now = time.monotonic()
            needs = {name: purpose for post in self._posts for name, purpose in post.needs.items()}
            for post in self._posts:
                if post.role.on_demand:
                    post.serve(needs.get(post.role.name, ""), now)
                self._attend(post, now)
            self._notify(now)
            for key, _ in self._selector.select(self._patience(now)):
                key.data()
            self._reap()
        self._selector.close()
        logger.info("vacd ended")
        return self._status

    def _attend(self, post: Post, now: float) -> None:
        post.attend(now)
        if post.child is None and post.wanted and not self._stopping and now >= post.start_time:
            child = post.start(self._command(post.role), self._log_file(post), now)
            if child is not None:
                self._selector.register(child.link, selectors.EVENT_READ, partial(self._hear, post))

    def _patience(self, now: float) -> float | None:
        """How long to wait for something to happen; None: for ever."""
        posts = [post for post in self._posts if post.child is not None or not self._stopping]
        next_time = min([self._watchdog_time, *(post.next_time() for post in posts)])
        return None if next_time == math.inf else max(0.0, next_time - now)

    def _log_file(self, post: Post) -> Path | None:
        return None if self._log_dir is None else self._log_dir / f"vacd-{post.role.name}"

    def _hear(self, post: Post) -> None:
        assert post.child is not None
        if not post.hear(time.monotonic()):
            self._selector.unregister(post.child.link)

    def _hear_signals(self) -> None:
        numbers = os.read(self._signals, 4096)
        if signal.SIGHUP in numbers:
            if self._log_dir is not None:
                logs.reopen(self._log_dir / "vacd")
            for post in self._posts:
                post.tell(messages.RELOAD, self._log_file(post))
        if signal.SIGUSR1 in numbers:
            for post in self._posts:
                post.tell(messages.WAKE, None)
        stopping = next((number for number in STOPPING if number in numbers), None)
        if stopping is not None and not self._stopping:
            logger.info("stopping: %s; machines go on running", stopping.name)
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._watchdog_time = math.inf
        self._notifier.send("STOPPING=1", "STATUS=stopping")
        for post in self._posts:
            post.stop(time.monotonic())

    def _reap(self) -> None:
        """Deal with every child that has ended; those that aren't ours were left behind by ours."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for post in self._posts:
                if post.child is not None and post.child.pid == pid:
                    self._drain(post)
                    post.ended(wait_status, time.monotonic(), expected=self._stopping)
                    self._give_way(post)

    def _give_way(self, post: Post) -> None:
        """End if there is another vacd, which has the same state_dir."""
        if post.gives_way(time.monotonic()) and not self._stopping:
            logger.critical("leaving: another vacd is at work on the same state_dir")
            self._status = 1
            self._stop()

    def _drain(self, post: Post) -> None:
        """Hear the last messages of a process that has ended."""
        assert post.child is not None
        if post.child.link in self._selector.get_map():
            while post.hear(time.monotonic()):
                pass
            self._selector.unregister(post.child.link)

    def _notify(self, now: float) -> None:
        if self._stopping:
            return
        status = "; ".join(post.describe() for post in self._posts if post.wanted)
        if status != self._told_status:
            self._told_status = status
            self._notifier.send(f"STATUS={logs.escape(status)}")
        if not self._told_ready and all(post.was_ready for post in self._posts if post.role.must_be_ready):
            self._told_ready = True
            self._notifier.send("READY=1")
        if now >= self._watchdog_time:
            assert self._notifier.watchdog_seconds is not None
            self._watchdog_time = now + self._notifier.watchdog_seconds / 2
            if all(now < post.hopeless_time() for post in self._posts):
                self._notifier.send("WATCHDOG=1")
