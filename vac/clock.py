"""Two clocks: Unix time, which people and NTP set, and the time since the host was booted, which can't be set.

What is written down and shown is Unix time; ages and durations are measured by the other one. Its numbers mean
something during one boot only, so the boot's id goes with them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Moment(NamedTuple):
    """One moment by both clocks."""

    unix: float
    boot: float
    """Seconds since the host was booted, suspended or not."""
    boot_id: str

    def at(self, boot: float) -> Moment:
        """Return another moment of this boot, its Unix time by the host's clock as it is set now."""
        return Moment(self.unix - (self.boot - boot), boot, self.boot_id)


class Clock:
    """This host's clocks."""

    def __init__(self) -> None:
        self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()

    def unix(self) -> float:
        """Return Unix seconds."""
        return time.time()

    def boot(self) -> float:
        """Return the seconds since the host was booted (CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def moment(self) -> Moment:
        """Return the present moment."""
        return Moment(self.unix(), self.boot(), self.boot_id)
