"""Facts about this host, as the kernel, the user database and LVM tell them (no DNS).

HostFacts are those that the configuration depends on. measure() has those that change from moment to moment; one that
can't be read is 0 or empty. Energy is that of zones of /sys/class/powercap (powercap.rst of the kernel's guide).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from vac.host.child_processes import run
from vac.host.filesystems import mount_of, mounts

ASSUME_PROCESSORS = "VAC_ASSUME_PROCESSORS"
MOST_ASSUMED = 10000
VGS_SECONDS = 20
REBOOT_REQUIRED = Path("/run/reboot-required")
"""Made by Debian's packages, such as a new kernel; .pkgs beside it names them."""
POWERCAP, STAT = Path("/sys/class/powercap"), Path("/proc/stat")
_ZONES = "intel-rapl:*"
"""The interface's name, on AMD too. Zones of intel-rapl-mmio are the same packages once more."""
_COUNTED_ZONES = ("package", "dram")
_BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)
"""Of /proc/stat: user, nice, system, irq, softirq, steal; guests are in user."""


@dataclass(frozen=True)
class HostFacts:
    """This host, and look-ups on it, which are not compared."""

    name: str
    """The kernel's host name, lower-cased; perhaps without a domain."""
    processors: int
    """Logical processors, or what VAC_ASSUME_PROCESSORS says."""
    user_id: Callable[[str], int | None] = field(compare=False)
    """Returns the uid of an account, None if there is none of that name."""
    volume_group_exists: Callable[[str], bool] = field(compare=False)
    """Returns False if there is certainly no such LVM volume group; of read(), asks LVM once for each name."""
    assumed: bool = False
    """True: the number of processors is VAC_ASSUME_PROCESSORS', for demonstrations and tests."""
    problem: str = ""
    """Error in VAC_ASSUME_PROCESSORS, for people."""
    module_exists: Callable[[str], bool] = field(
        default=lambda name: importlib.util.find_spec(name) is not None, compare=False
    )
    """Returns True if there is a top-level Python module of this name."""
    noexec_mount: Callable[[Path], str | None] = field(default=lambda path: None, compare=False)
    """Returns where the file system that holds a path is mounted, if no program can be run there."""


def read(environ: Mapping[str, str] = os.environ) -> HostFacts:
    """Ask the kernel. environ may have VAC_ASSUME_PROCESSORS; a wrong value is reported in `problem` and ignored."""
    processors, assumed, problem = os.cpu_count() or 1, False, ""
    text = environ.get(ASSUME_PROCESSORS, "").strip()
    if re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= MOST_ASSUMED:
        processors, assumed = int(text), True
    elif text:
        problem = f"{text!r} is not an integer from 1 to {MOST_ASSUMED}"
    name = os.uname().nodename.lower()
    exists = functools.cache(volume_group_exists)
    return HostFacts(name, processors, user_id, exists, assumed, problem, noexec_mount=noexec_mount)


def user_id(name: str) -> int | None:
    """Return the account's uid, None if there is none."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def noexec_mount(path: Path) -> str | None:
    """Return the mount point of the file system that holds the path, or will, if it is mounted noexec. None also if
    that can't be examined, as on a disk that fails."""
    try:
        place = next(each for each in (path, *path.parents) if each.exists()).resolve()
        mount = mount_of(place, mounts())
    except OSError:
        return None
    return mount.point if mount is not None and "noexec" in mount.options else None


def volume_group_exists(name: str) -> bool:
    """Ask LVM. Return True also when it can't be asked (not root, a device that hangs): creation will tell then."""
    if Path("/dev", name).is_dir():
        return True
    done = run(["vgs", "--noheadings", "-o", "vg_name"], time_limit_seconds=VGS_SECONDS)
    return not done.missing and (bool(done.failure) or os.fsencode(name) in done.output.split())


def measure(state_dir: Path, root: Path = Path("/")) -> dict[str, Any]:
    """Return the host's state now, under the names of VacQuery's FactoryStatus. root: where /proc and /etc are."""
    pairs = re.findall(r"^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    memory = {name: int(kb) for name, kb in pairs}
    boot = re.search(r"^btime (\d+)$", _text(root / "proc/stat"), re.MULTILINE)
    kernel = os.uname().release
    load = _text(root / "proc/loadavg").split()
    return {
        **_free("root", root),
        **_free("daemon", state_dir),
        "load_average": float(load[2]) if len(load) > 2 else 0.0,
        "kernel_version": kernel,
        "os_issue": os_issue(root / "etc") or kernel,
        "boot_time": int(boot[1]) if boot else 0,
        "mem_total_kb": memory.get("MemTotal", 0),
        "mem_used_kb": memory.get("MemTotal", 0) - memory.get("MemFree", 0),
        "swap_used_kb": memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        "swap_free_kb": memory.get("SwapFree", 0),
    }


def os_issue(etc: Path = Path("/etc")) -> str:
    """Return the first line of redhat-release.vac or redhat-release, else PRETTY_NAME of os-release, else nothing."""
    for name in ("redhat-release.vac", "redhat-release"):
        first = _text(etc / name).partition("\n")[0].strip()
        if first:
            return first
    found = re.search(r"^PRETTY_NAME=(.*)$", _text(etc / "os-release"), re.MULTILINE)
    return found.group(1).strip().strip("\"'") if found else ""


class EnergyMeter:
    """Tells what has been used from one call to the next."""

    def __init__(self, powercap: Path = POWERCAP, stat: Path = STAT) -> None:
        self._stat = stat
        zones = sorted(powercap.glob(_ZONES))
        self._zones = [zone for zone in zones if _text(zone / "name").startswith(_COUNTED_ZONES)]
        self._before: tuple[dict[Path, int], float] | None = None

    def read(self) -> tuple[float, float] | None:
        """Return joules of packages and memory, and CPU seconds of this host, used since the last call.

        None if the kernel doesn't tell, and the first time.
        """
        told = {zone: _text(zone / "energy_uj").strip() for zone in self._zones}
        energy = {zone: int(text) for zone, text in told.items() if text.isdigit()}
        if not energy:
            return None
        columns = _text(self._stat).partition("\n")[0].split()[1:]
        busy = sum(int(columns[number]) for number in _BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")
        before, self._before = self._before, (energy, busy)
        if before is None:
            return None
        used = 0
        for zone, now in energy.items():
            passed = now - before[0].get(zone, now)
            used += passed if passed >= 0 else passed + int(_text(zone / "max_energy_range_uj") or -passed)
        return used / 1e6, max(0.0, busy - before[1])


def _free(disk: str, path: Path) -> dict[str, int]:
    """Return the free space and inodes of the file system that holds a path."""
    try:
        found = os.statvfs(path)
        kb, inodes = found.f_bavail * found.f_frsize // 1024, found.f_favail
    except OSError:
        kb, inodes = 0, 0
    return {f"{disk}_disk_avail_kb": kb, f"{disk}_disk_avail_inodes": inodes}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
