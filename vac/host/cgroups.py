"""One cgroup for each machine, in cgroup v1 or v2, below one directory for each factory.

A group is a directory per hierarchy (v2 has one hierarchy, v1 several). The first hierarchy is the one that
is asked which groups there are and which processes they hold: it is made first and removed last, so that a
group that was left half made is always found. Facts: the kernel's Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vac.host.filesystems import MOUNTINFO, mounts

SERVICE = Path("vac.slice/vac-machines.service")
"""The cgroup that systemd has delegated to Vac; systemd/vac-machines.service in our tree."""
OWN = Path("vac")
"""Our own base where there is none."""
GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)
"""Errors of a file whose group or process isn't there, or has gone since the file was opened."""
REMOVE_SECONDS = 2.0

V1_CONTROLLERS = ("pids", "memory", "cpu", "cpuacct")
"""The hierarchy of pids is the first one."""
MOST_SHARES = 262144
MEMORY_AND_SWAP = "memory.memsw.limit_in_bytes"
"""Never below the limit of memory alone, so set after it; there only if the kernel counts swap (swapaccount=1)."""

V2_CONTROLLERS = ("cpu", "memory", "pids")
MOST_WEIGHT = 10000
SWAP = "memory.swap.max"
"""The limit of swap, which memory.max doesn't count; there only if the kernel counts swap."""
LEAF = "init"
"""The leaf of vac-machines.service's own process: a group with processes can't have controllers below."""


log = logging.getLogger(__name__)


class CgroupError(Exception):
    """The kernel refuses an operation on a cgroup; the text says where and why."""


CPU_PERIOD = 100_000
"""Microseconds; the kernel's default."""
LEAST_CPU_QUOTA = 1_000
"""The least that the kernel takes, microseconds."""


@dataclass(frozen=True)
class Limits:
    """Resources that a group gets and may not exceed."""

    processors: int
    memory_bytes: int
    """Kept when the host is short of memory."""
    memory_limit_bytes: int | None
    """Never exceeded; None: no limit."""
    pids: int
    """Most tasks at a time."""
    cpu_quota: int | None = None
    """Most processor time in each CPU_PERIOD, all processors together, microseconds; None: no limit."""


@dataclass(frozen=True)
class Usage:
    """Resources that a machine has used since its start. None: kernel or engine doesn't tell."""

    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    started_time: float | None = None
    """Unix seconds by its engine's clock."""
    ended_time: float | None = None
    """Of an ended machine, Unix seconds by its engine's clock; the next two are its command's."""
    exit_code: int | None = None
    signal: int | None = None
    shutoff_reason: str | None = None
    """Of a VM that has ended, as `virsh domstate --reason` has it: shutdown, destroyed, crashed or saved."""
    busy_tasks: int | None = None
    """Tasks that the load counts now; not counted while the host's load is below its processors."""


@dataclass(frozen=True)
class Watch:
    """A file descriptor that becomes ready when the group may have become empty. Close it."""

    descriptor: int
    events: int


@dataclass(frozen=True)
class Mounts:
    """Mount points of cgroup hierarchies."""

    v1: dict[str, Path]
    """By controller; systemd's own is `name=systemd`."""
    v2: Path | None


def find_mounts(mountinfo: Path = MOUNTINFO) -> Mounts:
    """Return where cgroups are mounted."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for mount in mounts(mountinfo):
        if mount.kind == "cgroup2":
            v2 = v2 or Path(mount.point)
        elif mount.kind == "cgroup":
            for option in mount.super_options:
                v1.setdefault(option, Path(mount.point))
    return Mounts(v1, v2)


def open_groups(factory: str, mountinfo: Path = MOUNTINFO) -> Groups:
    """Return the factory's groups, in v2 if that controls memory on this host or v1 isn't there, else in v1.

    Raises CgroupError if this host has no cgroups that would do.
    """
    found = find_mounts(mountinfo)
    if found.v2 is not None:
        offered = (found.v2 / "cgroup.controllers").read_text().split()
        if "memory" in offered or "memory" not in found.v1:
            return GroupsV2(found.v2, factory)
    if not found.v1:
        raise CgroupError("no cgroups are mounted, neither v1 nor v2; usual is cgroup2 on /sys/fs/cgroup")
    others = [each for each in (found.v1.get("name=systemd"), found.v2) if each is not None]
    return GroupsV1(found.v1, others, factory)


class Groups(abc.ABC):
    """The groups of one factory. Names are plain directory names. All methods raise CgroupError."""

    def __init__(self, homes: Sequence[Path]) -> None:
        """homes: the factory's directory in each hierarchy, the first one first."""
        self._homes = tuple(homes)
        self._making_home = threading.Lock()

    def names(self) -> list[str]:
        """Return all groups there are."""
        try:
            with os.scandir(self._homes[0]) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def create(self, name: str, limits: Limits) -> None:
        """Make an empty group; it is an error if there is one of this name."""
        with _explained():
            for home in self._homes:
                with self._making_home:
                    if not home.is_dir():
                        self._make_home(home)
                (home / name).mkdir()
            self._set_limits(name, limits)

    def procs_files(self, name: str) -> tuple[Path, ...]:
        """Return the files to which a process writes 0 in order to enter the group, with all that it starts."""
        return tuple(home / name / "cgroup.procs" for home in self._homes)

    def processes(self, name: str) -> list[int]:
        """Return the group's processes, groups inside it included; none if there is no such group."""
        return processes_in(self._homes[0] / name)

    def populated(self, name: str) -> bool:
        """Return True if any process lives in the group."""
        return bool(self.processes(name))

    def kill_all(self, name: str, deadline_seconds: float) -> None:
        """Kill the group's processes, also those that are forked meanwhile, until there are none."""
        deadline = time.monotonic() + deadline_seconds
        while self.populated(name):
            if time.monotonic() > deadline:
                left = " ".join(map(str, self.processes(name)))
                raise CgroupError(f"processes {left} of {name} have not ended after SIGKILL")
            with _explained():
                self._kill(name)
            self.wait_until_empty(name, 0.5)

    def wait_until_empty(self, name: str, seconds: float) -> bool:
        """Wait so long for the end of the group's last process; False if there is still one."""
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

    def remove_if_empty(self) -> None:
        """Remove the factory's own directories where they are empty."""
        for home in reversed(self._homes):
            for directory in (home, home.parent):
                if directory == home or directory.name == OWN.name:
                    with contextlib.suppress(OSError):
                        directory.rmdir()

    @abc.abstractmethod
    def usage(self, name: str) -> Usage:
        """Return the group's usage until now, or until its end."""

    @abc.abstractmethod
    def watch(self, name: str) -> Watch | None:
        """Return a descriptor to poll until the group may be empty; None if it is empty, or there is none."""

    def _make_home(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)

    @abc.abstractmethod
    def _set_limits(self, name: str, limits: Limits) -> None: ...

    @abc.abstractmethod
    def _kill(self, name: str) -> None: ...


class GroupsV1(Groups):
    """Groups in cgroup v1: a directory in each controller's hierarchy.

    Where systemd has delegated a group, its own hierarchies (name=systemd, unified) are entered too, or it would take
    the machines for vacd's processes and end them with it.
    """

    def __init__(self, hierarchies: Mapping[str, Path], others: Sequence[Path], factory: str) -> None:
        """hierarchies: mount points by controller; others: those of systemd's own hierarchies."""
        missing = [controller for controller in V1_CONTROLLERS if controller not in hierarchies]
        if missing:
            raise CgroupError(f"no cgroup v1 hierarchy with {', '.join(missing)} is mounted")
        self._home = {each: _base_in(hierarchies[each]) / factory for each in V1_CONTROLLERS}
        systemd = [each / SERVICE / factory for each in others if (each / SERVICE).is_dir()]
        super().__init__(tuple(dict.fromkeys((*self._home.values(), *systemd))))

    def usage(self, name: str) -> Usage:
        return _read_usage_v1(self._home["cpuacct"] / name, self._home["memory"] / name)

    def watch(self, name: str) -> Watch | None:
        """See Groups: v1 doesn't tell, so one process after the other is watched through its pidfd."""
        while processes := self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                return Watch(os.pidfd_open(processes[-1]), select.POLLIN)
        return None

    def _set_limits(self, name: str, limits: Limits) -> None:
        shares = min(1024 * limits.processors, MOST_SHARES)
        memory = self._home["memory"] / name
        (self._home["cpu"] / name / "cpu.shares").write_text(str(shares))
        if limits.cpu_quota is not None:
            _set_quota(self._home["cpu"] / name / "cpu.cfs_quota_us", str(limits.cpu_quota))
        (memory / "memory.soft_limit_in_bytes").write_text(str(limits.memory_bytes))
        if limits.memory_limit_bytes is not None:
            for limit in (memory / "memory.limit_in_bytes", memory / MEMORY_AND_SWAP):
                if limit.name != MEMORY_AND_SWAP or limit.exists():
                    limit.write_text(str(limits.memory_limit_bytes))
        (self._home["pids"] / name / "pids.max").write_text(str(limits.pids))

    def _kill(self, name: str) -> None:
        """Forbid new tasks, and kill those there are. Not frozen first: if we die here, nothing stays frozen."""
        (self._home["pids"] / name / "pids.max").write_text("0")
        for process in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


class GroupsV2(Groups):
    """Groups in cgroup v2, the unified hierarchy. Limits whose controllers it doesn't offer are not set."""

    def __init__(self, mount: Path, factory: str) -> None:
        self._base = _base_in(mount)
        self._home = self._base / factory
        self._top = self._base if self._base == mount / SERVICE else mount
        offered = (self._top / "cgroup.controllers").read_text().split()
        self.controllers = tuple(each for each in V2_CONTROLLERS if each in offered)
        """Those that limit machines here."""
        super().__init__((self._home,))

    def usage(self, name: str) -> Usage:
        return _read_usage_v2(self._home / name)

    def watch(self, name: str) -> Watch | None:
        """See Groups: the kernel signals a change of cgroup.events, which covers groups inside."""
        try:
            descriptor = os.open(self._home / name / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            populated = b"populated 1" in os.read(descriptor, 4096)
        except OSError:  # removed since it was opened
            populated = False
        if not populated:
            os.close(descriptor)
            return None
        return Watch(descriptor, select.POLLPRI)

    def _make_home(self, home: Path) -> None:
        super()._make_home(home)
        if self._top == self._base:
            self._vacate()
        for directory in dict.fromkeys((self._top, self._base, home)):
            enabled = " ".join(f"+{controller}" for controller in self.controllers)
            (directory / "cgroup.subtree_control").write_text(enabled)
            if "memory" in self.controllers and directory != self._top:
                (directory / "memory.low").write_text("max")

    def _vacate(self) -> None:
        """Move the delegated group's own processes to a leaf, in case its unit hasn't."""
        for process in (self._base / "cgroup.procs").read_text().split():
            (self._base / LEAF).mkdir(exist_ok=True)
            with contextlib.suppress(ProcessLookupError):
                (self._base / LEAF / "cgroup.procs").write_text(process)

    def _set_limits(self, name: str, limits: Limits) -> None:
        group = self._home / name
        if "cpu" in self.controllers:
            (group / "cpu.weight").write_text(str(min(100 * limits.processors, MOST_WEIGHT)))
            if limits.cpu_quota is not None:
                _set_quota(group / "cpu.max", f"{limits.cpu_quota} {CPU_PERIOD}")
        if "memory" in self.controllers:
            (group / "memory.low").write_text(str(limits.memory_bytes))
            most = limits.memory_limit_bytes
            (group / "memory.max").write_text("max" if most is None else str(most))
            if most is not None and (group / SWAP).exists():
                (group / SWAP).write_text("0")
        if "pids" in self.controllers:
            (group / "pids.max").write_text(str(limits.pids))

    def _kill(self, name: str) -> None:
        (self._home / name / "cgroup.kill").write_text("1")


def _set_quota(file: Path, text: str) -> None:
    """Limit processor time, unless the group around has less (v1 refuses that), or the kernel has no such limit."""
    try:
        file.write_text(text)
    except OSError as error:
        log.warning("%s can't be set to %s: %s", file, text, error.strerror)


@dataclass(frozen=True)
class EngineGroup:
    """Directories of a group that an engine has made for a container: v2, or v1 where the controllers are there."""

    v2: Path | None
    v1: tuple[Path, Path] | None
    """The directories of cpuacct and memory."""

    def usage(self) -> Usage | None:
        """Return the group's usage until now; None if it is gone."""
        try:
            if self.v1 is not None:
                usage = _read_usage_v1(*self.v1)
            elif self.v2 is not None:
                usage = _read_usage_v2(self.v2)
            else:
                return None
        except OSError:
            return None
        return None if usage.cpu_seconds is None and usage.memory_bytes is None else usage

    def processes(self) -> list[int]:
        """Return the group's processes; none if it is gone. Raises CgroupError."""
        directory = self.v1[1] if self.v1 is not None else self.v2
        return processes_in(directory) if directory is not None else []


def find_engine_group(pid: int, mark: str, found: Mounts, proc: Path = Path("/proc")) -> EngineGroup | None:
    """Return the group of a container by one of its processes; None unless its path has a component with the mark.

    The path in /proc/PID/cgroup (cgroups(7)) is cut after the component that holds the mark, such as the container's
    id, since the container may have made groups inside. Raises OSError if there is no such process.
    """
    paths: dict[str, str] = {}
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        head, marked, tail = path.partition(mark)
        if marked:
            paths.update(dict.fromkeys(controllers.split(","), head + marked + tail.partition("/")[0]))
    if not paths:
        return None
    used = ("cpuacct", "memory")
    v1 = [found.v1[each] / paths[each].lstrip("/") for each in used if each in found.v1 and each in paths]
    v2 = found.v2 / paths[""].lstrip("/") if found.v2 is not None and "" in paths else None
    return EngineGroup(v2, (v1[0], v1[1]) if len(v1) == len(used) else None)


def machine_processes(uuid: str, mountinfo: Path = MOUNTINFO) -> list[int]:
    """Return the processes of the process machine with this uuid, of any factory. Raises CgroupError."""
    found = find_mounts(mountinfo)
    for top in filter(None, (found.v1.get(V1_CONTROLLERS[0]), found.v2)):
        for base in (top / SERVICE, top / OWN):
            for group in base.glob(f"*/*_{uuid}"):
                return processes_in(group)
    return []


def processes_in(group: Path) -> list[int]:
    """Return the processes in a group's directory and those below; none if it isn't there. Raises CgroupError."""
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        try:
            found += map(int, Path(directory, "cgroup.procs").read_text().split())
        except OSError as error:
            if error.errno not in GONE:
                raise CgroupError(f"{directory}/cgroup.procs: {error.strerror}") from error
    return found


def _base_in(hierarchy: Path) -> Path:
    """Return the directory of this hierarchy below which all factories' groups are."""
    delegated = hierarchy / SERVICE
    return delegated if delegated.is_dir() else hierarchy / OWN


def _read_usage_v1(cpuacct: Path, memory: Path) -> Usage:
    nanoseconds = _read_number(cpuacct / "cpuacct.usage")
    return Usage(
        None if nanoseconds is None else nanoseconds / 1e9,
        _read_number(memory / "memory.usage_in_bytes"),
        _read_number(memory / "memory.max_usage_in_bytes"),
        busy_tasks=_busy_tasks(cpuacct, "tasks"),
    )


def _read_usage_v2(group: Path) -> Usage:
    words = _read_text(group / "cpu.stat").split()
    microseconds = int(words[words.index("usage_usec") + 1]) if words else None
    return Usage(
        None if microseconds is None else microseconds / 1e6,
        _read_number(group / "memory.current"),
        _read_number(group / "memory.peak"),
        busy_tasks=_busy_tasks(group, "cgroup.threads"),
    )


def _busy_tasks(group: Path, listing: str) -> int | None:
    """Return how many tasks of the group and those below run, want to, or wait for a disk; None if there are none."""
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        return None
    tasks = (task for place, _, _ in os.walk(group) for task in _read_text(Path(place, listing)).split())
    states = (_read_text(Path("/proc", task, "stat")).rpartition(") ")[2][:1] for task in tasks)
    return sum(state in ("R", "D") for state in states) or None


def _read_number(file: Path) -> int | None:
    """Return the number in a cgroup file; None if there is no such file or it says `max`."""
    text = _read_text(file).strip()
    return int(text) if text.isdigit() else None


def _read_text(file: Path) -> str:
    """Return a cgroup file's content; empty if there is no such file, or its group goes while it is read."""
    try:
        return file.read_text()
    except OSError as error:
        if error.errno not in GONE:
            raise
        return ""


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn an OSError into a CgroupError that names the file."""
    try:
        yield
    except OSError as error:
        raise CgroupError(f"{error.filename or 'cgroup'}: {error.strerror}") from error


def _remove_directory(directory: Path) -> None:
    """Remove a directory; the kernel says EBUSY for a moment after the last process has gone."""
    deadline = time.monotonic() + REMOVE_SECONDS
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
