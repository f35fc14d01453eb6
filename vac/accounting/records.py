"""APEL job records: text, file names, and delivery to apel-archive and apel-outgoing.

Format: APEL individual job message v0.3 or, with `apel_record_version`, v0.4. Names: the queue library of the standard
sender, ssmsend, takes files of exactly 14 lower-case hex digits in directories of 8; nothing else may be there.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from pathlib import Path

from vac.machines import files
from vac.machines.creation import decimal
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time

log = logging.getLogger(__name__)

JOB_HEADER = "APEL-individual-job-message: v"
HS06, HEPSCORE23 = "HEPSPEC", "HEPscore23"
"""Benchmarks as records name them."""
_LONGEST_QUEUE = 100
_KIB = 1024
_MOST_KIB = 2**31 - 1
"""The receiver's columns are INT; a larger number makes it refuse the whole message."""
_ATTEMPTS = 5
FILE_NAME = re.compile(r"[0-9a-f]{14}")
DAY_NAME = re.compile(r"[0-9]{8}")


def job_record(machine: Machine) -> str:
    """Return the record of a machine that started and has ended, from its stored files alone."""
    assert machine.started_time is not None
    settings = machine.settings
    start, end = int(machine.started_time), int(end_time(machine))
    allocated_kib = settings.mb_per_processor * machine.processors * _KIB
    peak_bytes = machine.peak_memory_bytes
    real_kib = peak_bytes // _KIB if peak_bytes else allocated_kib
    known = ((HEPSCORE23, settings.hepscore23_per_processor), (HS06, settings.hs06_per_processor))
    levels = [(name, decimal(level)) for name, level in known if level] or [(HS06, decimal(1.0))]
    if settings.apel_record_version == "0.3":  # which takes one benchmark
        level_lines = [f"ServiceLevelType: {levels[0][0]}", f"ServiceLevel: {levels[0][1]}"]
    else:
        level_lines = ["ServiceLevel: {" + ", ".join(f"{name}: {level}" for name, level in levels) + "}"]
    lines = [
        f"{JOB_HEADER}{settings.apel_record_version}",
        f"Site: {settings.site}",
        f"SubmitHost: {settings.vac_space}/vac-{settings.factory_name}",
        f"LocalJobId: {identity(machine)}",
        f"LocalUserId: {settings.factory_name}",
        f"Queue: {machine.machinetype[:_LONGEST_QUEUE]}",
        "GlobalUserName: " + "".join(f"/DC={part}" for part in reversed(settings.vac_space.split("."))),
        *([f"FQAN: {machine.fqan}"] if machine.fqan else []),
        f"WallDuration: {end - start}",
        f"CpuDuration: {int(machine.cpu_seconds)}",
        f"Processors: {machine.processors}",
        "NodeCount: 1",
        "InfrastructureDescription: APEL-VAC",
        "InfrastructureType: grid",
        f"StartTime: {start}",
        f"EndTime: {end}",
        f"MemoryReal: {min(real_kib, _MOST_KIB)}",
        f"MemoryVirtual: {min(max(allocated_kib, real_kib), _MOST_KIB)}",
        *level_lines,
        "%%",
    ]
    return message_text(lines)


def identity(machine: Machine) -> str:
    """Return its LocalJobId."""
    return machine.uuid or machine.directory.name


def message_text(lines: list[str]) -> str:
    """Return lines as one message, `?` for all but printable ASCII: one such byte would block the queue."""
    clean = ("".join(letter if " " <= letter <= "~" else "?" for letter in line) for line in lines)
    return "".join(f"{line}\n" for line in clean)


def message_fields(text: str) -> dict[str, str]:
    """Return the `key: value` lines of a message, without others."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def day_name(moment: float) -> str:
    """Return YYYYMMDD of a time in Unix seconds, in UTC."""
    return time.strftime("%Y%m%d", time.gmtime(moment))


def file_name(moment: float, identity: str) -> str:
    """Return HHMMSS of a time in Unix seconds, in UTC, and 8 hex digits of a hash of the identity."""
    return (
        time.strftime("%H%M%S", time.gmtime(moment))
        + hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:8]
    )


def archive(state: StateDir, machine: Machine) -> Path:
    """Store the machine's record durably in the archive, unless it is there already."""
    end = int(end_time(machine))
    path = state.apel_archive / day_name(end) / file_name(end, identity(machine))
    if not path.exists():
        _put(state, path, job_record(machine), owner=None)
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
