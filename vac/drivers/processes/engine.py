"""Machines that are processes of this host: one cgroup each, which holds all of them and tells their end.

The cgroup is the truth: a machine runs while its cgroup is populated, and outlives the factory in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.config.values import without_password
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
from vac.drivers.images import ImageFacts, ImageFiles, ImageVersion
from vac.drivers.processes import launch
from vac.drivers.processes.left import take_in
from vac.drivers.processes.plan import Model, account, limits_of, make_plan, model_of, prepare_directory
from vac.drivers.volumes import ScratchVolumes
from vac.host.cgroup_watch import EndWatcher
from vac.host.cgroups import CgroupError, Groups, open_groups
from vac.host.connections import Contact, Sampling, contacts_by_group, host_addresses
from vac.host.filesystems import FileStamp

KILL_SECONDS = 60.0
"""Longest that processes may take to end after SIGKILL."""
START_SECONDS = 200.0
"""Longest that a machine may take from its first process to its command; images can be on slow disks."""
MOST_REASON_CHARACTERS = 300


def open_driver(settings: Settings, fetch: Fetch | None = None) -> ProcessDriver:
    """A driver of this factory's machines; fetch as in ImageFiles.

    Raises EngineUnavailable if the host has no cgroups for them.
    """
    try:
        return ProcessDriver(open_groups(settings.factory_name), fetch)
    except (CgroupError, OSError) as error:
        raise EngineUnavailable(str(error)) from error


class ProcessDriver(Driver):
    """Driver of the machines in these groups; fetch as in ImageFiles."""

    def __init__(self, groups: Groups, fetch: Fetch | None = None) -> None:
        self._groups = groups
        self._watcher = EndWatcher(groups)
        self._images = ImageFiles(fetch, self._watcher.wake)
        self._facts = ImageFacts()
        self._scratch = ScratchVolumes()
        self._sampling = Sampling()
        self._lock = threading.Lock()
        self._starting: set[str] = set()
        self._children: set[int] = set()
        self._left: Mapping[str, LeftProcess] = {}
        self._used_before: dict[str, float] = {}
        """CPU seconds by uuid that were used outside the machine's group."""

    def list(self) -> Sequence[Observed]:
        """See Driver."""
        self._reap()
        with _unavailable():
            self._take_in()
            return [self._observed(group) for group in self._machines()]

    def usage(self) -> Mapping[str, Usage]:
        """See Driver."""
        with _unavailable():
            return {_identity(group)[1]: self._usage(group) for group in self._machines()}

    def create(self, spec: MachineSpec) -> None:
        """See Driver."""
        with self._scratch.made(spec):
            self._create(spec)

    def _create(self, spec: MachineSpec) -> None:
        model, plan = make_plan(self._with_image(spec))
        group = f"{spec.name}_{spec.uuid}"
        with self._lock:
            self._starting.add(group)
        try:
            self._groups.create(group, limits_of(spec))
            plan["entrances"] = [str(entrance) for entrance in self._groups.entrances(group)]
            prepare_directory(spec, model, plan["uid"], plan["gid"])
            told = self._start(spec, model, plan, group)
            self._watcher.add(group)
            path, image = _image(told)
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
        with _unavailable():
            self._groups.remove(f"{name}_{uuid}")
        self._scratch.remove(name, uuid)
        self._facts.forget(uuid)
        self._used_before.pop(uuid, None)

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        """See Driver."""
        self._left = processes

    def _take_in(self) -> None:
        """Once what an older Vac has left is in groups, it is as if it were ours."""
        left = self._left
        for uuid, process in left.items():
            group = f"{process.name}_{uuid}"
            if take_in(self._groups, group, process):
                self._watcher.add(group)
            if self._groups.exists(group):
                used = self._groups.usage(group).cpu_seconds or 0.0
                self._used_before[uuid] = max(0.0, process.cpu_seconds - used)
        if self._left is left:
            self._left = {}

    def events(self) -> Iterator[str]:
        """See Driver."""
        with _unavailable():
            for group in self._watcher.ends():
                yield _identity(group)[0]

    def close(self) -> None:
        """See Driver. Where there are no machines, no trace is left."""
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
        """The same with the path of the image's copy for its URL, readable by the machine's user."""
        kind = spec.machinetype
        if not _fetches(kind):
            return spec
        path = self._images.path(kind.root_image, None, spec.files)
        try:
            os.chown(path, -1, account(spec.settings).pw_gid)
            path.chmod(0o640)
        except OSError as error:
            raise CreationFailed(f"{path}: {error.strerror}") from error
        return dataclasses.replace(spec, machinetype=dataclasses.replace(kind, root_image=str(path)))

    def _machines(self) -> Sequence[str]:
        with self._lock:
            starting = set(self._starting)
        return [group for group in self._groups.names() if group not in starting]

    def _observed(self, group: str) -> Observed:
        if self._groups.populated(group):
            return Observed(*_identity(group), EngineState.RUNNING)
        has_run = bool(self._groups.usage(group).cpu_seconds)
        return Observed(*_identity(group), EngineState.ENDED if has_run else EngineState.HALF_MADE)

    def _usage(self, group: str) -> Usage:
        used, before = self._groups.usage(group), self._used_before.get(_identity(group)[1], 0.0)
        cpu_seconds = None if used.cpu_seconds is None else used.cpu_seconds + before
        return Usage(cpu_seconds, used.memory_bytes, used.peak_memory_bytes)

    def _start(self, spec: MachineSpec, model: Model, plan: dict[str, Any], group: str) -> str:
        """Start the machine; what launcher and program have told."""
        console = spec.directory / "console.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        output = os.open(console, flags, 0o600)
        said_before = os.fstat(output).st_size
        status, status_writer = os.pipe2(os.O_CLOEXEC)
        try:
            child = _spawn(plan, output, status_writer)
        finally:
            os.close(output)
            os.close(status_writer)
        exit_code = None
        try:
            _note_pid(spec.directory, child)
            told, exit_code = self._wait_for_start(model, child, status, group)
        finally:
            os.close(status)
            if exit_code is None:
                with self._lock:
                    self._children.add(child)
        if exit_code is None:
            return told
        said = _said(console, said_before)
        failure = _failure(told)
        if failure or launch.EXECUTING.decode() not in told or not model.has_run(told, exit_code, said):
            raise CreationFailed(failure or said or f"{Path(plan['program']).name} ended at once")
        return told

    def _wait_for_start(self, model: Model, child: int, status: int, group: str) -> tuple[str, int | None]:
        """Wait until the machine's command runs, or the program has ended: what was told, and its exit code then."""
        deadline = time.monotonic() + START_SECONDS
        os.set_blocking(status, False)
        said, pause_seconds = "", 0.001
        while time.monotonic() < deadline:
            exit_code = _exit_code(child)
            said += _read_all(status)
            if exit_code is not None:
                return said, exit_code
            others = [_command_line(each) for each in self._groups.processes(group) if each != child]
            if model.running(said, _command_line(child), others):
                return said, None
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, 0.05)
        raise CreationFailed(f"{model.PROGRAMS[0]} has not begun within {START_SECONDS:.0f} s")

    def _clear(self, group: str) -> None:
        """After a failed creation: leave nothing, or something that list() shows."""
        with contextlib.suppress(CgroupError):
            self._groups.kill_all(group, KILL_SECONDS)
            self._groups.remove(group)
        self._reap()

    def _reap(self) -> None:
        with self._lock:
            self._children = {child for child in self._children if _exit_code(child) is None}


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (CgroupError, OSError) as error:
        raise EngineUnavailable(str(error)) from error


def _identity(group: str) -> tuple[str, str]:
    """Name and uuid of a group's machine."""
    name, _, uuid = group.rpartition("_")
    return name, uuid


def _fetches(machinetype: Machinetype) -> bool:
    """Is its image one to be downloaded?"""
    is_url = (machinetype.root_image or "").startswith(("http://", "https://"))
    return is_url and model_of(machinetype.machine_model).TAKES_URLS


def _spawn(plan: dict[str, Any], output: int, status: int) -> int:
    """Start the launcher; its process number, which will be the program's."""
    arguments = [sys.executable, "-I", "-S", launch.__file__, json.dumps(plan)]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        places = ((null, 0), (output, 1), (output, 2), (status, launch.STATUS))
        actions = [(os.POSIX_SPAWN_DUP2, source, place) for source, place in places]
        return os.posix_spawn(sys.executable, arguments, {}, file_actions=actions)
    finally:
        os.close(null)


def _note_pid(directory: Path, child: int) -> None:
    """Let site scripts know the number of the machine's first process."""
    new = directory / "pid.new"
    new.write_text(f"{child}\n")
    new.rename(directory / "pid")


def _exit_code(child: int) -> int | None:
    """The exit code of this child, negative for a signal, 0 if nobody can tell it; None: it runs."""
    try:
        ended, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


def _read_all(descriptor: int) -> str:
    """What can be read without waiting."""
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 65536).decode(errors="replace")
    return ""


def _command_line(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _failure(said: str) -> str:
    """The launcher's reason, "" if it got so far as to execute the program."""
    return str(_told(said, "failure").get("failure", ""))


def _image(said: str) -> tuple[str, ImageVersion | None]:
    """The image's real path, as the launcher has told it, and its version if it is a file."""
    told = _told(said, "image_path")
    path, stamp = str(told.get("image_path", "")), told.get("stamp")
    return path, ImageVersion(path, FileStamp(*stamp)) if stamp else None


def _told(said: str, key: str) -> dict[str, Any]:
    """What launcher and program have said in the JSON object that has this key; empty if they haven't."""
    for line in said.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            told = json.loads(line)
            if isinstance(told, dict) and key in told:
                return told
    return {}


def _facts(spec: MachineSpec, image_path: str) -> dict[str, str]:
    """What is known of a machine as soon as it has been made. All share the host's network."""
    user = account(spec.settings)
    facts = {
        "user": f"{user.pw_name} ({user.pw_uid})",
        "image": without_password(spec.machinetype.root_image or ""),
        "image_path": image_path,
        "network": "host",
        "addresses": " ".join(host_addresses()),
    }
    return {name: text for name, text in facts.items() if text}


def _said(console: Path, start: int) -> str:
    """What the program has written, in one line. Nothing of the machine has run: the words are its own."""
    with console.open("rb") as file:
        file.seek(start)
        words = file.read(16384).decode(errors="replace").split()
    return " ".join(words)[-MOST_REASON_CHARACTERS:]
