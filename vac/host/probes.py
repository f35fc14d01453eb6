"""Probes of what may hang: machines' disk use, the site's health check, CernVM-FS repositories, images' digests.

A child process does each look, since a file system that hangs takes whoever touches it along. Looking at a repository
also keeps it mounted where an automounter would let go of it (autofs(5)).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vac.host import filesystems
from vac.host.cgroups import CgroupError, machine_processes
from vac.host.child_processes import KILL_SECONDS, run
from vac.host.connections import open_files
from vac.host.filesystems import FileStamp

CVMFS = Path(filesystems.CVMFS)
ANSWER_SECONDS = 15.0
"""A repository that takes longer counts as one that doesn't answer, until it does."""
DU = ("nice", "-n", "19", "du", "-s", "-x")
"""Other file systems mounted inside, such as a volume of the machine's own, are not counted."""
BYTES_PER_INODE = 16 * 1024
"""A file counts for so much at least, the bytes that file systems have for each inode: empty files fill a disk, too."""
MOST_UNLINKED = 2000
"""Unlinked files looked at per machine."""
STAT_SECONDS = 20.0
DU_SECONDS = 120.0
MEASURE_SECONDS = 2 * DU_SECONDS + STAT_SECONDS + KILL_SECONDS
"""Longest that a measurement takes as long as its children can be killed."""
HEALTH_SECONDS = 60.0
MOST_CHARACTERS = 200
_LOOK = """
import os, sys
try:
    if os.path.isdir(sys.argv[1]):
        with os.scandir(sys.argv[1]) as entries:
            print("" if next(entries, None) else "is empty, so it isn't mounted")
    else:
        with open(sys.argv[1], "rb") as file:
            file.read(1)
except OSError as error:
    print(f"can't be read: {error.strerror}")
"""
_DIGEST = """
import hashlib, json, os, sys
os.nice(19)
def stamp():
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
digest = hashlib.sha256()
with open(sys.argv[1], "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
    before = stamp()
    while piece := file.read(1024 * 1024):
        digest.update(piece)
    print(json.dumps([before if stamp() == before else None, digest.hexdigest()]))
"""


def repository_problem(repository: str) -> str | None:
    """Return the reason why a repository can't be used, to follow its path; None: it answers. Blocks."""
    return _look(CVMFS / repository, None)


def problem_of(path: str) -> str | None:
    """Return the reason why this file or directory can't be used, to follow its path; None: it answers.

    Only paths below /cvmfs are looked at. It takes ANSWER_SECONDS and a little at most.
    """
    if not f"{os.path.normpath(path)}/".startswith(f"{CVMFS}/"):
        return None
    return _look(Path(path), ANSWER_SECONDS)


def sha256_of(path: str, stamp: FileStamp) -> str | None:
    """Return the SHA-256 of this version of a file in hex; None if it has changed. Raises OSError with a reason.

    A child process reads it, for as long as that takes: the file may be large, and on a file system that hangs.
    """
    done = run([sys.executable, "-I", "-S", "-c", _DIGEST, path], time_limit_seconds=None)
    if done.failure:
        raise OSError((done.errors.decode("utf-8", "replace").strip().splitlines() or [done.failure])[-1])
    read, digest = json.loads(done.output)
    return digest if read == list(stamp) else None


class DiskUse(NamedTuple):
    """Disk space that directories use together."""

    used_bytes: int | None
    """Allocated, or BYTES_PER_INODE for each file if that is more, and of files that are unlinked but open; None: du
    took too long."""
    seconds: float
    """Duration of the measurement."""


def measure_disk(
    uuid: str,
    directories: Sequence[Path],
    time_limit_seconds: float = DU_SECONDS,
    command: Sequence[str] = DU,
) -> DiskUse:
    """Measure a machine's directories, of which all but the first may be absent. Blocks; raises OSError."""
    begun = time.monotonic()
    allocated = _du([*command, "--block-size=1"], directories, time_limit_seconds)
    inodes = _du([*command, "--inodes"], directories, time_limit_seconds)
    if allocated is None or inodes is None:
        return DiskUse(None, time.monotonic() - begun)
    try:
        unlinked = _unlinked(machine_processes(uuid), directories)
    except CgroupError as error:
        raise OSError(str(error)) from error
    used = max(allocated, inodes * BYTES_PER_INODE) + unlinked
    return DiskUse(used, time.monotonic() - begun)


def _du(command: Sequence[str], directories: Sequence[Path], time_limit_seconds: float) -> int | None:
    """Return the sum that du prints; None if it takes too long. Raises OSError."""
    done = run(
        [*command, "--", *map(str, directories)], time_limit_seconds=time_limit_seconds, kill_seconds=None
    )
    if done.late:
        return None
    lines = (line.partition("\t") for line in os.fsdecode(done.output).splitlines())
    used = {path: int(number) for number, _, path in lines if number.isdigit()}
    if str(directories[0]) not in used:
        raise OSError(f"du can't measure {directories[0]}: {done.failure}")
    return sum(used.values())


def _unlinked(processes: Iterable[int], directories: Sequence[Path]) -> int:
    """Return the size of files on the directories' file systems that are unlinked but open in these processes."""
    opened = [
        path
        for process in processes
        for path, target in open_files(process)
        if target.endswith(" (deleted)") and not target.startswith("/memfd:")
    ][:MOST_UNLINKED]
    if not opened:
        return 0
    done = run(["stat", "-L", "--printf", "%d %i %b\\n", "--", *opened], time_limit_seconds=STAT_SECONDS)
    devices = {each.stat().st_dev for each in directories if each.exists()}
    numbers = (tuple(map(int, line.split())) for line in done.text.splitlines())
    return sum(512 * blocks for device, _, blocks in set(numbers) if device in devices)


def health_problem(command: Path, time_limit_seconds: float = HEALTH_SECONDS) -> str | None:
    """Run the site's program. Return the first line of its output, or why there is none; None: all is well. Blocks."""
    done = run([command], time_limit_seconds=time_limit_seconds, merge=True)
    if done.exit_code == 0 or done.exit_code is None:
        return done.failure or None
    lines = done.text.strip().splitlines()
    return lines[0][:MOST_CHARACTERS] if lines else f"{done.failure} and said nothing"


def _look(path: Path, seconds: float | None) -> str | None:
    done = run([sys.executable, "-I", "-S", "-c", _LOOK, path], time_limit_seconds=seconds)
    if seconds is not None and done.late:
        return late_problem(seconds)
    return f"can't be looked at: {done.failure}" if done.failure else done.text.strip() or None


def late_problem(seconds: float) -> str:
    """Return the problem of a repository that has not answered in time."""
    return f"doesn't answer within {seconds:.0f} s"
