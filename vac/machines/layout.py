"""The layout of state_dir: paths that several modules use. A module that uses a file alone names it itself.

Paths and names are the classic Vac's, which site scripts, Nagios and machines that run during an upgrade
depend on. Only the standard library is imported, so that check-vacd starts fast.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vac.config.settings import address_slot as address_slot
from vac.config.settings import slot_address as slot_address
from vac.config.settings import slot_name as slot_name
from vac.config.settings import slot_number as slot_number
from vac.host.child_processes import run
from vac.host.filesystems import mount_of, mounts
from vac.machines import files

log = logging.getLogger(__name__)

RESERVE_BYTES = 4 * 1024 * 1024
RUN_DIRECTORY = Path("/run")
"""For locks that are this host's, whatever the state_dir."""
NOSUID_OPTIONS = frozenset(("nosuid", "nodev"))
"""Options of the mount that state_dir is on. With noexec as well no container could run its /user_data."""
_MOUNT_SECONDS = 20.0


class StateDirBusy(Exception):
    """Another factory process works on this state_dir, or under this factory's name."""


class DirectoryName(NamedTuple):
    """Parts of the name of a machine's directory."""

    created_time: int
    machinetype: str
    name: str

    def __str__(self) -> str:
        return f"{self.created_time}_{self.machinetype}_{self.name}"


def parse_directory_name(text: str) -> DirectoryName | None:
    """Split CREATED_MACHINETYPE_HOST; return None if text isn't such a name."""
    parts = text.split("_", 2)
    if len(parts) != 3 or not parts[0].isascii() or not parts[0].isdigit() or not parts[1] or not parts[2]:
        return None
    return DirectoryName(int(parts[0]), parts[1], parts[2])


def disk_problem(root: Path) -> str | None:
    """Return why nothing can be read or written in this directory, None if something can."""
    try:
        found = os.statvfs(root)
        with contextlib.suppress(FileNotFoundError, PermissionError, IsADirectoryError):
            (root / "VERSION").read_bytes()
    except OSError as error:
        return f"{root}: {error.strerror}"
    if found.f_flag & os.ST_RDONLY:
        return f"{root} is read-only"
    if not found.f_bfree:
        return f"{root} is full"
    return f"{root} has no inodes left" if found.f_files and not found.f_ffree else None


class StateDir:
    """The paths below one state_dir."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slots = root / "slots"
        self.machines = root / "machines"
        self.finishes = root / "finishes"
        self.machinetypes = root / "machinetypes"
        self.imagecache = root / "imagecache"
        self.pipescache = root / "pipescache"
        self.apel_archive = root / "apel-archive"
        self.apel_outgoing = root / "apel-outgoing"
        self.space_census = root / "space-census"
        self.requests = root / "requests"
        self.remove_unknown = self.requests / "remove-unknown"
        """Made by people: machines of this factory's name that this directory never knew may be removed."""
        self.tmp = root / "tmp"
        self.counts = root / "counts"
        self.factory_error = root / "factory-error"
        self.version = root / "VERSION"
        self.status = root / "status.json"
        self.space_catalogue = root / "space-catalogue.json"
        self.reserve = root / "reserve"
        self.identity = root / "identity.json"
        self.share_ledger = root / "share-ledger.json"
        self.history = root / "history.jsonl"

    def slot(self, name: str) -> Path:
        """slots/HOST."""
        return self.slots / name

    def machine(self, directory: DirectoryName) -> Path:
        """machines/CREATED_MACHINETYPE_HOST."""
        return self.machines / str(directory)

    def finish(self, machinetype: str) -> Path:
        """finishes/MACHINETYPE."""
        return self.finishes / machinetype

    def machinetype(self, name: str) -> Path:
        """machinetypes/NAME, where a site keeps x509cert.pem and x509key.pem; NAME may be a pipe's prefix."""
        return self.machinetypes / name

    def machinetype_files(self, name: str) -> Path:
        """machinetypes/NAME/files, to which relative paths of a machinetype's options refer."""
        return self.machinetypes / name / "files"

    def heartbeat(self, role: str) -> Path:
        """ROLE-heartbeat of factory, responder, mjf, metadata or page."""
        return self.root / f"{role}-heartbeat"

    def heartbeat_time(self, role: str) -> float | None:
        """Return when a role's process last showed that it is alive, Unix seconds; None if it never has."""
        try:
            return self.heartbeat(role).stat().st_mtime
        except OSError:
            return None

    def pid(self, role: str) -> Path:
        """ROLE.pid of factory, responder, mjf, metadata or page. factory.pid is written by lock() alone."""
        return self.root / f"{role}.pid"

    def runs(self, role: str) -> bool | None:
        """Tell if the process of a role's pid file is alive; None without one."""
        try:
            return Path(f"/proc/{int(self.pid(role).read_text(encoding='ascii'))}").exists()
        except (OSError, ValueError):
            return None

    def prepare(self) -> None:
        """Make what directories are missing, discard what was left in tmp/, and set the reserve aside."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        public = (
            self.slots,
            self.machines,
            self.finishes,
            self.machinetypes,
            self.imagecache,
            self.pipescache,
        )
        for path in (*public, self.apel_archive, self.apel_outgoing, self.space_census, self.tmp):
            files.make_directory(path, exist_ok=True)
        files.make_directory(self.requests, mode=0o700, exist_ok=True)
        for leftover in sorted(set(self.tmp.iterdir()).difference(files.trash(self.tmp))):
            files.discard(leftover, tmp=self.tmp)
        self.keep_reserve()

    def is_nosuid(self) -> bool:
        """Return True if setuid files and devices that a machine leaves here are none for this host."""
        holder = mount_of(self.root.resolve(), mounts())
        return holder is not None and holder.options >= NOSUID_OPTIONS

    def mount_nosuid(self) -> str | None:
        """Mount state_dir on itself with NOSUID_OPTIONS, unless it is; return the reason if that can't be done.

        All of it, since a file can't be renamed, as from tmp/ to machines/, from one mount to another. The mount stays
        when vacd ends. It is made elsewhere first, so that copies in other name spaces have the options, too, and is in
        a peer group of its own: volumes mounted below appear there, and not a second time underneath.
        """
        real, found = self.root.resolve(), mounts()
        holder = mount_of(real, found)
        if holder is None or holder.options >= NOSUID_OPTIONS:
            return None if holder else "this host's mounts can't be told"
        options = ",".join(sorted(holder.options | NOSUID_OPTIONS))
        if holder.point == str(real):
            return _failure_of(["mount", "-o", f"remount,bind,{options}", real])
        below = [mount.point for mount in found if mount.point.startswith(f"{real}/")]
        if below:
            return f"{below[0]} is mounted below it; vacd can do it when it starts while nothing is"
        place = Path(tempfile.mkdtemp(prefix="vac-", dir=RUN_DIRECTORY))
        try:
            problem = _failure_of(["mount", "--bind", "--make-private", "-o", options, real, place])
            if problem is None:
                problem = _failure_of(["mount", "--make-shared", place]) or _failure_of(
                    ["mount", "--bind", place, real]
                )
                problem = _failure_of(["umount", place]) or problem
            return problem
        finally:
            place.rmdir()

    def keep_reserve(self) -> None:
        """Make the reserve file if it is missing and the file system has that space."""
        if self.reserve.exists():
            return
        try:
            descriptor = os.open(self.reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("%s: no space can be set aside for accounting: %s", self.root, error)
            self.reserve.unlink(missing_ok=True)

    def spending_reserve(self, write: Callable[[], object]) -> None:
        """Call write; on a full disk once more, after the reserve has been given up. Raises what write raises."""
        try:
            write()
        except OSError as error:
            if error.errno not in files.NO_SPACE or not self.reserve.exists():
                raise
            files.remove(self.reserve)
            write()

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock that makes this the only factory process of the state_dir; factory.pid has its number.

        Raises StateDirBusy if another process holds it.
        """
        return _locked(self.pid("factory"), str(self.root), "another state_dir")


def _failure_of(command: list[str | Path]) -> str | None:
    return run(command, time_limit_seconds=_MOUNT_SECONDS).failure or None


@contextlib.contextmanager
def lock_name(factory_name: str) -> Iterator[None]:
    """Hold the lock that makes this the only factory process of that name on this host: two would take each other's
    machines for their own. Its file goes at the end.

    Raises StateDirBusy if another process holds it.
    """
    path = RUN_DIRECTORY / f"vac-{factory_name}.pid"
    with _locked(path, f"factory {factory_name}", "another factory_name"):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, subject: str, instead: str) -> Iterator[None]:
    """Hold the lock on this file, and have our process number in it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:
                raise BlockingIOError(errno.EAGAIN, "its holder, which ends just now, has removed it")
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise StateDirBusy(
                f"{subject}: factory process {holder} works on it; stop that, or use {instead}"
            ) from error
        os.fchmod(descriptor, 0o644)
        number = b"%d\n" % os.getpid()
        os.pwrite(descriptor, number, 0)  # before it is cut: that takes no space on a full disk
        os.ftruncate(descriptor, len(number))
        yield
    finally:
        os.close(descriptor)
