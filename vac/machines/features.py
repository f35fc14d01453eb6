"""Machine/Job Features of a logical machine (HSF-TN-2016-02, and the older keys that payloads still read)."""

from __future__ import annotations

from vac.config.settings import Settings

_MIB = 1024 * 1024


def decimal(value: float) -> str:
    """A number as plain decimal text, at most six digits after the point, at least one."""
    text = f"{value:.6f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def machinefeatures(settings: Settings, processors: int, shutdown_time: int) -> dict[str, str]:
    """The keys of $MACHINEFEATURES; shutdown_time in Unix seconds."""
    keys = dict(settings.machinefeatures_options)
    keys.update(
        total_cpu=str(processors),
        phys_cores=str(processors),
        log_cores=str(processors),
        jobslots="1",
        shutdowntime=str(shutdown_time),
        grace_secs=str(settings.grace_secs),
    )
    if settings.hs06_per_processor:
        keys["hs06"] = decimal(settings.hs06_per_processor * processors)
    if settings.hepscore23_per_processor:
        keys["hepscore23"] = decimal(settings.hepscore23_per_processor * processors)
    return keys


def jobfeatures(
    settings: Settings, processors: int, *, uuid: str, start_time: int, shutdown_time: int
) -> dict[str, str]:
    """The keys of $JOBFEATURES; times in Unix seconds."""
    wall_seconds = max(0, shutdown_time - start_time)
    memory_bytes = settings.mb_per_processor * processors * _MIB
    keys = {
        "job_id": uuid,
        "jobstart_secs": str(start_time),
        "shutdowntime_job": str(shutdown_time),
        "grace_secs_job": str(settings.grace_secs),
        "allocated_cpu": str(processors),
        "cpu_limit_secs": str(wall_seconds * processors),
        "wall_limit_secs": str(wall_seconds),
        "max_rss_bytes": str(memory_bytes),
        "allocated_CPU": str(processors),
        "cpufactor_lrms": "1.0",
        "cpu_limit_secs_lrms": str(wall_seconds * processors),
        "wall_limit_secs_lrms": str(wall_seconds),
        "mem_limit_MB": str(memory_bytes // 1_000_000),
    }
    if settings.hs06_per_processor:
        keys["hs06_job"] = decimal(settings.hs06_per_processor * processors)
    if settings.hepscore23_per_processor:
        keys["hepscore23_job"] = decimal(settings.hepscore23_per_processor * processors)
    return keys
