"""Files that a VM sends to its joboutputs: what is taken, and how much. Containers write theirs themselves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from vac.machines import files

FILE_LIMIT_BYTES = 32 * 1024 * 1024
MACHINE_LIMIT_BYTES = 128 * 1024 * 1024
MOST_FILES = 1000
LONGEST_NAME_BYTES = 200

_turn = threading.Lock()


class Refused(Exception):
    """The file isn't taken; the text says why, for the machine and for the log."""


def check_name(name: str) -> None:
    """Raises Refused unless a machine may give a file this name."""
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise Refused("a name is printable, without '/', and does not begin with '.'")
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        raise Refused(f"a name has at most {LONGEST_NAME_BYTES} bytes")


def store(directory: Path, name: str, content: bytes, *, tmp: Path) -> None:
    """Put a file into a machine's joboutputs, as a whole, in place of what had its name.

    tmp is a directory of this process alone, on the same file system. Raises Refused, having changed
    nothing, also when the disk doesn't take it.
    """
    check_name(name)
    if len(content) > FILE_LIMIT_BYTES:
        raise Refused(f"a file has at most {FILE_LIMIT_BYTES} bytes")
    try:
        temporary = files.temporary_path(tmp)
        try:
            files.write_new(temporary, content)
            with _turn:  # two files at once must not pass one limit
                _check_room(directory, name, len(content))
                files.rename(temporary, directory / name)
        except (OSError, Refused):
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Refused(f"it can't be stored: {error.strerror}") from error


def _check_room(directory: Path, name: str, size: int) -> None:
    count, total = 1, size
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name != name:
                count += 1
                total += entry.stat(follow_symlinks=False).st_size
    if count > MOST_FILES:
        raise Refused(f"a machine has at most {MOST_FILES} files in joboutputs")
    if total > MACHINE_LIMIT_BYTES:
        raise Refused(f"a machine's joboutputs have at most {MACHINE_LIMIT_BYTES} bytes")
