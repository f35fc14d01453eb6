"""Every change to the disk that a machine's life makes, and reading of what machines write.

Files appear whole: written under another name in tmp/, renamed; or renewed in place by one short write. Tests end the
process before and after each of these functions. What machines write is read without following links, without blocking,
and only up to a limit.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from vac.background import BackgroundWork, in_thread
from vac.host.child_processes import run
from vac.host.filesystems import mounts
from vac.logs import OnChange

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRASH = "gone-"
"""Prefix of names in tmp/ that are only to be removed."""
_numbers = itertools.count()

Owner = tuple[int, int]
"""uid and gid."""


class Unreadable(Exception):
    """A file of a machine is not a regular file of reasonable size."""


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(
    path: Path,
    content: bytes,
    *,
    mode: int = 0o644,
    owner: Owner | None = None,
    sync: bool = False,
    mtime: float | None = None,
) -> None:
    """Make a file that isn't there yet. Nobody but its owner can open it before it is complete."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        if mtime is not None:
            os.utime(descriptor, (mtime, mtime))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(
    target: Path,
    content: bytes,
    *,
    tmp: Path,
    mode: int = 0o644,
    owner: Owner | None = None,
    sync: bool = True,
    mtime: float | None = None,
) -> None:
    """Write target as a whole, through a temporary file in tmp, which is on the same file system.

    With sync, file and name are durable when it returns. Raises OSError, having changed nothing.
    """
    temporary = temporary_path(tmp)
    try:
        write_new(temporary, content, mode=mode, owner=owner, sync=sync, mtime=mtime)
        rename(temporary, target, sync=sync)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(target: Path, content: object, *, tmp: Path, sync: bool = False) -> None:
    """Write a file of our own as a whole; as write_atomic."""
    text = json.dumps(content, indent=1)
    write_atomic(target, text.encode("ascii") + b"\n", tmp=tmp, sync=sync)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of our own; an empty one if it is missing or damaged.

    Of bytes, json would guess the encoding: it takes the zeros that a power failure leaves for UTF-32, whose codec a
    process without privileges may be unable to load.
    """
    try:
        found = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def temporary_path(tmp: Path) -> Path:
    """Return a path in tmp that nobody else uses."""
    return tmp / f"{os.getpid()}-{next(_numbers)}-{secrets.token_hex(4)}"


def make_directory(
    path: Path, *, mode: int = 0o755, owner: Owner | None = None, exist_ok: bool = False
) -> None:
    """Make a directory; what is already there keeps its mode and owner."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        if exist_ok and path.is_dir():
            return
        raise
    if owner is not None:
        os.chown(path, *owner)
    path.chmod(mode)


def rename(source: Path, target: Path, *, sync: bool = False) -> None:
    """Give source the name target, in place of what had it."""
    source.rename(target)
    if sync:
        sync_directory(target.parent)


def append_line(path: Path, content: bytes, limit_bytes: int) -> None:
    """Append a line durably; a file that would grow beyond the limit becomes PATH.1 first. Half a line that a crash
    has left spoils no other."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size + len(content) > limit_bytes:
            rename(path, path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if os.write(descriptor, b"\n" + content) <= len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file; no error if it isn't there."""
    path.unlink(missing_ok=True)


def set_mtime(path: Path, mtime: float, content: bytes = b"") -> None:
    """Set a file's time of modification, making a world-readable file if there is none; and its content, if any.

    The content is a short line. It is written in place, with blanks if it has become shorter: a file that replaces
    another is written to disk by the kernel at once, which costs ten times as much.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        if content:
            os.pwrite(descriptor, content[:-1].ljust(os.fstat(descriptor).st_size - 1) + content[-1:], 0)
        os.fchmod(descriptor, 0o644)
        os.utime(descriptor, (mtime, mtime))
    finally:
        os.close(descriptor)


def discard(path: Path, *, tmp: Path) -> None:
    """Move a file or directory to the trash in tmp, to be removed later."""
    rename(path, tmp / f"{_TRASH}{temporary_path(tmp).name}")


def trash(tmp: Path) -> list[Path]:
    """Return what has been discarded and is still in tmp; nothing while that can't be read."""
    try:
        return sorted(path for path in tmp.iterdir() if path.name.startswith(_TRASH))
    except OSError:
        return []


def remove_tree(path: Path) -> None:
    """Remove a file or a directory with all that a machine has put into it. Links are removed, never followed.

    A child process does it. Raises OSError if something can't be removed; while anything is mounted below path, nothing
    is.
    """
    real = str(path.parent.resolve() / path.name)
    mounted = [each.point for each in mounts() if f"{each.point}/".startswith(f"{real}/")]
    if mounted:
        raise OSError(errno.EBUSY, "something is mounted there", mounted[0])
    done = run(["rm", "-rf", "--one-file-system", "--", path], time_limit_seconds=None)
    if done.failure:
        raise OSError(done.exit_code, done.failure, str(path))


def read_untrusted(directory: Path, name: str, limit_bytes: int) -> bytes:
    """Return the content of a file that a machine may have written.

    Raises FileNotFoundError if there is none, and Unreadable if it is anything but a regular file of at most
    limit_bytes, or can't be read.
    """
    with open_untrusted(directory, name) as (descriptor, found):
        if found.st_size > limit_bytes:
            raise Unreadable(f"{name}: {found.st_size} bytes are more than {limit_bytes}")
        content = b""
        while len(content) <= limit_bytes:
            piece = os.read(descriptor, limit_bytes + 1 - len(content))
            if not piece:
                return content
            content += piece
        raise Unreadable(f"{name}: more than {limit_bytes} bytes")


def untrusted_mtime(directory: Path, name: str) -> float:
    """Return when a regular file that a machine may have written was last modified. Errors as for read_untrusted."""
    with open_untrusted(directory, name) as (_, found):
        return found.st_mtime


@contextlib.contextmanager
def open_untrusted(directory: Path, name: str) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file as read_untrusted() does, of any size, and yield its descriptor."""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise Unreadable(f"{name!r} is no name of a file")
    holder: int | None = None
    descriptor: int | None = None
    try:
        holder = os.open(directory, _DIRECTORY)
        if not stat.S_ISREG(os.stat(name, dir_fd=holder, follow_symlinks=False).st_mode):
            raise Unreadable(f"{name}: not a regular file")
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=holder
        )
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable(f"{name}: not a regular file")
        yield descriptor, found
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{name}: {error.strerror}") from error
    finally:
        for opened in (descriptor, holder):
            if opened is not None:
                os.close(opened)


log = logging.getLogger(__name__)


class TrashCollector:
    """Removal of what is discarded, in the background. What can't be removed is tried again at the next start()."""

    def __init__(self, tmp: Path, spawn: Callable[[Callable[[], None], str], object] = in_thread) -> None:
        self._tmp = tmp
        self._changes = OnChange(log)
        self._work: BackgroundWork[None] = BackgroundWork("trash", spawn=spawn)

    def start(self) -> None:
        """Remove what has been discarded. Never blocks."""
        if trash(self._tmp):
            self._work.start("trash", self._sweep)

    def _sweep(self) -> None:
        tried: set[Path] = set()
        while waiting := [path for path in trash(self._tmp) if path not in tried]:
            for path in waiting:
                tried.add(path)
                try:
                    remove_tree(path)
                    self._changes.clear(path)
                except OSError as error:
                    self._changes.say(path, f"{path} can't be removed now: {error}", logging.WARNING)
