"""Groups in cgroup v2, the unified hierarchy. Facts: admin-guide/cgroup-v2.rst of the kernel.

Controllers that the hierarchy doesn't offer are done without: their limits are not set then.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from vac.host.cgroup_base import SERVICE, Groups, GroupUsage, Limits, Watch, base_in, read_number, read_text

CONTROLLERS = ("cpu", "memory", "pids")
MOST_WEIGHT = 10000
SWAP = "memory.swap.max"
"""What may be swapped out beyond memory.max, which doesn't count it; there only if the kernel counts swap."""
LEAF = "init"
"""The leaf of vac-machines.service's own process: a group with processes can't have controllers below."""


def read_usage(group: Path) -> GroupUsage:
    """What the group with this directory has used."""
    words = read_text(group / "cpu.stat").split()
    microseconds = int(words[words.index("usage_usec") + 1]) if words else None
    return GroupUsage(
        None if microseconds is None else microseconds / 1e6,
        read_number(group / "memory.current"),
        read_number(group / "memory.peak"),
    )


class GroupsV2(Groups):
    """One factory's groups."""

    def __init__(self, mount: Path, factory: str) -> None:
        self._mount = mount
        self._base = base_in(mount)
        self._home = self._base / factory
        delegated = self._base == mount / SERVICE
        self._top = self._base if delegated else mount
        offered = (self._top / "cgroup.controllers").read_text().split()
        self.controllers = tuple(each for each in CONTROLLERS if each in offered)
        """Those that limit machines here."""
        super().__init__((self._home,))

    def usage(self, name: str) -> GroupUsage:
        """See Groups."""
        return read_usage(self._home / name)

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
        home.mkdir(parents=True, exist_ok=True)
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
        if "memory" in self.controllers:
            (group / "memory.low").write_text(str(limits.memory_bytes))
            most = limits.memory_limit_bytes
            (group / "memory.max").write_text("max" if most is None else str(most))
            if most is not None and (group / SWAP).exists():
                (group / SWAP).write_text("0")
        if "pids" in self.controllers:
            (group / "pids.max").write_text(str(limits.pids))

    def _kill(self, name: str) -> None:
        group = self._home / name
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
            return
        (group / "cgroup.freeze").write_text("1")
        deadline = time.monotonic() + 0.5
        while "frozen 1" not in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.001)
        for process in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        (group / "cgroup.freeze").write_text("0")
