"""A ledger outside state_dir that machines report to by UDP, and a judge that holds a factory's records against it.

Nothing of Vac's own code takes part: what was recorded is read as the text that the accounting server gets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPORT = """\
[ -n "$BASH_VERSION" ] || exec bash "$0"
port={port}
read -r uuid < "$JOBFEATURES/job_id"
report() {{
    read -r -a stat < /proc/$$/stat
    echo "$1 $uuid $(( stat[13] + stat[14] + stat[15] + stat[16] ))" > /dev/udp/127.0.0.1/$port
    [ "$1" = END ] || : > "$JOBOUTPUTS/heartbeat"
}}
live() {{  # a machine's work, for so many tenths of a second
    report START
    for (( tenth = 1; tenth <= $1; tenth++ )); do
        for (( i = 0; i < 500; i++ )); do :; done
        sleep 0.1
        (( tenth % 10 )) || report TICK
    done
}}
"""
"""Bash for user_data: report what happens and the CPU clock ticks so far. Each tick renews the heartbeat file, too."""

TICKS_PER_SECOND = 100


@dataclass
class Life:
    """What one machine has reported: moments of the monotonic clock, CPU seconds."""

    began: float
    last: float
    ended: bool = False
    cpu_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it is known to have lived."""
        return self.last - self.began


class Ledger:
    """Receives reports on a port of the loopback interface until it is closed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.lives: dict[str, Life] = {}
        self._thread = threading.Thread(target=self._receive, name="ledger", daemon=True)
        self._thread.start()

    @property
    def script(self) -> str:
        """Functions for user_data that report to this ledger."""
        return REPORT.format(port=self.port)

    def close(self) -> None:
        """Receive no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def alive(self, within: float = 3.0) -> list[str]:
        """Machines that have reported within so many seconds, and not their end."""
        now = time.monotonic()
        lives = list(self.lives.items())
        return [uuid for uuid, life in lives if not life.ended and now - life.last < within]

    def _receive(self) -> None:
        while True:
            try:
                words = self._socket.recv(1024).decode("ascii", "replace").split()
            except OSError:
                return
            if len(words) != 3:
                return
            self._note(words[0], words[1], int(words[2]) / TICKS_PER_SECOND, time.monotonic())

    def _note(self, event: str, uuid: str, cpu_seconds: float, now: float) -> None:
        life = self.lives.setdefault(uuid, Life(began=now, last=now))
        life.last = now
        life.cpu_seconds = max(life.cpu_seconds, cpu_seconds)
        life.ended |= event == "END"


@dataclass(frozen=True)
class Record:
    """The fields of an accounting record that the judge looks at; seconds and KiB."""

    uuid: str
    start_time: int
    end_time: int
    wall_seconds: int
    cpu_seconds: int
    memory_kib: int


def read_records(archive: Path) -> Iterator[Record]:
    """Read all records below a directory; one that can't be read is a fault of its own."""
    for path in sorted(archive.glob("*/*")):
        fields = dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
        yield Record(
            uuid=fields["LocalJobId"],
            start_time=int(fields["StartTime"]),
            end_time=int(fields["EndTime"]),
            wall_seconds=int(fields["WallDuration"]),
            cpu_seconds=int(fields["CpuDuration"]),
            memory_kib=int(fields["MemoryReal"]),
        )


def judge(
    lives: Mapping[str, Life],
    records: Iterable[Record],
    *,
    fizzle_seconds: float,
    tolerance_seconds: float = 3.0,
) -> list[str]:
    """Return a sentence for each difference between what machines reported and what was recorded.

    A machine that lived at least fizzle_seconds has one record, of the time that it lived, with at least the CPU time
    that it reported. One that lived less has none; within the tolerance either is right.
    """
    by_uuid = {record.uuid: record for record in records}
    counts = Counter(record.uuid for record in records)
    faults = [f"{uuid}: {count} records" for uuid, count in counts.items() if count > 1]
    for uuid, record in by_uuid.items():
        life = lives.get(uuid)
        if life is None:
            faults.append(f"{uuid}: a record of {record.wall_seconds} s, but it never began")
            continue
        if life.seconds < fizzle_seconds - tolerance_seconds:
            faults.append(f"{uuid}: a record, though it lived only {life.seconds:.1f} s")
        if abs(record.wall_seconds - life.seconds) > tolerance_seconds:
            faults.append(f"{uuid}: lived {life.seconds:.1f} s, its record says {record.wall_seconds} s")
        if record.cpu_seconds < int(life.cpu_seconds):
            faults.append(
                f"{uuid}: used {life.cpu_seconds:.1f} s of CPU, its record says {record.cpu_seconds} s"
            )
        if record.end_time - record.start_time != record.wall_seconds:
            faults.append(f"{uuid}: its record's times are not its duration apart")
    for uuid, life in lives.items():
        if uuid not in by_uuid and life.seconds > fizzle_seconds + tolerance_seconds:
            faults.append(f"{uuid}: lived {life.seconds:.1f} s, no record")
    return faults
