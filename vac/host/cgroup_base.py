"""What cgroups v1 and v2 have in common: one group for each machine, below one directory for each factory.

A group is a directory per hierarchy (v2 has one hierarchy, v1 several). The first hierarchy is the one that
is asked which groups there are and which processes they hold: it is made first and removed last, so that a
group that was left half made is always found. Facts: the kernel's Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVICE = Path("vac.slice/vac-machines.service")
"""Where systemd has delegated a cgroup to Vac; systemd/vac-machines.service in our tree."""
OWN = Path("vac")
"""Our own base where it hasn't."""
GONE = (errno.ENOENT, errno.ENODEV)
"""What the kernel says of a file in a group that isn't there, or was removed since the file was opened."""


class CgroupError(Exception):
    """The kernel doesn't do as asked with a cgroup; the text says where and why."""


@dataclass(frozen=True)
class Limits:
    """What a group gets and may not exceed."""

    processors: int
    memory_bytes: int
    """What it keeps when the host is short of memory."""
    memory_limit_bytes: int | None
    """What it may never exceed; None: no limit."""
    pids: int
    """Most tasks at a time."""


@dataclass(frozen=True)
class GroupUsage:
    """What a group's processes, ended ones included, have used. None: the kernel doesn't tell."""

    cpu_seconds: float | None
    memory_bytes: int | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Watch:
    """A file descriptor to poll, which becomes ready when the group may have become empty. Close it."""

    descriptor: int
    events: int


def base_in(hierarchy: Path) -> Path:
    """The directory below which all factories' groups are in this hierarchy."""
    delegated = hierarchy / SERVICE
    return delegated if delegated.is_dir() else hierarchy / OWN


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an OSError into a CgroupError that names the file."""
    try:
        yield
    except OSError as error:
        raise CgroupError(f"{error.filename or 'cgroup'}: {error.strerror}") from error


def read_number(file: Path) -> int | None:
    """The number in a cgroup file; None if there is no such file or it says `max`."""
    text = read_text(file).strip()
    return int(text) if text.isdigit() else None


def read_text(file: Path) -> str:
    """A cgroup file's content; empty if there is no such file, or its group goes while it is read."""
    try:
        return file.read_text()
    except OSError as error:
        if error.errno not in GONE:
            raise
        return ""


def processes_in(group: Path) -> list[int]:
    """Numbers of the processes in a group's directory and those below; none if it isn't there. Raises CgroupError."""
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        try:
            found += map(int, Path(directory, "cgroup.procs").read_text().split())
        except OSError as error:
            if error.errno not in GONE:
                raise CgroupError(f"{directory}/cgroup.procs: {error.strerror}") from error
    return found


class Groups(abc.ABC):
    """The groups of one factory. Names are plain directory names. All raise CgroupError."""

    def __init__(self, homes: Sequence[Path]) -> None:
        """homes: the factory's directory in each hierarchy, the one that is asked first."""
        self._homes = tuple(homes)
        self._making_home = threading.Lock()

    def names(self) -> list[str]:
        """All groups there are."""
        try:
            with os.scandir(self._homes[0]) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def create(self, name: str, limits: Limits) -> None:
        """Make an empty group; it is an error if there is one of this name."""
        with explained():
            for home in self._homes:
                with self._making_home:
                    if not home.is_dir():
                        self._make_home(home)
                (home / name).mkdir()
            self._set_limits(name, limits)

    def entrances(self, name: str) -> tuple[Path, ...]:
        """The files to which a process writes 0 in order to enter the group, with all that it starts."""
        return tuple(home / name / "cgroup.procs" for home in self._homes)

    def exists(self, name: str) -> bool:
        """Is there such a group?"""
        return (self._homes[0] / name).is_dir()

    def processes(self, name: str) -> list[int]:
        """Numbers of the group's processes, groups inside it included; none if there is no such group."""
        return processes_in(self._homes[0] / name)

    def populated(self, name: str) -> bool:
        """Does any process live in the group?"""
        return bool(self.processes(name))

    def kill_all(self, name: str, deadline_seconds: float) -> None:
        """Kill the group's processes, also those that are forked meanwhile, until there are none."""
        deadline = time.monotonic() + deadline_seconds
        while self.populated(name):
            if time.monotonic() > deadline:
                left = " ".join(map(str, self.processes(name)))
                raise CgroupError(f"processes {left} of {name} have not ended after SIGKILL")
            with explained():
                self._kill(name)
            self.wait_until_empty(name, 0.5)

    def wait_until_empty(self, name: str, seconds: float) -> bool:
        """Wait so long for the group's last process to end; did it?"""
        deadline = time.monotonic() + seconds
        while (watch := self.watch(name)) is not None:
            poller = select.poll()
            poller.register(watch.descriptor, watch.events)
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            os.close(watch.descriptor)
            if time.monotonic() > deadline:
                return not self.populated(name)
        return True

    def remove(self, name: str) -> None:
        """Remove the empty group, with groups that were made inside it; no error if there is none."""
        for home in reversed(self._homes):
            for directory, _, _ in os.walk(home / name, topdown=False):
                _remove_directory(Path(directory))

    def tidy(self) -> None:
        """Remove the factory's own directories where they are empty."""
        for home in reversed(self._homes):
            for directory in (home, home.parent):
                if directory == home or directory.name == OWN.name:
                    with contextlib.suppress(OSError):
                        directory.rmdir()

    @abc.abstractmethod
    def usage(self, name: str) -> GroupUsage:
        """What the group has used until now, or until its end."""

    @abc.abstractmethod
    def watch(self, name: str) -> Watch | None:
        """Something to poll until the group may be empty; None: it is empty, or there is none."""

    @abc.abstractmethod
    def _make_home(self, home: Path) -> None: ...

    @abc.abstractmethod
    def _set_limits(self, name: str, limits: Limits) -> None: ...

    @abc.abstractmethod
    def _kill(self, name: str) -> None: ...


def _remove_directory(directory: Path, patience_seconds: float = 2.0) -> None:
    """rmdir; the kernel says EBUSY for a moment after the last process has gone."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise CgroupError(f"{directory}: {error.strerror}") from error
            time.sleep(0.005)
        else:
            return
