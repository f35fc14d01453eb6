"""Energy from the kernel's powercap zones, and its division among machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vac.host.energy import EnergyMeter

TICKS = os.sysconf("SC_CLK_TCK")


def zone(powercap: Path, name: str, kind: str, energy_uj: int, most_uj: int = 10**12) -> Path:
    directory = powercap / name
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in (("name", kind), ("energy_uj", energy_uj), ("max_energy_range_uj", most_uj)):
        (directory / file).write_text(f"{content}\n")
    return directory


def busy(stat: Path, seconds: int) -> None:
    stat.write_text(f"cpu  {seconds * TICKS} 0 0 99999 88888 0 0 0 777 0\ncpu0 1 2 3 4\n")


def test_packages_and_memory_count_once_and_counters_may_wrap(tmp_path: Path) -> None:
    stat, power = tmp_path / "stat", tmp_path / "powercap"
    zone(power, "intel-rapl:0", "package-0", 5_000_000)
    zone(power, "intel-rapl:0:0", "core", 3_000_000)
    zone(power, "intel-rapl:0:1", "dram", 1_000_000)
    zone(power, "intel-rapl-mmio:0", "package-0", 5_000_000)
    zone(power, "intel-rapl:1", "package-1", 9_000_000, most_uj=9_500_000)
    busy(stat, 100)
    meter = EnergyMeter(power, stat)
    assert meter.read() is None
    zone(power, "intel-rapl:0", "package-0", 8_000_000)
    zone(power, "intel-rapl:0:1", "dram", 1_500_000)
    zone(power, "intel-rapl:1", "package-1", 500_000, most_uj=9_500_000)
    busy(stat, 130)
    assert meter.read() == pytest.approx((3.0 + 0.5 + 1.0, 30.0))
    assert meter.read() == (0.0, 0.0)


@pytest.mark.parametrize("energy", [None, "", "secret"])
def test_where_the_kernel_tells_nothing_there_is_nothing(tmp_path: Path, energy: str | None) -> None:
    if energy is not None:
        (zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").write_text(energy)
    meter = EnergyMeter(tmp_path, tmp_path / "stat")
    assert (meter.read(), meter.read()) == (None, None)
