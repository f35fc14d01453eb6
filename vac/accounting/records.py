"""APEL job records: text, file names, and delivery to apel-archive and apel-outgoing.

Format: APEL individual job message v0.3 or, with `apel_record_version`, v0.4. Names: the queue library of the standard
sender, ssmsend, takes files of exactly 14 lower-case hex digits in directories of 8; nothing else may be there.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

from vac.machines import files
from vac.machines.creation import decimal
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time

log = logging.getLogger(__name__)

JOB_HEADER = "APEL-individual-job-message: v"
HS06, HEPSCORE23 = "HEPSPEC", "HEPscore23"
"""Benchmarks as records name them."""
_END = "%%"
_LONGEST_QUEUE = 100
_KIB = 1024
_MOST_KIB = 2**31 - 1
"""The receiver's columns are INT; a larger number makes it refuse the whole message."""
_ATTEMPTS = 5
FILE_NAME = re.compile(r"[0-9a-f]{14}")
DAY_NAME = re.compile(r"[0-9]{8}")


@dataclass(frozen=True)
class JobRecord:
    """Work of one machine. Durations in seconds, times in Unix seconds, memory in KiB."""

    site: str
    submit_host: str
    local_job_id: str
    local_user_id: str
    queue: str
    global_user_name: str
    fqan: str | None
    wall_duration: int
    cpu_duration: int
    processors: int
    start_time: int
    end_time: int
    memory_real: int
    memory_virtual: int
    service_levels: tuple[tuple[str, str], ...]
    """Benchmarks of one processor: names and numbers."""
    version: str = "0.3"
    """0.3 takes one benchmark, the first."""


def job_record(machine: Machine) -> JobRecord:
    """Return the record of a machine that started and has ended, from its stored files alone."""
    assert machine.started_time is not None
    options = machine.options
    start, end = int(machine.started_time), int(end_time(machine))
    allocated_kib = options.mb_per_processor * machine.processors * _KIB
    peak_bytes = machine.peak_memory_bytes
    real_kib = peak_bytes // _KIB if peak_bytes else allocated_kib
    levels = {HEPSCORE23: options.hepscore23_per_processor, HS06: options.hs06_per_processor}
    known = tuple((name, decimal(level)) for name, level in levels.items() if level)
    return JobRecord(
        site=options.site,
        submit_host=f"{options.vac_space}/vac-{options.factory_name}",
        local_job_id=machine.uuid or machine.directory.name,
        local_user_id=options.factory_name,
        queue=machine.machinetype[:_LONGEST_QUEUE],
        global_user_name="".join(f"/DC={part}" for part in reversed(options.vac_space.split("."))),
        fqan=machine.fqan,
        wall_duration=end - start,
        cpu_duration=int(machine.cpu_seconds),
        processors=machine.processors,
        start_time=start,
        end_time=end,
        memory_real=min(real_kib, _MOST_KIB),
        memory_virtual=min(max(allocated_kib, real_kib), _MOST_KIB),
        service_levels=known or ((HS06, decimal(1.0)),),
        version=options.apel_record_version,
    )


def job_text(record: JobRecord) -> str:
    """Return the record as ASCII lines `key: value`, ended by %%."""
    levels = ", ".join(f"{name}: {level}" for name, level in record.service_levels)
    first = record.service_levels[0]
    if record.version == "0.3":
        level_lines = [f"ServiceLevelType: {first[0]}", f"ServiceLevel: {first[1]}"]
    else:
        level_lines = [f"ServiceLevel: {{{levels}}}"]
    lines = [
        f"{JOB_HEADER}{record.version}",
        f"Site: {record.site}",
        f"SubmitHost: {record.submit_host}",
        f"LocalJobId: {record.local_job_id}",
        f"LocalUserId: {record.local_user_id}",
        f"Queue: {record.queue}",
        f"GlobalUserName: {record.global_user_name}",
        *([f"FQAN: {record.fqan}"] if record.fqan else []),
        f"WallDuration: {record.wall_duration}",
        f"CpuDuration: {record.cpu_duration}",
        f"Processors: {record.processors}",
        "NodeCount: 1",
        "InfrastructureDescription: APEL-VAC",
        "InfrastructureType: grid",
        f"StartTime: {record.start_time}",
        f"EndTime: {record.end_time}",
        f"MemoryReal: {record.memory_real}",
        f"MemoryVirtual: {record.memory_virtual}",
        *level_lines,
        _END,
    ]
    return message_text(lines)


def message_text(lines: list[str]) -> str:
    """Return lines as one message, `?` for all but printable ASCII: one such byte would block the queue."""
    clean = ("".join(letter if " " <= letter <= "~" else "?" for letter in line) for line in lines)
    return "".join(f"{line}\n" for line in clean)


def message_fields(text: str) -> dict[str, str]:
    """Return the `key: value` lines of a message, without others."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def with_site(text: str, site: str) -> str:
    """Return the message with another Site."""
    lines = [f"Site: {site}" if line.startswith("Site:") else line for line in text.splitlines()]
    return message_text(lines)


def day_name(moment: float) -> str:
    """Return YYYYMMDD of a time in Unix seconds, in UTC."""
    return time.strftime("%Y%m%d", time.gmtime(moment))


def file_name(moment: float, identity: str) -> str:
    """Return HHMMSS of a time in Unix seconds, in UTC, and 8 hex digits of a hash of the identity."""
    return (
        time.strftime("%H%M%S", time.gmtime(moment))
        + hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:8]
    )


def archive(state: StateDir, record: JobRecord) -> Path:
    """Store the record durably in the archive, unless it is there already."""
    path = state.apel_archive / day_name(record.end_time) / file_name(record.end_time, record.local_job_id)
    if not path.exists():
        _put(state, path, job_text(record), owner=None)
    return path


def send(state: StateDir, day: str, name: str, text: str) -> Path:
    """Store a message in apel-outgoing, with the directory's owner, so that the sender can remove it."""
    files.make_directory(state.apel_outgoing, exist_ok=True)
    found = state.apel_outgoing.stat()
    path = state.apel_outgoing / day / name
    _put(state, path, text, owner=(found.st_uid, found.st_gid))
    return path


def _put(state: StateDir, path: Path, text: str, owner: files.Owner | None) -> None:
    """Write outside the queue and rename; recreate a day's directory that the sender removes meanwhile."""
    attempts_left = _ATTEMPTS
    while True:
        files.make_directory(path.parent.parent, exist_ok=True)
        files.make_directory(path.parent, owner=owner, exist_ok=True)
        files.sync_directory(path.parent.parent)
        try:
            files.write_atomic(path, text.encode("ascii"), tmp=state.tmp, owner=owner)
            return
        except FileNotFoundError:
            attempts_left -= 1
            if not attempts_left:
                raise
            log.info("%s has vanished: creating it again", path.parent)
