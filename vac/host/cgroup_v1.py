"""Groups in cgroup v1: a directory in each controller's hierarchy. Facts: the kernel's admin-guide/cgroup-v1.

The freezer's hierarchy is the one that tells which groups and processes there are. Where systemd has
delegated a group, its own hierarchies (name=systemd, unified) are entered too, or it would take the machines
for vacd's processes and end them with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vac.host.cgroup_base import SERVICE, CgroupError, Groups, GroupUsage, Limits, Watch, base_in, read_number

CONTROLLERS = ("freezer", "memory", "cpu", "cpuacct", "pids")
MOST_SHARES = 262144
MEMORY_AND_SWAP = "memory.memsw.limit_in_bytes"
"""Never below the limit of memory alone, so set after it; there only if the kernel counts swap (swapaccount=1)."""


def read_usage(cpuacct: Path, memory: Path) -> GroupUsage:
    """What the group with these directories has used."""
    nanoseconds = read_number(cpuacct / "cpuacct.usage")
    return GroupUsage(
        None if nanoseconds is None else nanoseconds / 1e9,
        read_number(memory / "memory.usage_in_bytes"),
        read_number(memory / "memory.max_usage_in_bytes"),
    )


class GroupsV1(Groups):
    """One factory's groups."""

    def __init__(self, hierarchies: Mapping[str, Path], others: Sequence[Path], factory: str) -> None:
        """hierarchies: mount points by controller; others: those of systemd's own hierarchies."""
        missing = [controller for controller in CONTROLLERS if controller not in hierarchies]
        if missing:
            raise CgroupError(f"no cgroup v1 hierarchy with {', '.join(missing)} is mounted")
        self._home = {each: base_in(hierarchies[each]) / factory for each in CONTROLLERS}
        systemd = [each / SERVICE / factory for each in others if (each / SERVICE).is_dir()]
        super().__init__(tuple(dict.fromkeys((*self._home.values(), *systemd))))

    def usage(self, name: str) -> GroupUsage:
        """See Groups."""
        return read_usage(self._home["cpuacct"] / name, self._home["memory"] / name)

    def watch(self, name: str) -> Watch | None:
        """See Groups: v1 doesn't tell, so one process after the other is watched through its pidfd."""
        while processes := self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                return Watch(os.pidfd_open(processes[-1]), select.POLLIN)
        return None

    def _make_home(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)

    def _set_limits(self, name: str, limits: Limits) -> None:
        shares = min(1024 * limits.processors, MOST_SHARES)
        memory = self._home["memory"] / name
        (self._home["cpu"] / name / "cpu.shares").write_text(str(shares))
        (memory / "memory.soft_limit_in_bytes").write_text(str(limits.memory_bytes))
        if limits.memory_limit_bytes is not None:
            for limit in (memory / "memory.limit_in_bytes", memory / MEMORY_AND_SWAP):
                if limit.name != MEMORY_AND_SWAP or limit.exists():
                    limit.write_text(str(limits.memory_limit_bytes))
        (self._home["pids"] / name / "pids.max").write_text(str(limits.pids))

    def _kill(self, name: str) -> None:
        state = self._home["freezer"] / name / "freezer.state"
        state.write_text("FROZEN")
        deadline = time.monotonic() + 0.5
        while state.read_text().strip() != "FROZEN" and time.monotonic() < deadline:
            time.sleep(0.001)
        for process in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        state.write_text("THAWED")
