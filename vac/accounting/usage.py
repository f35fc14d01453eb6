"""Sums of the archive's job records: machines, hours and work by machinetype, FQAN or machine model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vac.accounting.records import HEPSCORE23, HS06, message_fields

HOUR = 3600.0
_LEVEL = re.compile(r"(\w+):\s*([0-9.]+)")


@dataclass
class Usage:
    """Sums of some records."""

    machines: int = 0
    wall_seconds: int = 0
    processor_seconds: int = 0
    """Wall-clock time × processors."""
    cpu_seconds: int = 0
    work: dict[str, float] = field(default_factory=dict)
    """Benchmark × processor seconds, by the benchmark's name in records."""

    def add(self, fields: Mapping[str, str]) -> None:
        """Add a record. Raises KeyError or ValueError, having added nothing, for one that isn't whole."""
        wall, cpu, processors = (int(fields[key]) for key in ("WallDuration", "CpuDuration", "Processors"))
        levels = service_levels(fields)
        self.machines += 1
        self.wall_seconds += wall
        self.processor_seconds += wall * processors
        self.cpu_seconds += cpu
        for name, level in levels.items():
            self.work[name] = self.work.get(name, 0.0) + level * wall * processors

    def as_dict(self) -> dict[str, object]:
        """Return what people are shown."""
        efficiency = self.cpu_seconds / self.processor_seconds if self.processor_seconds else None
        return {
            "machines": self.machines,
            "wall_hours": self.wall_seconds / HOUR,
            "processor_hours": self.processor_seconds / HOUR,
            "cpu_hours": self.cpu_seconds / HOUR,
            "efficiency": efficiency,
            "hs06_hours": self.work[HS06] / HOUR if HS06 in self.work else None,
            "hepscore23_hours": self.work[HEPSCORE23] / HOUR if HEPSCORE23 in self.work else None,
        }


def service_levels(fields: Mapping[str, str]) -> dict[str, float]:
    """Return a record's benchmarks of one processor by their names. Raises KeyError or ValueError."""
    kind = fields.get("ServiceLevelType")
    if kind is not None:
        return {kind: float(fields["ServiceLevel"])}
    return {name: float(level) for name, level in _LEVEL.findall(fields["ServiceLevel"])}


def usage(records: Iterable[str], group: Callable[[Mapping[str, str]], str]) -> dict[str, Usage]:
    """Return sums of these records by the group of each. Records that aren't whole are left out."""
    found: dict[str, Usage] = {}
    for text in records:
        fields = message_fields(text)
        try:
            found.setdefault(group(fields), Usage()).add(fields)
        except (KeyError, ValueError):
            continue
    return {name: one for name, one in found.items() if one.machines}


def shares(found: Mapping[str, Usage]) -> dict[str, float]:
    """Return each one's share of the processors' time."""
    total = sum(one.processor_seconds for one in found.values())
    return {name: one.processor_seconds / total if total else 0.0 for name, one in found.items()}
