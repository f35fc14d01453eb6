"""Probes of what may hang: machines' disk use, the site's health check, CernVM-FS repositories, images' digests.

A child process does each look, since a file system that hangs takes whoever touches it along. Looking at a repository
also keeps it mounted where an automounter would let go of it (autofs(5)).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from vac.background import BackgroundWork, Outcome
from vac.host import filesystems
from vac.host.cgroups import CgroupError, machine_processes
from vac.host.child_processes import KILL_SECONDS, Finished, run
from vac.host.connections import open_files
from vac.host.filesystems import FileStamp

CVMFS = Path(filesystems.CVMFS)
ANSWER_SECONDS = 15.0
"""A repository that takes longer counts as one that doesn't answer, until it does."""
AT_ONCE = 32
MOST_HANGING = 256
"""No more repositories are looked at while so many children hang: each keeps a thread and open files."""
DU = ("nice", "-n", "19", "du", "-s", "-x")
"""Other file systems mounted inside, such as a volume of the machine's own, are not counted."""
BYTES_PER_INODE = 16 * 1024
"""A file counts for so much at least, the bytes that file systems have for each inode: empty files fill a disk, too."""
MOST_UNLINKED = 2000
"""Unlinked files looked at per machine."""
STAT_SECONDS = 20.0
DU_SECONDS = 120.0
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


@dataclass(frozen=True)
class RepositorySeen:
    """Result of a repository check."""

    repository: str
    problem: str | None
    """For people, to follow its name; None: it answers."""


class RepositoryWatch:
    """Checks repositories in the background; post takes each RepositorySeen, from another thread."""

    def __init__(
        self, post: Callable[[RepositorySeen], object], answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        def done(outcome: Outcome[str | None]) -> None:
            problem = outcome.value
            if outcome.late:
                problem = _late(answer_seconds)
            elif outcome.failure:
                problem = f"can't be looked at: {outcome.failure}"
            post(RepositorySeen(outcome.key, problem))

        self._work: BackgroundWork[str | None] = BackgroundWork(
            "cvmfs", done, at_once=AT_ONCE, deadline_seconds=answer_seconds, most_late=MOST_HANGING
        )

    def look(self, repositories: Iterable[str]) -> None:
        """Check these, but not twice one at a time: a child that hangs can't even be killed."""
        for each in sorted(set(repositories)):
            self._work.start(each, lambda each=each: _problem(_look(CVMFS / each, None)))  # type: ignore[misc]


def problem_of(path: str, answer_seconds: float | None = None) -> str | None:
    """Return the reason why this file or directory can't be used, to follow its path; None: it answers.

    Only paths below /cvmfs are looked at. It takes answer_seconds (ANSWER_SECONDS) and a little at most.
    """
    if not f"{os.path.normpath(path)}/".startswith(f"{CVMFS}/"):
        return None
    seconds = ANSWER_SECONDS if answer_seconds is None else answer_seconds
    done = _look(Path(path), seconds)
    return _late(seconds) if done.late else _problem(done)


def sha256_of(path: str) -> tuple[FileStamp | None, str]:
    """Return the file's version, None if it changed meanwhile, and its SHA-256 in hex. Raises OSError with a reason.

    A child process reads it, for as long as that takes: the file may be large, and on a file system that hangs.
    """
    done = run([sys.executable, "-I", "-S", "-c", _DIGEST, path], time_limit_seconds=None)
    if done.failure:
        raise OSError((done.errors.decode("utf-8", "replace").strip().splitlines() or [done.failure])[-1])
    stamp, digest = json.loads(done.output)
    return FileStamp(*stamp) if stamp else None, digest


@dataclass(frozen=True)
class HealthChecked:
    """Result of health_command."""

    problem: str | None
    """First line of its output, or the reason why there is none; None: all is well."""


class HealthCheck:
    """Runs the site's program in the background, one at a time; post takes each HealthChecked."""

    def __init__(
        self, post: Callable[[HealthChecked], object], time_limit_seconds: float = HEALTH_SECONDS
    ) -> None:
        self._time_limit_seconds = time_limit_seconds
        self._work: BackgroundWork[str | None] = BackgroundWork(
            "health", lambda outcome: post(HealthChecked(outcome.failure or outcome.value))
        )

    def start(self, command: Path) -> None:
        """Run it, unless it still runs."""
        self._work.start("health", lambda: _health(command, self._time_limit_seconds))


@dataclass(frozen=True)
class DiskMeasured:
    """Disk space that directories use together."""

    key: str
    used_bytes: int
    """Allocated, or BYTES_PER_INODE for each file if that is more, and of files that are unlinked but open."""
    seconds: float
    """Duration of the measurement."""


@dataclass(frozen=True)
class DiskNotMeasured:
    """Failure of a measurement."""

    key: str
    reason: str


DiskMessage = Union[DiskMeasured, DiskNotMeasured]


class DiskMeter:
    """Measures directories one after another in the background; post takes each DiskMessage.

    A key is the caller's name for what is measured, such as a machine's uuid.
    """

    def __init__(
        self,
        post: Callable[[DiskMessage], object],
        time_limit_seconds: float = DU_SECONDS,
        command: Sequence[str] = DU,
    ) -> None:
        def done(outcome: Outcome[DiskMeasured]) -> None:
            failure = "du can't even be killed" if outcome.late else outcome.failure
            post(outcome.value or DiskNotMeasured(outcome.key, failure))

        self._time_limit_seconds = time_limit_seconds
        self._command = tuple(command)
        self._work: BackgroundWork[DiskMeasured] = BackgroundWork(
            "disk", done, deadline_seconds=2 * time_limit_seconds + STAT_SECONDS + KILL_SECONDS
        )

    def start(self, key: str, *directories: Path) -> None:
        """Measure these together, unless it is being done; all but the first may be absent."""
        self._work.start(key, lambda: self._measure(key, directories))

    def _measure(self, key: str, directories: Sequence[Path]) -> DiskMeasured:
        begun = time.monotonic()
        allocated = self._du("--block-size=1", directories)
        inodes = self._du("--inodes", directories)
        try:
            unlinked = _unlinked(machine_processes(key), directories)
        except CgroupError as error:
            raise OSError(str(error)) from error
        used = max(allocated, inodes * BYTES_PER_INODE) + unlinked
        return DiskMeasured(key, used, time.monotonic() - begun)

    def _du(self, unit: str, directories: Sequence[Path]) -> int:
        command = [*self._command, unit, "--", *map(str, directories)]
        done = run(command, time_limit_seconds=self._time_limit_seconds, kill_seconds=None)
        if done.late:
            raise OSError(f"du of {directories[0]} took over {self._time_limit_seconds:.0f} s")
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


def _health(command: Path, time_limit_seconds: float) -> str | None:
    done = run([command], time_limit_seconds=time_limit_seconds, merge=True, most_bytes=4096)
    if done.exit_code == 0 or done.exit_code is None:
        return done.failure or None
    lines = done.text.strip().splitlines()
    return lines[0][:MOST_CHARACTERS] if lines else f"{done.failure} and said nothing"


def _look(path: Path, seconds: float | None) -> Finished:
    return run([sys.executable, "-I", "-S", "-c", _LOOK, path], time_limit_seconds=seconds)


def _problem(done: Finished) -> str | None:
    return f"can't be looked at: {done.failure}" if done.failure else done.text.strip() or None


def _late(seconds: float) -> str:
    return f"doesn't answer within {seconds:.0f} s"
