"""Reports in state_dir: `status.json` and the small files that Nagios and site scripts read.

The responder, `vac why`, metrics and the status page read status.json, so that none of them needs the configuration or
an engine. Reading is tolerant: what is missing or of a wrong type (in another version's file) has its default.
On a full disk these files stay as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import logging
import os
import pwd
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import vac
from vac.config.load import Configuration
from vac.decoding import filled
from vac.logs import OnChange
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.requests import Drain

STALE_SECONDS = 180.0
"""A factory that hasn't reported for this long isn't running."""
_changes = OnChange(logging.getLogger(__name__))


def write_text(state: StateDir, path: Path, text: str) -> None:
    """Write one of the small files; a failure is logged once."""
    try:
        files.write_atomic(path, text.encode("utf-8", "replace"), tmp=state.tmp, sync=False)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            _changes.say(path, f"{path} can't be written: {error}", logging.WARNING)
    else:
        _changes.clear(path)


def touch_heartbeat(state: StateDir, role: str, now: float) -> None:
    """Show that a process (factory, responder, mjf, metadata) is at work."""
    files.set_mtime(state.heartbeat(role), now)


def prepare_role(
    state: StateDir, role: str, user: pwd.struct_passwd | None, directory: Path | None = None
) -> None:
    """Make the heartbeat file and the directory of an unprivileged process, and its pid file, while still root.

    What the disk doesn't take is missing: the process does its work all the same.
    """
    try:
        state.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        touch_heartbeat(state, role, time.time())
        if directory is not None:
            files.make_directory(directory, exist_ok=True)
        if user is not None:
            for path in filter(None, (state.heartbeat(role), directory)):
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        files.write_atomic(state.pid(role), b"%d\n" % os.getpid(), tmp=state.root, sync=False)
    except OSError as error:
        _changes.say(role, f"files of vacd-{role} can't be made: {error}", logging.WARNING)


def write_counts(
    state: StateDir,
    running: int,
    slots: int,
    running_processors: int,
    total_processors: int,
    running_hs06: float,
) -> None:
    """Write counts: RUNNING SLOTS RUNNING_PROCESSORS TOTAL_PROCESSORS RUNNING_HS06."""
    text = f"{running} {slots} {running_processors} {total_processors} {running_hs06:.2f}\n"
    write_text(state, state.counts, text)


def write_error(state: StateDir, error: tuple[str, str] | None) -> None:
    """Write factory-error: the first line of a text, which check-vacd shows, and its subject, which is given first.

    None removes it, also that of another process.
    """
    if error is None:
        with contextlib.suppress(OSError):
            state.factory_error.unlink(missing_ok=True)
        return
    subject, text = error
    first = next((line.strip() for line in text.splitlines() if line.strip()), "unknown error")
    write_text(state, state.factory_error, f"{first}\n{subject}\n")


FORMAT = 1


@dataclass(frozen=True)
class TypeFacts:
    """Facts about a configured machinetype; units as in the configuration."""

    name: str = ""
    fqan: str | None = None
    machinegroup: str = ""
    target_share: float = 0.0
    machine_model: str = ""
    min_processors: int = 1
    max_processors: int = 1
    min_wallclock_seconds: int = 0
    max_wallclock_seconds: int = 0
    fizzle_seconds: int = 0
    backoff_seconds: int = 0


@dataclass(frozen=True)
class Creation:
    """A machine that was created, or a type of which one could not be, and why."""

    time: float = 0.0
    machinetype: str = ""
    machine: str = ""
    processors: int = 0
    reason: str = ""


class CountedEvent(enum.Enum):
    """Events that are counted."""

    CYCLE = "cycle"
    CREATION = "creation"
    """By machine model and `created` or `failed`, from the decision to the machine's start, or the failure."""
    DESTRUCTION = "destruction"
    """By machine model and `destroyed` or `failed`, from the end that is written."""
    END = "end"
    """By machinetype and shutdown code in hundreds, `none` without one; seconds are of wall-clock time."""


@dataclass(frozen=True)
class EventCount:
    """Number of such events since the factory's process began."""

    event: str = ""
    """A CountedEvent's value."""
    kind: str = ""
    outcome: str = ""
    count: int = 0
    seconds: float = 0.0
    """Their duration in all."""


@dataclass(frozen=True)
class Status:
    """The factory when it last reported. Times are Unix seconds."""

    time: float = 0.0
    space: str = ""
    site: str = ""
    factory: str = ""
    version: str = ""
    factories: tuple[str, ...] = ()
    """All factories of the space, this one included; they may query."""
    vacquery_allow: tuple[str, ...] = ()
    """Networks that may query too; none given: the directly connected ones."""
    slots: int = 0
    total_processors: int = 0
    mb_per_processor: int = 0
    hs06_per_processor: float = 1.0
    machinetypes: tuple[TypeFacts, ...] = ()
    engines: Mapping[str, str | None] = field(default_factory=dict)
    """By engine in use: its problem, None if there is none."""
    problems: tuple[str, ...] = ()
    """Problems of the configuration on disk; the last good one is in force then."""
    warnings: tuple[str, ...] = ()
    """Probable problems of this node or the space though creation goes on."""
    drain: Drain | None = None
    shutdown_time: float | None = None
    """No machine may run past it."""
    decision_time: float | None = None
    next_time: float | None = None
    """When time alone may change the decision."""
    guard: str | None = None
    """The reason why nothing at all can be created now."""
    guard_name: str | None = None
    """That in one word, see vac.scheduling.eligibility."""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """By machinetype, why none (or no more) of it was created."""
    held_here: Mapping[str, float] = field(default_factory=dict)
    """By machinetype, until when this factory's own aborts hold it back."""
    held_in_space: Mapping[str, float] = field(default_factory=dict)
    """By machinetype, until when aborts in the space hold it back here."""
    silent: Mapping[str, float | None] = field(default_factory=dict)
    """By factory that doesn't answer: when it last did."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """By peer: why what it has answered was not used, if anything was not."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Datagrams of the last poll that were not used, by reason."""
    created: tuple[Creation, ...] = ()
    """The last creations, newest first."""
    failed: Mapping[str, Creation] = field(default_factory=dict)
    """By machinetype: its last creation that failed, until one succeeds."""
    pipes: Mapping[str, str | None] = field(default_factory=dict)
    """By Vacuum Pipe: what is the matter with it, None if nothing is."""
    slot_states: Mapping[str, str] = field(default_factory=dict)
    """By machine name, what only the engine knows: Paused, Zombie or Unknown."""
    joules: float | None = None
    """Energy that this host has used since the factory's process began; None: the kernel doesn't tell."""
    disk_used: Mapping[str, int] = field(default_factory=dict)
    """By uuid of running machines, bytes; what else they use is in their directories."""
    begin: float | None = None
    """When the factory's process began; event_counts are those since then."""
    event_counts: tuple[EventCount, ...] = ()

    def machinetype(self, name: str) -> TypeFacts | None:
        """Return the facts of this machinetype; None if it isn't configured (any more)."""
        return next((facts for facts in self.machinetypes if facts.name == name), None)


def configured(configuration: Configuration) -> Status:
    """Return what the configuration alone tells about a factory."""
    settings = configuration.settings
    names = [field.name for field in dataclasses.fields(TypeFacts) if field.name != "fqan"]
    return Status(
        space=settings.vac_space,
        site=settings.site,
        factory=settings.factory_name,
        version=vac.__version__,
        factories=settings.factories,
        vacquery_allow=tuple(map(str, settings.vacquery_allow)),
        slots=settings.host_processors,
        total_processors=settings.total_processors,
        mb_per_processor=settings.mb_per_processor,
        hs06_per_processor=settings.hs06,
        shutdown_time=settings.shutdown_time,
        machinetypes=tuple(
            TypeFacts(fqan=one.accounting_fqan, **{name: getattr(one, name) for name in names})
            for one in configuration.machinetypes.values()
        ),
    )


def write(state: StateDir, status: Status) -> None:
    """Write status.json, which `vac why`, metrics and the status page show; everybody can read it."""
    content = {"format": FORMAT, **dataclasses.asdict(status)}
    write_text(state, state.status, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read(state: StateDir) -> Status | None:
    """Return the factory's last report; None if there is nothing readable."""
    try:
        return filled(Status(), json.loads(state.status.read_bytes().decode()))
    except (OSError, ValueError):
        return None


def state_of(name: str, machine: Machine | None, status: Status | None) -> str:
    """Return Shut down, Starting or Running, or what only the engine knows: Paused, Zombie, Unknown.

    name is the slot's, machine its present or last one.
    """
    if status is not None and name in status.slot_states:
        return status.slot_states[name]
    if machine is None or machine.finished:
        return "Shut down"
    return "Starting" if machine.started_time is None else "Running"
