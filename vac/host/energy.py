"""Energy that this host uses, as far as the kernel tells: zones of /sys/class/powercap (powercap.rst of its guide)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

POWERCAP, STAT = Path("/sys/class/powercap"), Path("/proc/stat")
_ZONES = "intel-rapl:*"
"""The interface's name, on AMD too. Zones of intel-rapl-mmio are the same packages once more."""
_COUNTED = ("package", "dram")
_BUSY = (0, 1, 2, 5, 6, 7)
"""Of the columns of /proc/stat: user, nice, system, irq, softirq, steal; guests are in user."""


class EnergyMeter:
    """Tells what has been used from one call to the next."""

    def __init__(self, powercap: Path = POWERCAP, stat: Path = STAT) -> None:
        self._stat = stat
        self._zones = [
            zone for zone in sorted(powercap.glob(_ZONES)) if _text(zone / "name").startswith(_COUNTED)
        ]
        self._before: tuple[dict[Path, int], float] | None = None

    def read(self) -> tuple[float, float] | None:
        """Return joules of packages and memory, and CPU seconds of this host, used since the last call.

        None if the kernel doesn't tell, and the first time.
        """
        energy = {zone: int(text) for zone in self._zones if (text := _text(zone / "energy_uj")).isdigit()}
        if not energy:
            return None
        columns = _text(self._stat).partition("\n")[0].split()[1:]
        busy = sum(int(columns[number]) for number in _BUSY) / os.sysconf("SC_CLK_TCK")
        before, self._before = self._before, (energy, busy)
        if before is None:
            return None
        used = 0
        for zone, now in energy.items():
            passed = now - before[0].get(zone, now)
            used += passed if passed >= 0 else passed + int(_text(zone / "max_energy_range_uj") or -passed)
        return used / 1e6, max(0.0, busy - before[1])


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""
