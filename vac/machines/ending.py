"""The options that a machine's watching and accounting need until it has ended, kept in its directory.

So a machinetype that has since been changed or removed, or a configuration that is broken at start, touches
neither. machinetype.json holds them; a machine made by a classic factory has no such file, and its Machine/Job
Features and the present configuration stand in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EndingOptions:
    """What is kept with each machine. The options of Machinetype declared with ending=True, by the same names."""

    machine_model: str
    fizzle_seconds: int
    max_wallclock_seconds: int
    accounting_fqan: str | None
    heartbeat_file: str | None
    heartbeat_seconds: int
    idle_cpu_percent: float | None
    idle_seconds: int
    disk_gb_per_processor: int | None
    mb_per_processor: int
    hs06_per_processor: float | None
    hepscore23_per_processor: float | None
    vac_space: str
    """Empty for a machine of a classic factory as long as there is no configuration."""
    factory_name: str
    gocdb_sitename: str | None
    machines_dir_days: float
