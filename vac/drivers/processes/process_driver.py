"""Machines that are processes of this host: one cgroup each, which holds all of them and tells their end.

The cgroup is the truth: a machine runs while its cgroup is populated, and outlives the factory in it. How it began and
how it ended stands in its status file, which launch.py and the program that makes it write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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
    Trace,
    Usage,
    traces_of,
)
from vac.drivers.images import ImageFacts, ImageFiles
from vac.drivers.processes import launch
from vac.drivers.processes.classic_takeover import take_over
from vac.drivers.processes.console_log import NAME as CONSOLE_LOG
from vac.drivers.processes.console_log import ConsoleKeeper, close_up
from vac.drivers.processes.launch_plan import (
    STATUS_FILE,
    LaunchStatus,
    Model,
    identity,
    image_in,
    limits_of,
    make_plan,
    model_of,
    named_user,
    prepare_directory,
    read_status,
    told_in,
)
from vac.drivers.volumes import Volumes
from vac.host.cgroup_watch import EndWatcher
from vac.host.cgroups import CgroupError, Groups, open_groups
from vac.host.connections import Contact, Sampling, contacts_by_group, host_addresses
from vac.host.privileges import limit_user_namespaces
from vac.logs import OnChange
from vac.text import without_url_secrets

_log = logging.getLogger(__name__)

KILL_SECONDS = 60.0
"""Longest that processes may take to end after SIGKILL."""
START_SECONDS = 200.0
"""Longest that a machine may take from its first process to its command; images can be on slow disks."""
START_ATTEMPTS = 5
MOST_REASON_CHARACTERS = 300


def open_driver(settings: Settings, fetch: Fetch | None = None) -> ProcessDriver:
    """Return a driver of this factory's machines; fetch as in ImageFiles.

    Raises EngineUnavailable if the host has no cgroups for them.
    """
    try:
        return ProcessDriver(open_groups(settings.factory_name), fetch, settings.state_dir / "machines")
    except (CgroupError, OSError) as error:
        raise EngineUnavailable(str(error)) from error


class ProcessDriver(Driver):
    """Driver of the machines in these groups; fetch as in ImageFiles.

    machines: the directory with the directories of machines that another process of the factory may have made.
    """

    def __init__(self, groups: Groups, fetch: Fetch | None = None, machines: Path | None = None) -> None:
        self._groups = groups
        self._machines_directory = machines
        self._watcher = EndWatcher(groups)
        self._images = ImageFiles(fetch, self._watcher.wake)
        self._facts = ImageFacts()
        self._volumes = Volumes()
        self._sampling = Sampling()
        self._changes = OnChange(_log)
        self._lock = threading.Lock()
        self._starting: set[str] = set()
        self._runs: set[str] = set()
        """Groups whose machine's command has been seen running."""
        self._directories: dict[str, Path] = {}
        self._children: dict[int, str] = {}
        """Groups by their first process, which is ours to wait for."""
        self._ends: dict[str, tuple[float | None, int | None]] = {}
        """Time and exit code by group, as seen by this process."""
        self._left: Mapping[str, LeftProcess] = {}
        self._taken_over: dict[str, float] = {}
        """By uuid of a classic machine, CPU seconds that it has used outside its group."""
        self._consoles = ConsoleKeeper(self._own_directories)

    def list(self) -> Sequence[Observed]:
        """See Driver."""
        self._reap()
        with _unavailable():
            self._take_over()
            return [self._observed(group) for group in self._machines()]

    def usage(self) -> Mapping[str, Usage]:
        """See Driver."""
        with _unavailable():
            return {_identity(group)[1]: self._usage(group) for group in self._machines()}

    def create(self, spec: MachineSpec) -> None:
        """See Driver."""
        with self._volumes.mounted(spec):
            self._create(spec)

    def _create(self, spec: MachineSpec) -> None:
        model, plan = make_plan(self._with_image(spec))
        group = f"{spec.name}_{spec.uuid}"
        with self._lock:
            self._starting.add(group)
            self._directories[group] = spec.directory
        try:
            self._groups.create(group, limits_of(spec))
            plan["entrances"] = [str(entrance) for entrance in self._groups.entrances(group)]
            prepare_directory(spec, model, plan["uid"], plan["gid"])
            told = self._start(spec, model, plan, group)
            self._limit(spec, group)
            with self._lock:
                self._runs.add(group)
            self._watcher.add(group)
            path, image = image_in(told)
            self._facts.note(spec.uuid, _facts(spec, path), image)
        except OSError as error:
            self._clear(group)
            raise CreationFailed(f"{error.filename}: {error.strerror}") from error
        except CgroupError as error:
            self._clear(group)
            raise CreationFailed(str(error)) from error
        except CreationFailed:
            self._clear(group)
            raise
        finally:
            with self._lock:
                self._starting.discard(group)

    def stop(self, name: str, uuid: str) -> None:
        """See Driver."""
        with _unavailable():
            self._groups.kill_all(f"{name}_{uuid}", KILL_SECONDS)
        self._reap()

    def destroy(self, name: str, uuid: str) -> None:
        """See Driver."""
        self.stop(name, uuid)
        self._status(f"{name}_{uuid}")
        with self._lock:
            directory = self._directories.get(f"{name}_{uuid}")
        if directory is not None:
            with contextlib.suppress(OSError):
                close_up(directory / CONSOLE_LOG)
        with _unavailable():
            self._groups.remove(f"{name}_{uuid}")
        self._volumes.remove(name, uuid)
        self._facts.forget(uuid)
        self._forget(f"{name}_{uuid}")
        self._taken_over.pop(uuid, None)

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        """See Driver."""
        self._left = processes

    def _take_over(self) -> None:
        """Once a classic machine's processes are in a group, it is as if it were ours."""
        left = self._left
        for uuid, process in left.items():
            group = f"{process.name}_{uuid}"
            if take_over(self._groups, group, process):
                self._watcher.add(group)
            if self._groups.exists(group):
                used = self._groups.usage(group).cpu_seconds or 0.0
                self._taken_over[uuid] = max(0.0, process.cpu_seconds - used)
        if self._left is left:
            self._left = {}

    def events(self) -> Iterator[str]:
        """See Driver."""
        with _unavailable():
            for group in self._watcher.ends():
                with self._lock:
                    if group in self._runs:
                        self._ends.setdefault(group, (time.time(), None))
                yield _identity(group)[0]

    def close(self) -> None:
        """See Driver. Where there are no machines, no trace is left."""
        self._consoles.close()
        self._watcher.close()
        self._groups.tidy()

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """See Driver."""
        return self._images.prepare(machinetype.root_image, None, files) if _fetches(machinetype) else None

    def traces(self) -> Mapping[str, Trace]:
        """See Driver."""
        uuids = {_identity(group)[1]: group for group in self._machines()}

        def look() -> Mapping[str, frozenset[Contact]]:
            return contacts_by_group({uuid: self._groups.processes(group) for uuid, group in uuids.items()})

        with _unavailable():
            return traces_of(self._facts.news(uuids), self._sampling.sample(look))

    def _with_image(self, spec: MachineSpec) -> MachineSpec:
        """Replace a root_image that is a URL by the path of its copy, readable by the machine's user."""
        kind = spec.machinetype
        if not _fetches(kind):
            return spec
        path = self._images.path(kind.root_image, None, spec.files)
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
        with self._lock:
            starting = set(self._starting)
        return [group for group in self._groups.names() if group not in starting]

    def _observed(self, group: str) -> Observed:
        identity = _identity(group)
        if self._groups.populated(group):
            runs = group in self._runs or self._has_begun(group)
            return Observed(*identity, EngineState.RUNNING if runs else EngineState.HALF_MADE)
        status = self._status(group)
        model = status.model
        if not self._groups.usage(group).cpu_seconds or (model and not model.executed(status.text)):
            return Observed(*identity, EngineState.HALF_MADE)
        with self._lock:
            ended_time, exit_code = self._ends.get(group, (None, None))
        if status.exit_code is not None:  # written by the program itself, perhaps while there was no factory
            ended_time, exit_code = status.time, status.exit_code
        if exit_code is not None and exit_code < 0:
            return Observed(*identity, EngineState.ENDED, ended_time=ended_time, signal=-exit_code)
        return Observed(*identity, EngineState.ENDED, ended_time=ended_time, exit_code=exit_code)

    def _has_begun(self, group: str) -> bool:
        """Find out if the command of a machine runs that another process of the factory was making."""
        status = self._status(group)
        if status.model is not None:
            first = status.first_process
            others = [_command_line(each) for each in self._groups.processes(group) if each != first]
            if not status.model.running(status.text, _command_line(first), others):
                return False
        with self._lock:
            self._runs.add(group)
        return True

    def _usage(self, group: str) -> Usage:
        used, before = self._groups.usage(group), self._taken_over.get(_identity(group)[1])
        if before is None:
            return Usage(used.cpu_seconds, used.memory_bytes, used.peak_memory_bytes)
        # memory that was allocated before a process is moved stays charged to the group it came from
        return Usage(None if used.cpu_seconds is None else used.cpu_seconds + before)

    def _start(self, spec: MachineSpec, model: Model, plan: dict[str, Any], group: str) -> str:
        """Start the machine; return what launcher and program have told."""
        for _ in range(START_ATTEMPTS):
            told, failure = self._try_to_start(spec, model, plan, group)
            if not failure:
                return told
            if not model.may_pass(failure):
                break
        raise CreationFailed(failure)

    def _try_to_start(
        self, spec: MachineSpec, model: Model, plan: dict[str, Any], group: str
    ) -> tuple[str, str]:
        """Return what launcher and program have told, and the reason why the machine hasn't started, or ""."""
        console = spec.directory / CONSOLE_LOG
        output = _open_for_root(console)
        said_before = os.fstat(output).st_size
        try:
            status = _open_for_root(spec.directory / STATUS_FILE, os.O_TRUNC)
            try:
                child = _spawn({**plan, "machine": group}, output, status)
            finally:
                os.close(status)
        finally:
            os.close(output)
        with self._lock:
            self._children[child] = group
            self._ends.pop(group, None)
        _note_pid(spec.directory, child)
        told, exit_code = self._wait_for_start(model, child, group)
        said = _said(console, said_before) if exit_code is not None else ""
        failure = str(told_in(told, "failure").get("failure", ""))
        begun = exit_code is None or (told_in(told, "executing") and model.has_run(told, exit_code, said))
        if begun and not failure:
            return told, ""
        return told, failure or said or f"{Path(plan['program']).name} ended at once"

    def _wait_for_start(self, model: Model, child: int, group: str) -> tuple[str, int | None]:
        """Wait until the machine's command runs, or the program has ended; return what was told, and its exit code."""
        deadline = time.monotonic() + START_SECONDS
        pause_seconds = 0.001
        while time.monotonic() < deadline:
            self._reap()
            with self._lock:
                ended, exit_code = child not in self._children, self._ends.get(group, (None, None))[1]
            told = self._status(group).text
            if ended:
                return told, exit_code or 0
            others = [_command_line(each) for each in self._groups.processes(group) if each != child]
            if model.running(told, _command_line(child), others):
                return told, None
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, 0.05)
        raise CreationFailed(f"{model.PROGRAMS[0]} has not begun within {START_SECONDS:.0f} s")

    def _clear(self, group: str) -> None:
        """After a failed creation, leave nothing, or something that list() shows."""
        with contextlib.suppress(CgroupError):
            self._groups.kill_all(group, KILL_SECONDS)
            self._groups.remove(group)
            self._forget(group)
        self._reap()

    def _own_directories(self) -> Sequence[Path]:
        with self._lock:
            return list(self._directories.values())

    def _forget(self, group: str) -> None:
        with self._lock:
            self._runs.discard(group)
            self._ends.pop(group, None)
            self._directories.pop(group, None)

    def _reap(self) -> None:
        """Wait for the children that have ended."""
        with self._lock:
            for child, group in list(self._children.items()):
                exit_code = _exit_code(child)
                if exit_code is not None:
                    del self._children[child]
                    if group in self._starting or group in self._runs:
                        self._ends[group] = (self._ends.get(group, (None,))[0] or time.time(), exit_code)

    def _status(self, group: str) -> LaunchStatus:
        with self._lock:
            directory = self._directories.get(group)
        places = [directory] if directory is not None else []
        if directory is None and self._machines_directory is not None:
            places = sorted(self._machines_directory.glob(f"*_{_identity(group)[0]}"), reverse=True)
        for place in places:
            status = read_status(place)
            if told_in(status.text, "machine").get("machine") == group:
                with self._lock:
                    self._directories[group] = place
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


def _open_for_root(file: Path, flags: int = 0) -> int:
    """Open a file of root's own for appending."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(file, flags, 0o600)


def _spawn(plan: dict[str, Any], output: int, status: int) -> int:
    """Start the launcher; return its process number, which will be the program's."""
    arguments = [sys.executable, "-I", "-S", launch.__file__, json.dumps(plan)]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        places = ((null, 0), (output, 1), (output, 2), (status, launch.STATUS))
        actions = [(os.POSIX_SPAWN_DUP2, source, place) for source, place in places]
        return os.posix_spawn(sys.executable, arguments, {}, file_actions=actions)
    finally:
        os.close(null)


def _note_pid(directory: Path, child: int) -> None:
    """Write the number of the machine's first process for site scripts."""
    new = directory / "pid.new"
    new.write_text(f"{child}\n")
    new.rename(directory / "pid")


def _exit_code(child: int) -> int | None:
    """Return the exit code of this child, negative for a signal, 0 if nobody can tell it; None: it runs."""
    try:
        ended, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


def _command_line(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
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


def _said(console: Path, start: int) -> str:
    """Return the program's output in one line. Nothing of the machine has run: the words are its own."""
    with console.open("rb") as file:
        file.seek(start)
        words = file.read(16384).decode(errors="replace").split()
    return " ".join(words)[-MOST_REASON_CHARACTERS:]
