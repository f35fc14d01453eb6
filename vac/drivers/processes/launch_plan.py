"""The launch of a process machine: its plan (program, user, limits, directories), the launcher, and its status.

A Model has what differs between bubblewrap and Singularity.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import vac
from vac.config.settings import Settings, slot_number, slot_uid
from vac.drivers.base import CreationFailed, MachineSpec
from vac.drivers.images import ImageVersion
from vac.drivers.processes import launch
from vac.host.filesystems import FileStamp
from vac.host.privileges import MOST_USER_NAMESPACES, subordinate_ids
from vac.host.syscall_filter import compiled

MODELS = {"bubblewrap": "vac.drivers.processes.bubblewrap", "singularity": "vac.drivers.processes.apptainer"}
"""Module, a Model, by machine model."""
STATUS_FILE = "launch.status"
"""In the machine's directory, root's own: lines of JSON, as launch.py says."""
MOST_REASON_CHARACTERS = 300
FEATURES = {name: f"/tmp/{name.lower()}" for name in ("MACHINEFEATURES", "JOBFEATURES", "JOBOUTPUTS")}
"""Paths inside, by the variable that tells them."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Model(Protocol):
    """A module of MODELS.

    Plans have "program", "image", its path, and "fresh", the directories to make in mnt, among others. told is what
    launcher and program have told in the status file.
    """

    PROGRAMS: tuple[str, ...]
    """Programs that make the machine; the first that is found in PATH is taken."""
    PACKAGE: str
    """Package to install if there is none."""
    OPTION: str
    """The option of [settings] that names another; "" if there is none."""
    TELLS: bool
    """True: the program writes its own status to descriptor 3."""
    TAKES_URLS: bool
    """True: root_image may be the URL of an image; plan() is given the path of its copy."""
    NEEDS_ACCOUNT: bool
    """True: the program doesn't run with a uid of slot_uids without an account."""
    FILTERED: bool
    """True: the program takes a filter of system calls as descriptor FILTER; else it is put under one itself."""

    def plan(self, spec: MachineSpec, program: str, mounts: list[tuple[str, str, str]]) -> dict[str, Any]:
        """Return what the launcher needs, for JSON; mounts as from MachineSpec. Raises ValueError with a reason."""

    def command_line(self, plan: dict[str, Any]) -> list[str]:
        """Return the program and its arguments; called in the launcher. Raises OSError or ValueError with a reason."""

    def command_pids(self, told: Mapping[str, Any], first: bytes, others: Mapping[int, bytes]) -> list[int]:
        """Return the processes of the machine's own command; none as long as it hasn't begun.

        first is the command line of the program, others are those of the machine's other processes, b"" for one that
        has gone.
        """

    def executed(self, told: Mapping[str, Any]) -> bool:
        """Return False if the machine's own command was certainly never executed."""

    def may_pass(self, failure: str) -> bool:
        """Return True if the same start may succeed at once, since a file has vanished during it."""

    def has_run(self, told: Mapping[str, Any], exit_code: int, said: str) -> bool:
        """Return True if the program, which has ended, had executed the machine's command; said: its last output."""


def account(settings: Settings) -> pwd.struct_passwd:
    """Return the unprivileged account that machines run as. Raises CreationFailed if there is none."""
    name = settings.singularity_user or "nobody"
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise CreationFailed(f"there is no account {name}: singularity_user must name one") from None
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise CreationFailed(f"singularity_user {name} is root; machines run unprivileged")
    return user


def identity(spec: MachineSpec) -> tuple[int, int]:
    """Return uid and gid of the machine: its slot's own, else those of account(). Raises CreationFailed.

    Slots' own are those of slot_uids, else, where no account is needed for them, those of subordinate_ids().
    """
    try:
        uid = slot_uid(spec.settings, spec.name)
    except ValueError as error:
        raise CreationFailed(str(error)) from None
    if uid is None and not model_of(spec.machinetype.machine_model).NEEDS_ACCOUNT:
        number = slot_number(spec.settings.factory_name, spec.name)
        uid = next(iter(subordinate_ids()[number or 0 :]), None)
    if uid is not None:
        return uid, uid
    user = account(spec.settings)
    return user.pw_uid, user.pw_gid


def model_of(machine_model: str) -> Model:
    """Return the module of a machine model."""
    return cast(Model, importlib.import_module(MODELS[machine_model]))


def make_plan(spec: MachineSpec) -> tuple[Model, dict[str, Any]]:
    """Return the plan of this machine's launch, but for its cgroup. Raises CreationFailed."""
    kind = spec.machinetype.machine_model
    uid, gid = identity(spec)
    model = model_of(kind)
    if model.NEEDS_ACCOUNT and named_user(uid) == str(uid):
        what = f"{model.PROGRAMS[0]} needs an account with uid {uid}, a uid of slot_uids; sysusers.d can declare it"
        raise CreationFailed(what)
    program = find_program(kind, spec.settings)
    try:
        plan = model.plan(spec, program, spec.mounts(FEATURES))
        if model.FILTERED:
            plan["filter"] = compiled(spec.machinetype.container_nested).hex()
            plan["most_user_namespaces"] = MOST_USER_NAMESPACES * spec.machinetype.container_nested
        else:  # what makes the container needs to make name spaces
            plan["inherited_filter"] = compiled(nested=True).hex()
    except OSError as error:
        raise CreationFailed(f"{error.filename} {error.strerror}") from error
    except ValueError as error:
        raise CreationFailed(str(error)) from error
    plan["environment"] = {"PATH": PATH, "HOME": "/tmp", **FEATURES, **plan.get("environment", {})}
    plan["model"], plan["module"], plan["path"] = kind, MODELS[kind], str(Path(vac.__file__).parents[1])
    plan["uid"], plan["gid"] = uid, gid
    return model, plan


def named_user(uid: int) -> str:
    """Return the account's name with the number in brackets; the number alone if it has no account."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def find_program(machine_model: str, settings: Settings) -> str:
    """Return the path of the program that makes machines of this model. Raises CreationFailed if there is none."""
    model = model_of(machine_model)
    chosen = getattr(settings, model.OPTION) if model.OPTION else None
    if chosen is not None:
        if not os.access(chosen, os.X_OK):
            raise CreationFailed(f"{model.OPTION} {chosen} can't be executed")
        return str(chosen)
    found = next(filter(None, (shutil.which(each, path=PATH) for each in model.PROGRAMS)), None)
    if found is not None:
        return found
    raise CreationFailed(f"{model.PROGRAMS[0]} is not installed: install the package {model.PACKAGE}")


def prepare_directory(spec: MachineSpec, plan: Mapping[str, Any]) -> None:
    """Make the machine's user owner of what it may write or run, and make the fresh directories."""
    uid, gid = plan["uid"], plan["gid"]
    with contextlib.suppress(FileNotFoundError):  # the machine's program says what is missing
        spec.hand_over(uid, gid)
    below = spec.directory / "mnt"
    below.mkdir(exist_ok=True)
    below.chmod(0o711)
    for name in plan["fresh"]:
        (below / name).mkdir(exist_ok=True)
        (below / name).chmod(0o700)
        os.chown(below / name, uid, gid)


@dataclass(frozen=True)
class LaunchStatus:
    """The content of a status file."""

    told: Mapping[str, Any] = field(default_factory=dict)
    """Values by key; of several the first."""
    time: float = 0.0
    """Of the last message, Unix seconds."""

    @property
    def model(self) -> Model | None:
        """The machine's model; None if there is no status file, as for machines of a classic factory."""
        name = self.told.get("model")
        return model_of(name) if name in MODELS else None

    @property
    def started_time(self) -> float | None:
        """Time at which the launcher became the program, Unix seconds; None: it hasn't, or is an older Vac's."""
        begun = self.told.get("executing")
        return begun if isinstance(begun, float) else None

    @property
    def exit_code(self) -> int | None:
        """The exit code that the program has told."""
        code = self.told.get("exit-code")
        return code if isinstance(code, int) else None

    @property
    def image(self) -> tuple[str, ImageVersion | None]:
        """The image's real path, and its version if it is a file."""
        path, stamp = str(self.told.get("image_path", "")), self.told.get("stamp")
        return path, ImageVersion(path, FileStamp(*stamp)) if stamp else None


def read_status(directory: Path) -> LaunchStatus:
    """Return the status in a machine's directory; an empty one if there is none."""
    try:
        with (directory / STATUS_FILE).open("rb") as file:
            text, changed = file.read(65536).decode(errors="replace"), os.fstat(file.fileno()).st_mtime
    except OSError:
        return LaunchStatus()
    told: dict[str, Any] = {}
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            message = json.loads(line)
            told = {**message, **told} if isinstance(message, dict) else told
    return LaunchStatus(told, changed)


def open_for_root(file: Path, flags: int = 0) -> IO[bytes]:
    """Open a file of root's own for appending."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(file, flags, 0o600), "ab", buffering=0)


def spawn(plan: dict[str, Any], output: int, status: int) -> int:
    """Start the launcher; return its process number, which will be the program's."""
    arguments = [sys.executable, "-I", "-S", launch.__file__, json.dumps(plan)]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        places = ((null, 0), (output, 1), (output, 2), (status, launch.STATUS))
        actions = [(os.POSIX_SPAWN_DUP2, source, place) for source, place in places]
        return os.posix_spawn(sys.executable, arguments, {}, file_actions=actions)
    finally:
        os.close(null)


def note_pid(directory: Path, child: int) -> None:
    """Write the number of the machine's first process for site scripts."""
    new = directory / "pid.new"
    new.write_text(f"{child}\n")
    new.rename(directory / "pid")


def said_in(console: Path, start: int) -> str:
    """Return the program's output in one line. Nothing of the machine has run: the words are its own."""
    with console.open("rb") as file:
        file.seek(start)
        words = file.read(16384).decode(errors="replace").split()
    return " ".join(words)[-MOST_REASON_CHARACTERS:]
