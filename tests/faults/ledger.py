"""A ledger outside state_dir that machines report to by UDP, and a judge that holds a factory's records against it.

Nothing of Vac's own code takes part: what was recorded is read as the text that the accounting server gets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPORT = """\
[ -n "$BASH_VERSION" ] || [ ! -x /bin/bash ] || exec /bin/bash "$0"
read -r uuid < "$JOBFEATURES/job_id"
tell() {{
    if [ -n "$BASH_VERSION" ]; then echo "$*" > /dev/udp/127.0.0.1/{port}
    else echo "$*" | busybox nc -w 5 {address} {port}; fi
}}
report() {{
    read -r stat < /proc/$$/stat
    event=$1
    set -- $stat
    tell $event$mute $uuid $(( ${{14}} + ${{15}} + ${{16}} + ${{17}} ))
    [ "$event$mute" != TICK ] || : > "$JOBOUTPUTS/heartbeat"
}}
live() {{  # a machine's work, for so many tenths of a second or a few more
    report START
    tenth=0
    while [ $tenth -lt $1 ]; do
        tenth=$(( tenth + 5 )) i=0
        while [ $i -lt 2500 ]; do i=$(( i + 1 )); done
        sleep 0.5
        [ $(( tenth % 10 )) != 0 ] || report TICK
    done
}}
"""
"""A shell script for user_data, to report what happens and the CPU clock ticks so far; by TCP where there is no Bash.

Each tick renews the heartbeat file, too, unless the machine is mute.
"""

REPORT_SECONDS = 1.5
"""Interval between a machine's reports, on a host that isn't slow."""
TICKS_PER_SECOND = 100


@dataclass
class Life:
    """Reports of one machine: moments of the monotonic clock, CPU seconds."""

    began: float
    last: float
    ended: bool = False
    cpu_seconds: float = 0.0
    mute: bool = False
    """It leaves no sign of life in its directory."""
    unlooked_seconds: float = 0.0
    """Longest time between vacd's last look at it and vacd's end."""
    gap_seconds: float = 0.0
    """The longest between two reports."""

    @property
    def seconds(self) -> float:
        """Known lifetime."""
        return self.last - self.began

    @property
    def late_seconds(self) -> float:
        """Greatest delay of its reports, which shows how slow the host was to it."""
        return max(0.0, self.gap_seconds - REPORT_SECONDS)


class Ledger:
    """Receives reports on a port of the loopback interface, and at servers' sockets, until it is closed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.lives: dict[str, Life] = {}
        self._open: list[tuple[socket.socket, threading.Thread]] = []
        self._receive_from(self._socket, self._receive)

    def script(self, address: str = "127.0.0.1", port: int | None = None) -> str:
        """Functions for user_data that report to this ledger; address and port of a server it listens to."""
        return REPORT.format(address=address, port=port or self.port)

    def listen(self, server: socket.socket) -> None:
        """Take reports from another socket, too."""
        self._receive_from(server, self._receive if server.type == socket.SOCK_DGRAM else self._accept)

    def close(self) -> None:
        """Receive no more."""
        for each, thread in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            thread.join()
            each.close()

    def note(self, event: str, uuid: str, cpu_seconds: float = 0.0) -> None:
        """Note a machine's report, or that it has been seen."""
        now = time.monotonic()
        life = self.lives.setdefault(uuid, Life(began=now, last=now))
        life.gap_seconds = max(life.gap_seconds, now - life.last)
        life.last = now
        life.cpu_seconds = max(life.cpu_seconds, cpu_seconds)
        life.ended |= event.startswith("END")
        life.mute |= event.endswith("MUTE")

    def _receive_from(self, opened: socket.socket, receive: Callable[[socket.socket], str]) -> None:
        thread = threading.Thread(target=self._keep, args=(opened, receive), name="ledger", daemon=True)
        thread.start()
        self._open.append((opened, thread))

    def alive(self, within: float = 3.0) -> list[str]:
        """Machines that have reported within so many seconds, and not their end."""
        now = time.monotonic()
        lives = list(self.lives.items())
        return [uuid for uuid, life in lives if not life.ended and now - life.last < within]

    def _keep(self, opened: socket.socket, receive: Callable[[socket.socket], str]) -> None:
        while True:
            try:
                words = receive(opened).split()
            except OSError:
                return
            if len(words) == 3:
                self.note(words[0], words[1], int(words[2]) / TICKS_PER_SECOND)
            elif opened.type == socket.SOCK_DGRAM:
                return

    def _receive(self, opened: socket.socket) -> str:
        return opened.recv(1024).decode("ascii", "replace")

    def _accept(self, opened: socket.socket) -> str:
        connection, _ = opened.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5.0)
            return self._receive(connection)
        return ""

    def lateness(self) -> float:
        """Return how late the latest report of all came."""
        return max((life.late_seconds for life in self.lives.values()), default=0.0)


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
    away: Sequence[tuple[float, float]] = (),
) -> list[str]:
    """Return a sentence for each difference between what machines reported and what was recorded.

    A machine that lived at least fizzle_seconds has one record, of the time that it lived, with at least the CPU time
    that it reported. One that lived less has none; within the tolerance either is right. A mute one that ended while
    vacd was away may have less, by the time that nobody could know of. What was late itself is judged less strictly.
    """
    by_uuid = {record.uuid: record for record in records}
    counts = Counter(record.uuid for record in records)
    faults = [f"{uuid}: {count} records" for uuid, count in counts.items() if count > 1]
    for uuid, record in by_uuid.items():
        life = lives.get(uuid)
        if life is None:
            faults.append(f"{uuid}: a record of {record.wall_seconds} s, but it never began")
            continue
        tolerance = tolerance_seconds + life.late_seconds
        if life.seconds < fizzle_seconds - tolerance:
            faults.append(f"{uuid}: a record, though it lived only {life.seconds:.1f} s")
        known = life.seconds - _unknown_seconds(life, away)
        if not known - tolerance <= record.wall_seconds <= life.seconds + tolerance:
            faults.append(f"{uuid}: lived {life.seconds:.1f} s, its record says {record.wall_seconds} s")
        if record.cpu_seconds < int(life.cpu_seconds) and known >= life.seconds:
            faults.append(
                f"{uuid}: used {life.cpu_seconds:.1f} s of CPU, its record says {record.cpu_seconds} s"
            )
        if record.end_time - record.start_time != record.wall_seconds:
            faults.append(f"{uuid}: its record's times are not its duration apart")
    for uuid, life in lives.items():
        known = life.seconds - _unknown_seconds(life, away)
        if uuid not in by_uuid and known > fizzle_seconds + tolerance_seconds + life.late_seconds:
            faults.append(f"{uuid}: lived {life.seconds:.1f} s, no record")
    return faults


def _unknown_seconds(life: Life, away: Sequence[tuple[float, float]]) -> float:
    """Return how much of its life passed, until its end, while nobody could see a mute machine."""
    if not life.mute:
        return 0.0
    return max(
        (
            life.last - max(begin - life.unlooked_seconds, life.began)
            for begin, end in away
            if begin < life.last < end
        ),
        default=0.0,
    )
