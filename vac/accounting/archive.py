"""Sync records, by which APEL's receiver checks completeness, republication of job records, and sums for people.

They count by EndTime in UTC over the whole archive, as the receiver does: a classic factory's archive has records in
directories of the day on which they were written. And messages of many records, made of those that wait to be sent.
"""

from __future__ import annotations

import calendar
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vac.accounting import records
from vac.accounting.records import HEPSCORE23, HS06
from vac.machines.layout import StateDir

SYNC_HEADER = "APEL-sync-message: v0.1"
_DAY_SECONDS = 86400
MOST_RECORDS, MOST_BYTES = 1000, 1_000_000
"""Of a message that the receiver takes."""
_SEPARATOR = "%%\n"


HOUR = 3600.0
_LEVEL = re.compile(r"(\w+):\s*([0-9.]+)")


class Archived(NamedTuple):
    """A job record in the archive."""

    path: Path
    text: str
    fields: Mapping[str, str]
    end_time: int


def month_bounds(month: str) -> tuple[int, int]:
    """Return the first second of a month YYYYMM and of the next one, in UTC. Raises ValueError."""
    digits = month if len(month) == 6 and month.isascii() and month.isdigit() else "000000"
    year, number = int(digits[:4]), int(digits[4:])
    if not 1 <= number <= 12 or year < 1970:
        raise ValueError(f"{month!r} is not a month YYYYMM, such as 202611")
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return calendar.timegm((year, number, 1, 0, 0, 0)), calendar.timegm((*following, 1, 0, 0, 0))


def default_month(now: float) -> str:
    """Return the month of 24 hours ago, YYYYMM in UTC."""
    return time.strftime("%Y%m", time.gmtime(now - _DAY_SECONDS))


def archived(state: StateDir, first: float, following: float) -> Iterator[Archived]:
    """Yield the archive's job records with EndTime from the first of these moments until before the second."""
    earliest_day = records.day_name(first - _DAY_SECONDS)
    for directory in sorted(state.apel_archive.iterdir()) if state.apel_archive.is_dir() else ():
        if not records.DAY_NAME.fullmatch(directory.name) or directory.name < earliest_day:
            continue
        for path in sorted(directory.iterdir()):
            found = _read(path)
            if found is not None and first <= found.end_time < following:
                yield found


def _read(path: Path) -> Archived | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="ascii", errors="replace")
    fields = records.message_fields(text)
    end_time = fields.get("EndTime", "")
    if not end_time.isdigit() or not fields.keys() >= {"Site", "SubmitHost", "LocalJobId"}:
        return None
    return Archived(path, text, fields, int(end_time))


def sync(state: StateDir, months: Sequence[str], now: float) -> list[str]:
    """Write sync records of these months (YYYYMM; default: the month of 24 hours ago) to apel-outgoing.

    Return a line for each record or empty month. Raises ValueError for a malformed month, and OSError.
    """
    done = []
    for month in months or [default_month(now)]:
        jobs: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for found in archived(state, *month_bounds(month)):
            sender = found.fields["Site"], found.fields["SubmitHost"]
            jobs.setdefault(sender, set()).add((found.fields["LocalJobId"], found.end_time))
        if not jobs:
            done.append(f"{month}: no records in {state.apel_archive}, nothing to send")
        for (site, submit_host), distinct in sorted(jobs.items()):
            name = records.file_name(now, f"sync {month} {site} {submit_host}")
            lines = [
                SYNC_HEADER,
                f"Site: {site}",
                f"SubmitHost: {submit_host}",
                f"NumberOfJobs: {len(distinct)}",
                f"Month: {int(month[4:])}",
                f"Year: {int(month[:4])}",
                "%%",
            ]
            path = records.send(state, records.day_name(now), name, records.message_text(lines))
            done.append(f"{month}: {len(distinct)} jobs of {site} {submit_host} in {path}")
    return done


def republish(state: StateDir, months: Sequence[str], site: str | None = None) -> list[Path]:
    """Copy the archive's records of these months (YYYYMM) to apel-outgoing, with another Site if given.

    Raises ValueError for a malformed month, and OSError.
    """
    sent = []
    for month in months:
        for found in archived(state, *month_bounds(month)):
            name = found.path.name
            if not records.FILE_NAME.fullmatch(name):
                name = records.file_name(found.end_time, found.fields["LocalJobId"])
            lines = found.text.splitlines()
            if site:
                lines = [f"Site: {site}" if line.startswith("Site:") else line for line in lines]
            text = records.message_text(lines)
            sent.append(records.send(state, records.day_name(found.end_time), name, text))
    return sent


def bundle(state: StateDir, now: float) -> list[Path]:
    """Put the job records that wait to be sent together into messages of many; return the new files.

    The sender must not run meanwhile. A crash leaves records twice, which the receiver counts once. Raises OSError.
    """
    made: list[Path] = []
    waiting: dict[str, dict[Path, str]] = {}
    for path in sorted(state.apel_outgoing.glob("*/*")) if state.apel_outgoing.is_dir() else ():
        if records.FILE_NAME.fullmatch(path.name) and path.is_file():
            header, _, rest = path.read_text(encoding="ascii", errors="replace").partition("\n")
            if header.startswith(records.JOB_HEADER) and rest.endswith(_SEPARATOR):
                waiting.setdefault(header, {})[path] = rest
    for header, texts in waiting.items():
        for part in _parts(texts):
            if len(part) > 1:
                name = records.file_name(now, " ".join(map(str, part)))
                text = f"{header}\n" + "".join(texts[path] for path in part)
                made.append(records.send(state, records.day_name(now), name, text))
                for path in part:
                    path.unlink()
    return made


def _parts(texts: Mapping[Path, str]) -> Iterator[list[Path]]:
    """Yield files that fit one message together."""
    part: list[Path] = []
    count = size = 0
    for path, text in texts.items():
        found = text.count(_SEPARATOR)
        if part and (count + found > MOST_RECORDS or size + len(text) > MOST_BYTES):
            yield part
            part, count, size = [], 0, 0
        part.append(path)
        count, size = count + found, size + len(text)
    if part:
        yield part


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

    def as_dict(self, all_processor_seconds: int) -> dict[str, object]:
        """Return what people are shown; its share is of the processors' time."""
        efficiency = self.cpu_seconds / self.processor_seconds if self.processor_seconds else None
        return {
            "machines": self.machines,
            "wall_hours": self.wall_seconds / HOUR,
            "processor_hours": self.processor_seconds / HOUR,
            "cpu_hours": self.cpu_seconds / HOUR,
            "efficiency": efficiency,
            "hs06_hours": self.work[HS06] / HOUR if HS06 in self.work else None,
            "hepscore23_hours": self.work[HEPSCORE23] / HOUR if HEPSCORE23 in self.work else None,
            "share": self.processor_seconds / all_processor_seconds if all_processor_seconds else 0.0,
        }


def service_levels(fields: Mapping[str, str]) -> dict[str, float]:
    """Return a record's benchmarks of one processor by their names. Raises KeyError or ValueError."""
    kind = fields.get("ServiceLevelType")
    if kind is not None:
        return {kind: float(fields["ServiceLevel"])}
    return {name: float(level) for name, level in _LEVEL.findall(fields["ServiceLevel"])}


def usage(found: Iterable[Archived], group: Callable[[Mapping[str, str]], str]) -> dict[str, Usage]:
    """Return sums of these records by the group of each. Records that aren't whole are left out."""
    sums: dict[str, Usage] = {}
    for one in found:
        with contextlib.suppress(KeyError, ValueError):
            sums.setdefault(group(one.fields), Usage()).add(one.fields)
    return {name: one for name, one in sums.items() if one.machines}
