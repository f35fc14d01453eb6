"""Machines that are processes of this host: one cgroup each, which holds all of them and tells their end.

The cgroup is the truth: a machine runs while its cgroup is populated, and outlives the factory in it. What
differs between bubblewrap and Singularity is a Model: how the command line is made and when it has begun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pwd
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Protocol, cast

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.config.values import without_password
from vac.drivers import launch
from vac.drivers.base import CreationFailed, EngineState, EngineUnavailable, MachineSpec, Observed, Usage
from vac.drivers.fetched import FetchedImages
from vac.host.cgroup_watch import EndWatcher
from vac.host.cgroups import CgroupError, Groups, Limits, open_groups

MODELS = {"bubblewrap": "vac.drivers.bubblewrap", "singularity": "vac.drivers.apptainer"}
"""Module, a Model, by machine model."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KILL_SECONDS = 60.0
"""Longest that processes may take to end after SIGKILL."""
START_SECONDS = 200.0
"""Longest that a machine may take from its first process to its command; images can be on slow disks."""
MOST_REASON_CHARACTERS = 300


class Model(Protocol):
    """What a module of MODELS offers."""

    PROGRAMS: tuple[str, ...]
    """Programs that make the machine; the first that is found in PATH is taken."""
    PACKAGE: str
    """What to install if there is none."""
    OPTION: str
    """The option of [settings] that names another; "" if there is none."""
    TELLS: bool
    """Does the program get descriptor 3 to write its status to?"""
    TAKES_URLS: bool
    """May root_image be the URL of an image? plan() is given the path of its copy."""

    def plan(self, spec: MachineSpec, program: str) -> dict[str, Any]:
        """What the launcher needs to know, for JSON; ValueError with a reason if that can't be."""

    def command_line(self, plan: dict[str, Any]) -> list[str]:
        """The program and its arguments; called in the launcher. OSError or ValueError with a reason."""

    def scratch(self, spec: MachineSpec) -> list[tuple[str, str]]:
        """Fresh directories that are to be made: name below mnt, and place inside."""

    def running(self, status: str, first: bytes, others: list[bytes]) -> bool:
        """Does the machine's own command run? By what the program has told and processes' command lines."""

    def has_run(self, status: str, exit_code: int, said: str) -> bool:
        """Now that the program has ended: had the machine's own command been begun? said is the end of its output."""


def open_driver(settings: Settings, fetch: Callable[[str], Path] | None = None) -> ProcessDriver:
    """A driver of this factory's machines; fetch as in FetchedImages.

    Raises EngineUnavailable if the host has no cgroups for them.
    """
    try:
        return ProcessDriver(open_groups(settings.factory_name), fetch)
    except (CgroupError, OSError) as error:
        raise EngineUnavailable(str(error)) from error


def account(settings: Settings) -> pwd.struct_passwd:
    """The unprivileged account that machines run as. Raises CreationFailed if there is no such one."""
    name = settings.singularity_user or "nobody"
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise CreationFailed(f"there is no account {name}: singularity_user must name one") from None
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise CreationFailed(f"singularity_user {name} is root; machines run unprivileged")
    return user


class ProcessDriver:
    """A Driver, and Preparing, for the factory's machines in these groups; fetch as in FetchedImages."""

    def __init__(self, groups: Groups, fetch: Callable[[str], Path] | None = None) -> None:
        self._groups = groups
        self._watcher = EndWatcher(groups)
        self._images = FetchedImages(fetch, self._watcher.wake)
        self._lock = threading.Lock()
        self._starting: set[str] = set()
        self._children: set[int] = set()

    def list(self) -> Sequence[Observed]:
        """See Driver."""
        self._reap()
        with _unavailable():
            return [self._observed(group) for group in self._machines()]

    def usage(self) -> Mapping[str, Usage]:
        """See Driver."""
        with _unavailable():
            return {_identity(group)[1]: self._usage(group) for group in self._machines()}

    def create(self, spec: MachineSpec) -> None:
        """See Driver."""
        model, plan = _plan(self._with_image(spec))
        group = f"{spec.name}_{spec.uuid}"
        with self._lock:
            self._starting.add(group)
        try:
            self._groups.create(group, _limits(spec))
            plan["entrances"] = [str(entrance) for entrance in self._groups.entrances(group)]
            _prepare_directory(spec, model, plan["uid"], plan["gid"])
            self._start(spec, model, plan, group)
            self._watcher.add(group)
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
        """See Preparing."""
        return self._images.prepare(machinetype.root_image or "") if _fetches(machinetype) else None

    def _with_image(self, spec: MachineSpec) -> MachineSpec:
        """The same with the path of the image's copy for its URL, readable by the machine's user."""
        kind = spec.machinetype
        if not _fetches(kind):
            return spec
        path = self._images.path(kind.root_image or "")
        if path is None:
            raise CreationFailed(f"image {without_password(kind.root_image or '')} has not been downloaded")
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
        used = self._groups.usage(group)
        return Usage(used.cpu_seconds, used.memory_bytes, used.peak_memory_bytes)

    def _start(self, spec: MachineSpec, model: Model, plan: dict[str, Any], group: str) -> None:
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
            told, exit_code = self._wait_for_start(model, child, status, group)
        finally:
            os.close(status)
            if exit_code is None:
                with self._lock:
                    self._children.add(child)
        if exit_code is None:
            return
        said = _said(console, said_before)
        failure = _failure(told)
        if failure or launch.EXECUTING.decode() not in told or not model.has_run(told, exit_code, said):
            raise CreationFailed(failure or said or f"{Path(plan['program']).name} ended at once")

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


def _model(machine_model: str) -> Model:
    return cast(Model, importlib.import_module(MODELS[machine_model]))


def _plan(spec: MachineSpec) -> tuple[Model, dict[str, Any]]:
    """How this machine is to be launched; everything but the cgroup."""
    kind = spec.machinetype.machine_model
    user = account(spec.settings)
    model = _model(kind)
    program = find_program(kind, spec.settings)
    try:
        plan = model.plan(spec, program)
    except ValueError as error:
        raise CreationFailed(str(error)) from error
    features = {
        f"{name.upper()}": f"/tmp/{name}" for name in ("machinefeatures", "jobfeatures", "joboutputs")
    }
    plan["environment"] = {"PATH": PATH, "HOME": "/tmp", **features, **plan.get("environment", {})}
    plan["module"], plan["path"] = MODELS[kind], str(Path(__file__).parents[2])
    plan["uid"], plan["gid"] = user.pw_uid, user.pw_gid
    return model, plan


def find_program(machine_model: str, settings: Settings) -> str:
    """The path of the program that makes machines of this model. Raises CreationFailed if there is none."""
    model = _model(machine_model)
    chosen = getattr(settings, model.OPTION) if model.OPTION else None
    if chosen is not None:
        if not os.access(chosen, os.X_OK):
            raise CreationFailed(f"{model.OPTION} {chosen} is no program")
        return str(chosen)
    found = filter(None, (shutil.which(each, path=PATH) for each in model.PROGRAMS))
    for program in found:
        return program
    raise CreationFailed(f"{model.PROGRAMS[0]} is not installed: install the package {model.PACKAGE}")


def _fetches(machinetype: Machinetype) -> bool:
    """Is its image one to be downloaded?"""
    is_url = (machinetype.root_image or "").startswith(("http://", "https://"))
    return is_url and _model(machinetype.machine_model).TAKES_URLS


def _limits(spec: MachineSpec) -> Limits:
    factor = spec.settings.memory_limit_factor
    return Limits(
        spec.processors,
        spec.memory_bytes,
        int(spec.memory_bytes * factor) if factor else None,
        spec.settings.pids_per_processor * spec.processors,
    )


def _prepare_directory(spec: MachineSpec, model: Model, uid: int, gid: int) -> None:
    """Give the machine's user what is its own to write or run, and make the fresh directories."""
    os.chown(spec.directory / "joboutputs", uid, gid)
    user_data = spec.directory / "user_data"
    if user_data.exists():
        os.chown(user_data, uid, gid)
        user_data.chmod(0o500)
    below = spec.directory / "mnt"
    below.mkdir(exist_ok=True)
    below.chmod(0o711)
    for name, _ in model.scratch(spec):
        (below / name).mkdir(exist_ok=True)
        (below / name).chmod(0o700)
        os.chown(below / name, uid, gid)


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
    for line in said.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            told = json.loads(line)
            if isinstance(told, dict) and "failure" in told:
                return str(told["failure"])
    return ""


def _said(console: Path, start: int) -> str:
    """What the program has written, in one line. Nothing of the machine has run: the words are its own."""
    with console.open("rb") as file:
        file.seek(start)
        words = file.read(16384).decode(errors="replace").split()
    return " ".join(words)[-MOST_REASON_CHARACTERS:]
