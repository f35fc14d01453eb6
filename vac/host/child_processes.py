"""Ends of processes, and the one way to run a program: argument list, time limit, bounded output, errors as values.

    done = run(["vgs", "--noheadings"], time_limit_seconds=20)
    if done.failure:      # "vgs is not installed", "vgs took longer than 20 s", "vgs failed (5): LAST LINE"
        …
    done.text

A child is a session of its own and killed with its whole process group. What it leaves behind in other sessions is not
waited for, even if that keeps its output open.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Callable

MOST_BYTES = 16 * 1024 * 1024
KILL_SECONDS = 1.0
"""Longest wait for a killed child: one that the kernel holds, on a file system that hangs, may stay."""
MOST_CHARACTERS = 200
_HIGHEST_PRIORITY = -20


@dataclass(frozen=True)
class Finished:
    """The end of a child process."""

    exit_code: int | None
    """Negative for a signal; None: it couldn't be started, or took too long."""
    output: bytes = b""
    errors: bytes = b""
    """Empty if it went into the output."""
    failure: str = ""
    """For people, with the program's name, if it didn't end with exit code 0."""
    late: bool = False
    """True: it took too long."""
    missing: bool = False
    """True: there is no such program."""

    @property
    def text(self) -> str:
        """The output as text; bytes that aren't UTF-8 are replaced."""
        return self.output.decode("utf-8", "replace")


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    time_limit_seconds: float | None,
    merge: bool = False,
    environment: Mapping[str, str] | None = None,
    identity: tuple[int, int] | None = None,
    kill_seconds: float | None = KILL_SECONDS,
) -> Finished:
    """Run a program in / until its end, or kill it when its time is over. Never raises OSError.

    time_limit_seconds None: it may take for ever. merge: errors go into the output. environment None: as ours.
    identity: uid and gid to run as, without supplementary groups. Of each stream MOST_BYTES are kept, and the rest is
    read and dropped. kill_seconds None: wait for the end of a killed child however long it takes.
    """
    identified: dict[str, Any] = {}
    if identity is not None:
        identified = {"user": identity[0], "group": identity[1], "extra_groups": ()}
    words = tuple(os.fspath(word) for word in command)
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
            **identified,
        )
    except FileNotFoundError:
        return Finished(None, failure=f"{words[0]} is not installed", missing=True)
    except OSError as error:
        return Finished(None, failure=f"{words[0]} can't be started: {error.strerror}")
    streams = [stream for stream in (child.stdout, child.stderr) if stream is not None]
    kept = [bytearray() for _ in streams]
    try:
        in_time = _read_until_end(child.pid, streams, kept, time_limit_seconds)
        if not in_time:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    finally:
        for stream in streams:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(None if in_time else kill_seconds)
    output, errors = bytes(kept[0]), bytes(b"".join(kept[1:]))
    if not in_time:
        failure = f"{words[0]} took longer than {time_limit_seconds:g} s"
        return Finished(None, output, errors, failure, late=True)
    failure = _failure(words[0], child.returncode, errors or output) if child.returncode else ""
    return Finished(child.returncode, output, errors, failure)


def call_at_end(pid: int, call: Callable[[], object], name: str) -> None:
    """Call this in a daemon thread of this name as soon as any process has ended. Raises OSError if it has already."""
    process = os.pidfd_open(pid)

    def wait() -> None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, _HIGHEST_PRIORITY)  # on Linux, of this thread alone
        end = select.poll()
        end.register(process, select.POLLIN)
        end.poll()
        os.close(process)
        call()

    threading.Thread(target=wait, name=name, daemon=True).start()


def _read_until_end(
    pid: int, streams: Sequence[IO[bytes]], kept: Sequence[bytearray], seconds: float | None
) -> bool:
    """Read what the child writes until it has ended; False if the time was over before."""
    deadline = None if seconds is None else time.monotonic() + seconds
    ended = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for stream, content in zip(streams, kept):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, content)
            while True:
                left = None if deadline is None else deadline - time.monotonic()
                ready = selector.select(left)
                for key, _ in ready:
                    if key.data is not None and not _take(key.fd, key.data):
                        selector.unregister(key.fileobj)
                if any(key.data is None for key, _ in ready):
                    for stream, content in zip(streams, kept):
                        while _take(stream.fileno(), content):
                            pass
                    return True
                if left is not None and left <= 0:
                    return False
    finally:
        os.close(ended)


def _take(descriptor: int, kept: bytearray) -> bool:
    """Read what there is without waiting; False at the end of the stream, or if there is nothing."""
    try:
        piece = os.read(descriptor, 65536)
    except BlockingIOError:
        return False
    kept += piece[: max(0, MOST_BYTES - len(kept))]
    return bool(piece)


def _failure(program: str, exit_code: int, said: bytes) -> str:
    ended = f"was ended by signal {-exit_code}" if exit_code < 0 else f"failed ({exit_code})"
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return f"{program} {ended}: {lines[-1].strip()[:MOST_CHARACTERS]}" if lines else f"{program} {ended}"
