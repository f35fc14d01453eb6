"""State directories for tests: fresh ones, machines in them, and one as a classic factory left it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.steps import at_files
from vac.clock import Moment
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import Usage
from vac.lifecycle.phases import PendingCreation
from vac.machines.creation import Access, create
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, mark_started, renew_heartbeat
from vac.scheduling.model import Create

CREATED = 1795189401
STARTED = 1795189461
ENDED = 1795225461
BOOTED = 1795000000
"""Start and end of the example record: ten hours."""
UUID = "4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b"
NAME = "node1-00.example.org"
FQAN = "/lhcb/Role=NULL/Capability=NULL"
CLASSIC = Path(__file__).resolve().parents[1] / "data" / "classic-state.txt"
OURS = Access(os.geteuid(), os.getegid())


def at(unix: float) -> Moment:
    """Return the moment at which the wall clock, which isn't set here, shows this."""
    return Moment(unix, unix - BOOTED, "boot-1")


class Killed(BaseException):
    """The process ends here."""


def new_state(path: Path) -> StateDir:
    state = StateDir(path / "state")
    state.prepare()
    return state


def settings_of(state: StateDir, **changes: Any) -> Settings:
    options: dict[str, Any] = {
        "vac_space": "vac01.example.org",
        "factory_name": "node1.example.org",
        "state_dir": state.root,
        "gocdb_sitename": "UKI-TEST-SITE",
        "hs06_per_processor": 10.0,
    }
    return Settings(**{**options, **changes})


def machinetype_of(**changes: Any) -> Machinetype:
    options: dict[str, Any] = {
        "name": "lhcb-prod",
        "machine_model": "bubblewrap",
        "accounting_fqan": FQAN,
        "min_wallclock_seconds": 86400,
    }
    return Machinetype(**{**options, **changes})


def new_machine(
    state: StateDir,
    machinetype: Machinetype | None = None,
    settings: Settings | None = None,
    *,
    uuid: str = UUID,
    processors: int = 1,
    shutdown_time: float = CREATED + 86400,
    **changes: Any,
) -> Machine:
    kind = machinetype or machinetype_of()
    pending = PendingCreation(Create(kind.name, processors, shutdown_time, ""), uuid, kind, 0.0)
    details: dict[str, Any] = {
        "name": NAME,
        "now": CREATED + 0.5,
        "user_data": b"#!/bin/sh\n",
        "access": OURS,
    }
    details.update(changes)
    details["now"] = at(details["now"])
    return create(state, pending, settings or settings_of(state), **details)


def running_machine(
    state: StateDir, *, seen: float = ENDED, cpu_seconds: float = 34100.0, **changes: Any
) -> Machine:
    machine = new_machine(state, **changes)
    mark_started(state, machine, at(STARTED))
    renew_heartbeat(state, machine, at(seen), Usage(cpu_seconds=cpu_seconds))
    return machine


def contents(root: Path) -> dict[str, bytes]:
    """All files below root and what is in them."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@contextmanager
def checkpoints(function: Any) -> Iterator[None]:
    """Calls function(step, path) at every step inside."""
    with pytest.MonkeyPatch.context() as patch:
        at_files(patch.setattr, function)
        yield


def classic_state(path: Path) -> StateDir:
    """Make the state directory of a classic factory, with the times of heartbeats and starts that it reported."""
    state = new_state(path)
    for line in CLASSIC.read_text(encoding="ascii").splitlines():
        name, _, content = line.partition("\t")
        target = state.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="ascii")
    for directory in state.machines.iterdir():
        created = int(directory.name.partition("_")[0])
        for name, time in (
            ("started", created + 60),
            ("heartbeat", created + 3663),
            ("finished", created + 3700),
        ):
            if (directory / name).exists():
                os.utime(directory / name, (time, time))
    return state
