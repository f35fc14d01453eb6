"""Machines that a classic factory left running: Singularity's process, whose number is in the machine's file `pid`.

Such a process and its descendants are moved into a cgroup like those of our own machines, in which the machine is then
watched and ended. Fields of /proc/PID: proc_pid_stat(5) and proc_pid_status(5).
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from vac.drivers.base import EngineUnavailable, LeftProcess
from vac.host.cgroups import Groups, Limits

PROC = Path("/proc")
NAMES = (b"singularity", b"apptainer")
"""One of these is in the command line, also once the program calls itself `Singularity runtime parent`."""
CLOCK_SLACK_SECONDS = 5.0
"""Tolerance between the start of a process and the time its number was noted, as clocks are corrected."""
MOST_PIDS = 4194304
"""The kernel's own limit: the classic's isn't known."""


def take_over(groups: Groups, group: str, left: LeftProcess) -> bool:
    """Move the machine's processes into this group, which is made if need be; False if it doesn't run any more.

    Raises CgroupError, OSError, and EngineUnavailable if the owner of the process is unknown.
    """
    if not still_runs(left):
        return False
    if not groups.exists(group):
        groups.create(group, Limits(left.processors, left.memory_bytes, None, MOST_PIDS))
    moved: set[int] = set()
    while fresh := {left.pid, *descendants(left.pid)} - moved:
        for process in fresh:
            _enter(groups.entrances(group), process)
        moved |= fresh
    return True


def still_runs(left: LeftProcess, proc: Path = PROC) -> bool:
    """Return True if the process with this number is still the one that was noted, by its owner, age and command."""
    place = proc / str(left.pid)
    try:
        state, _, begun_time = _stat(place, proc)
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
        and any(name in command for name in NAMES)
    )


def descendants(pid: int, proc: Path = PROC) -> set[int]:
    """Return the process's children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for place in proc.iterdir():
        if place.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(_stat(place, proc)[1], []).append(int(place.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        own = children.get(todo.pop(), [])
        found.update(own)
        todo += own
    return found


def _stat(place: Path, proc: Path) -> tuple[str, int, float]:
    """Return state, parent and start (Unix seconds) of a process."""
    fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
    boot = next(line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
    return fields[0], int(fields[1]), int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _enter(entrances: Iterable[Path], process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        for entrance in entrances:
            entrance.write_text(str(process))
