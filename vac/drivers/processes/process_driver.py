"""Machines that are processes of this host: one cgroup each, which holds all of them and tells their end.

The cgroup is the truth: a machine runs while its cgroup is populated, and outlives the factory in it. How it began and
how it ended stands in its status file, which launch.py and the program that makes it write. Singularity's process that
a classic factory left running is moved, with its descendants, into a cgroup like those of our own machines. Fields of
/proc/PID: proc_pid_stat(5) and proc_pid_status(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import pwd
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineState,
    EngineUnavailable,
    Fetch,
    LeftProcess,
    MachineSpec,
    Observed,
    Usage,
    no_images,
)
from vac.drivers.images import ImageFacts, ImageFiles
from vac.drivers.processes.launch_plan import (
    STATUS_FILE,
    LaunchStatus,
    Model,
    identity,
    make_plan,
    model_of,
    named_user,
    note_pid,
    open_for_root,
    prepare_directory,
    read_status,
    said_in,
    spawn,
)
from vac.drivers.processes.machine_watch import CONSOLE_LOG, MachineWatcher, remove_middle
from vac.drivers.volumes import Volumes
from vac.host.cgroups import CgroupError, Groups, Limits, open_groups
from vac.host.connections import Contact, contacts_by_group, host_addresses
from vac.host.privileges import limit_user_namespaces
from vac.logs import OnChange
from vac.text import without_url_secrets

_log = logging.getLogger(__name__)

KILL_SECONDS = 60.0
"""Longest that processes may take to end after SIGKILL."""
START_SECONDS = 200.0
"""Longest that a machine may take from its first process to its command; images can be on slow disks."""
START_ATTEMPTS = 5
SETTLE_SECONDS = 5.0
"""Longest that what looks half made is looked at again: it may be about to begin, or its last processes to end."""
PROC = Path("/proc")
CLASSIC_NAMES = (b"singularity", b"apptainer")
"""One of these is in the command line, also once the program calls itself `Singularity runtime parent`."""
CLOCK_SLACK_SECONDS = 5.0
"""Tolerance between the start of a process and the time its number was noted, as clocks are corrected."""
MOST_PIDS = 4194304
"""The kernel's own limit: the classic's isn't known."""


def open_driver(settings: Settings, fetch: Fetch = no_images) -> ProcessDriver:
    """Return a driver of this factory's machines. Raises EngineUnavailable if the host has no cgroups for them."""
    try:
        return ProcessDriver(open_groups(settings.factory_name), fetch, settings.state_dir / "machines")
    except (CgroupError, OSError) as error:
        raise EngineUnavailable(str(error)) from error


@dataclasses.dataclass
class _Known:
    """This process's knowledge of a machine."""

    directory: Path | None = None
    starting: bool = False
    runs: bool = False
    """True once its command has been seen running."""
    started_time: float | None = None
    ended_time: float | None = None
    exit_code: int | None = None


class ProcessDriver(Driver):
    """Driver of the machines in these groups.

    machines: the directory with the directories of machines that another process of the factory may have made.
    """

    def __init__(self, groups: Groups, fetch: Fetch = no_images, machines: Path | None = None) -> None:
        self._groups = groups
        self._machines_directory = machines
        self._watcher = MachineWatcher(groups, self._own_directories)
        self._images = ImageFiles(fetch, self.changed)
        self._facts = ImageFacts()
        self._volumes = Volumes()
        self._changes = OnChange(_log)
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        """By group."""
        self._children: dict[int, str] = {}
        """Groups by their first process, which is ours to wait for."""
        self._left: Mapping[str, LeftProcess] = {}
        self._taken_over: dict[str, float] = {}
        """By uuid of a classic machine, CPU seconds that it has used outside its group."""
        self._half_made: set[str] = set()
        """Uuids of those that have stayed so for SETTLE_SECONDS."""

    def list(self) -> Sequence[Observed]:
        self._reap()
        deadline = time.monotonic() + SETTLE_SECONDS
        with _unavailable():
            self._take_over()
            while True:
                found = [self._detailed(self._observed(group)) for group in self._machines()]
                half_made = {each.uuid for each in found if each.state is EngineState.HALF_MADE}
                if time.monotonic() > deadline or half_made <= self._half_made:
                    self._half_made = half_made
                    return found
                time.sleep(SETTLE_SECONDS / 100)

    def create(self, spec: MachineSpec) -> None:
        with self._volumes.mounted(spec):
            self._create(spec)

    def _create(self, spec: MachineSpec) -> None:
        model, plan = make_plan(self._with_image(spec))
        group = f"{spec.name}_{spec.uuid}"
        known = self._known[group] = _Known(spec.directory, starting=True)
        try:
            self._groups.create(group, spec.limits)
            plan["procs_files"] = [str(procs_file) for procs_file in self._groups.procs_files(group)]
            prepare_directory(spec, plan)
            self._start(spec, model, plan, group)
            self._limit(spec, group)
            known.runs = True
            self._watcher.add(group)
            path, image = self._status(group).image
            self._facts.note(spec.uuid, _facts(spec, path), image)
        except (OSError, CgroupError, CreationFailed) as error:
            self._clear(group)
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise CreationFailed(reason) from error
        finally:
            known.starting = False

    def stop(self, name: str, uuid: str) -> None:
        with _unavailable():
            self._groups.kill_all(f"{name}_{uuid}", KILL_SECONDS)
        self._reap()

    def destroy(self, name: str, uuid: str) -> None:
        group = f"{name}_{uuid}"
        self.stop(name, uuid)
        self._status(group)
        directory = self._of(group).directory
        if directory is not None:
            with contextlib.suppress(OSError):
                remove_middle(directory / CONSOLE_LOG)
        with _unavailable():
            self._groups.remove(group)
        self._volumes.remove(name, uuid)
        self._facts.forget(uuid)
        self._known.pop(group, None)
        self._taken_over.pop(uuid, None)

    def adopt(self, machines: Mapping[str, str], processes: Mapping[str, LeftProcess]) -> None:
        self._left = processes

    def _take_over(self) -> None:
        """Move classic machines' processes into groups: from then on they are treated like ours."""
        left = self._left
        for uuid, process in left.items():
            group = f"{process.name}_{uuid}"
            if take_over(self._groups, group, process):
                self._watcher.add(group)
            if group in self._groups.names():
                used = self._groups.usage(group).cpu_seconds or 0.0
                self._taken_over[uuid] = max(0.0, process.cpu_seconds - used)
        if self._left is left:
            self._left = {}

    def events(self) -> Iterator[str]:
        with _unavailable():
            for group in self._watcher.ends():
                known = self._of(group)
                if known.runs and known.ended_time is None:
                    known.ended_time = time.time()
                yield _identity(group)[0]

    def close(self) -> None:
        """See Driver. Where there are no machines, no trace is left."""
        self._watcher.close()
        self._groups.remove_if_empty()

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        return self._images.prepare(machinetype.root_image, None, files) if _fetches(machinetype) else None

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        return contacts_by_group(
            {_identity(group)[1]: self._groups.processes(group) for group in self._machines()}
        )

    def _with_image(self, spec: MachineSpec) -> MachineSpec:
        """Replace a root_image that is a URL by the path of its copy, readable by the machine's user."""
        kind = spec.machinetype
        if not _fetches(kind):
            return spec
        path, _ = self._images.held(kind.root_image, None, spec.files)
        try:
            slots_own = spec.settings.slot_uids is not None
            os.chown(path, -1, 0 if slots_own else identity(spec)[1])
            path.chmod(0o644 if slots_own else 0o640)
        except OSError as error:
            raise CreationFailed(f"{path}: {error.strerror}") from error
        return dataclasses.replace(spec, machinetype=dataclasses.replace(kind, root_image=str(path)))

    def _limit(self, spec: MachineSpec, group: str) -> None:
        """Limit what the kernel otherwise counts by uid, where that couldn't be done before the program began."""
        if not model_of(spec.machinetype.machine_model).FILTERED:
            problem = limit_user_namespaces(self._groups.processes(group))
            if problem is not None:
                self._changes.say(
                    "limit", f"user name spaces in machines can't be limited: {problem}", logging.WARNING
                )

    def _machines(self) -> Sequence[str]:
        return [group for group in self._groups.names() if not self._of(group).starting]

    def _of(self, group: str) -> _Known:
        """Return what is known of the group's machine, to be read."""
        return self._known.get(group) or _Known()

    def _observed(self, group: str) -> Observed:
        identity = _identity(group)
        if self._groups.populated(group):
            runs = self._of(group).runs or self._has_begun(group)
            state = EngineState.RUNNING if runs else EngineState.HALF_MADE
            return Observed(*identity, state, self._usage(group))
        status = self._status(group)
        executed = status.model is None or status.model.executed(status.told)
        used = self._usage(group)
        if not executed or not used.cpu_seconds:
            return Observed(*identity, EngineState.HALF_MADE, used)
        known = self._of(group)
        ended_time, exit_code = known.ended_time, known.exit_code
        if status.exit_code is not None:  # written by the program itself, perhaps while there was no factory
            ended_time, exit_code = status.time, status.exit_code
        if exit_code is not None and exit_code < 0:
            known.ended_time = known.ended_time or time.time()
            used = dataclasses.replace(used, ended_time=known.ended_time, signal=-exit_code)
        else:
            used = dataclasses.replace(used, ended_time=ended_time, exit_code=exit_code)
        return Observed(*identity, EngineState.ENDED, used)

    def _detailed(self, machine: Observed) -> Observed:
        return dataclasses.replace(machine, details=self._facts.of(machine.uuid))

    def _has_begun(self, group: str) -> bool:
        """Find out if the command of a machine runs that another process of the factory was making."""
        status = self._status(group)
        pids: Sequence[int] = ()
        if status.model is not None:
            pids = self._command_pids(group, status.model, status.told)
            if not pids:
                return False
        known = self._known.setdefault(group, _Known())
        known.runs, known.started_time = True, _first_start(pids) or known.started_time
        return True

    def _command_pids(self, group: str, model: Model, told: Mapping[str, Any]) -> Sequence[int]:
        others = {pid: _command_line(pid) for pid in self._groups.processes(group)}
        return model.command_pids(told, others.pop(told.get("pid", 0), b""), others)

    def _usage(self, group: str) -> Usage:
        used, before = self._groups.usage(group), self._taken_over.get(_identity(group)[1])
        if before is None:
            return dataclasses.replace(used, started_time=self._of(group).started_time)
        # memory that was allocated before a process is moved stays charged to the group it came from
        return Usage(None if used.cpu_seconds is None else used.cpu_seconds + before)

    def _start(self, spec: MachineSpec, model: Model, plan: dict[str, Any], group: str) -> None:
        """Start the machine. Raises CreationFailed."""
        for _ in range(START_ATTEMPTS):
            failure = self._try_to_start(spec, model, plan, group)
            if not failure:
                return
            if not model.may_pass(failure):
                break
        raise CreationFailed(failure)

    def _try_to_start(self, spec: MachineSpec, model: Model, plan: dict[str, Any], group: str) -> str:
        """Return the reason why the machine hasn't started, or ""."""
        console, status = spec.directory / CONSOLE_LOG, spec.directory / STATUS_FILE
        with open_for_root(console) as output, open_for_root(status, os.O_TRUNC) as messages:
            said_before = os.fstat(output.fileno()).st_size
            child = spawn({**plan, "machine": group}, output.fileno(), messages.fileno())
        with self._lock:
            self._children[child] = group
            known = self._known[group]
            known.started_time = known.ended_time = known.exit_code = None
        note_pid(spec.directory, child)
        told, exit_code = self._wait_for_start(model, child, group)
        said = said_in(console, said_before) if exit_code is not None else ""
        begun = exit_code is None or ("executing" in told and model.has_run(told, exit_code, said))
        if begun and "failure" not in told:
            return ""
        return told.get("failure") or said or f"{Path(plan['program']).name} ended at once"

    def _wait_for_start(self, model: Model, child: int, group: str) -> tuple[Mapping[str, Any], int | None]:
        """Wait until the machine's command runs, or the program has ended; return what was told, and its exit code."""
        deadline = time.monotonic() + START_SECONDS
        pause_seconds = 0.001
        while time.monotonic() < deadline:
            self._reap()
            with self._lock:
                ended, exit_code = child not in self._children, self._known[group].exit_code
            told = self._status(group).told
            if ended:
                return told, exit_code or 0
            if self._command_pids(group, model, told):
                return told, None
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, 0.05)
        raise CreationFailed(f"{model.PROGRAMS[0]} has not begun within {START_SECONDS:.0f} s")

    def _clear(self, group: str) -> None:
        """After a failed creation, leave nothing, or something that list() shows."""
        with contextlib.suppress(CgroupError):
            self._groups.kill_all(group, KILL_SECONDS)
            self._groups.remove(group)
            self._known.pop(group, None)
        self._reap()

    def _own_directories(self) -> Sequence[Path]:
        return [known.directory for known in tuple(self._known.values()) if known.directory is not None]

    def _reap(self) -> None:
        """Wait for the children that have ended."""
        with self._lock:
            for child, group in list(self._children.items()):
                exit_code = _exit_code(child)
                if exit_code is not None:
                    del self._children[child]
                    known = self._of(group)
                    if known.starting or known.runs:
                        known.exit_code = exit_code
                        if exit_code >= 0:  # what runs in a machine may outlive a program that is killed
                            known.ended_time = known.ended_time or time.time()

    def _status(self, group: str) -> LaunchStatus:
        directory = self._of(group).directory
        places = [directory] if directory is not None else []
        if directory is None and self._machines_directory is not None:
            places = sorted(self._machines_directory.glob(f"*_{_identity(group)[0]}"), reverse=True)
        for place in places:
            status = read_status(place)
            if status.told.get("machine") == group:
                known = self._known.setdefault(group, _Known())
                known.directory = place
                known.started_time = known.started_time or status.started_time
                return status
        return LaunchStatus()


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (CgroupError, OSError) as error:
        raise EngineUnavailable(str(error)) from error


def _identity(group: str) -> tuple[str, str]:
    """Return name and uuid of a group's machine."""
    name, _, uuid = group.rpartition("_")
    return name, uuid


def _fetches(machinetype: Machinetype) -> bool:
    """Return True if its image has to be downloaded."""
    is_url = (machinetype.root_image or "").startswith(("http://", "https://"))
    return is_url and model_of(machinetype.machine_model).TAKES_URLS


def _exit_code(child: int) -> int | None:
    """Return the exit code of this child, negative for a signal, 0 if nobody can tell it; None: it runs."""
    try:
        ended, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


def _command_line(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return (PROC / str(process) / "cmdline").read_bytes()
    return b""


def _facts(spec: MachineSpec, image_path: str) -> dict[str, str]:
    """Return the facts about a machine that are known as soon as it has been made. All share the host's network."""
    facts = {
        "user": named_user(identity(spec)[0]),
        "image": without_url_secrets(spec.machinetype.root_image or ""),
        "image_path": image_path,
        "network": "host",
        "addresses": " ".join(host_addresses()),
    }
    return {name: text for name, text in facts.items() if text}


def take_over(groups: Groups, group: str, left: LeftProcess) -> bool:
    """Move the machine's processes into this group, which is made if need be; False if it doesn't run any more.

    Raises CgroupError, OSError, and EngineUnavailable if the owner of the process is unknown.
    """
    if not still_runs(left):
        return False
    if group not in groups.names():
        groups.create(group, Limits(left.processors, left.memory_bytes, None, MOST_PIDS))
    moved: set[int] = set()
    while fresh := {left.pid, *descendants(left.pid)} - moved:
        for process, procs_file in itertools.product(fresh, groups.procs_files(group)):
            with contextlib.suppress(ProcessLookupError):
                procs_file.write_text(str(process))
        moved |= fresh
    return True


def still_runs(left: LeftProcess) -> bool:
    """Return True if the process with this number is still the one that was noted, by its owner, age and command."""
    place = PROC / str(left.pid)
    try:
        state, _, begun_time = _stat(place)
        owner = next(line for line in (place / "status").read_text().splitlines() if line.startswith("Uid:"))
        command = (place / "cmdline").read_bytes().lower()
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        user = pwd.getpwnam(left.user)
    except KeyError:
        reason = f"process {left.pid} may be machine {left.name}, and there is no account {left.user}"
        raise EngineUnavailable(f"{reason}: singularity_user must name the one it runs as") from None
    return (
        state not in "ZX"
        and int(owner.split()[1]) == user.pw_uid
        and begun_time <= left.noted_time + CLOCK_SLACK_SECONDS
        and any(name in command for name in CLASSIC_NAMES)
    )


def _first_start(pids: Iterable[int]) -> float | None:
    """Return when the oldest of these processes began, Unix seconds; None if all have gone."""
    starts = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            starts.append(_stat(PROC / str(pid))[2])
    return min(starts, default=None)


def descendants(pid: int) -> set[int]:
    """Return the process's children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for place in PROC.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children.setdefault(_stat(place)[1], []).append(int(place.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        own = children.get(todo.pop(), [])
        found.update(own)
        todo += own
    return found


def _stat(place: Path) -> tuple[str, int, float]:
    """Return state, parent and start (Unix seconds) of a process."""
    fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
    age_seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0], int(fields[1]), time.time() - age_seconds
