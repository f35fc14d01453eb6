"""Resources of vacd while 256 bubblewrap machines run: memory of all processes, threads, open files, CPU of a cycle.

`python -m bench resources`; VAC_BENCH_MINUTES says for how long, by default ten.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, command_lines, factory_site

MACHINES = 256
FILL_SECONDS = 1800.0
SETTLE_SECONDS = 90.0
"""After the last creation, until a cycle is like any other."""


class Sample(NamedTuple):
    """Resources of some processes at one moment."""

    processes: int
    pss_mb: float
    threads: int
    files: int
    cpu_seconds: float


def sample(pids: list[int]) -> Sample:
    """Add up what these processes have; one that has just ended counts for nothing."""
    pss_kb = threads = files = ticks = 0
    for pid in pids:
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            rollup = (process / "smaps_rollup").read_text()
            pss_kb += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            threads += len(list((process / "task").iterdir()))
            files += len(list((process / "fd").iterdir()))
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return Sample(len(pids), pss_kb / 1024, threads, files, ticks / os.sysconf("SC_CLK_TCK"))


def vacd_processes(site: FactorySite) -> dict[int, str]:
    """Return the processes of this vacd with their titles: the supervisor and its children."""
    assert site.process is not None
    own, found = site.process.pid, {}
    for pid, words in command_lines().items():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if pid == own or parent == own:
                found[pid] = words.split(b"\0")[0].decode()
    return found


def machine_processes(site: FactorySite) -> list[int]:
    """Return the processes in the machines' cgroups: bwrap and what it runs."""
    found = set()
    for parent, _, _ in os.walk("/sys/fs/cgroup"):
        if f"/{site.name}" in parent:
            with contextlib.suppress(OSError):
                found |= {int(word) for word in Path(parent, "cgroup.procs").read_text().split()}
    return sorted(found)


def run() -> None:
    """Print the figures."""
    minutes = float(os.environ.get("VAC_BENCH_MINUTES", "10"))
    with socket.socket() as page, socket.socket(type=socket.SOCK_DGRAM) as responder:
        page.bind(("127.0.0.1", 0))
        responder.bind(("127.0.0.1", 0))
        ports = {
            "metrics_listen": f"127.0.0.1:{page.getsockname()[1]}",
            "vacquery_port": responder.getsockname()[1],
        }
    kinds = {"idle": Kind("exec sleep 100000")}
    with factory_site(kinds, processors=MACHINES, start=False, machines_per_cycle=AT_ONCE, **ports) as site:
        site.words = ()
        site.start()
        seconds = site.wait_for(lambda: site.occupied() == MACHINES, f"{MACHINES} machines run", FILL_SECONDS)
        print(f"{MACHINES} bubblewrap machines after {seconds:.0f} s", flush=True)
        time.sleep(SETTLE_SECONDS)
        titles = vacd_processes(site)
        before = {pid: sample([pid]) for pid in titles}
        time.sleep(60 * minutes)
        for pid, title in titles.items():
            first, last = before[pid], sample([pid])
            cpu = (last.cpu_seconds - first.cpu_seconds) / minutes
            print(
                f"{title:15} {first.pss_mb:5.1f} to {last.pss_mb:5.1f} MB PSS, {first.threads} to {last.threads} "
                f"threads, {first.files} to {last.files} open files, {cpu:.2f} s CPU a minute",
                flush=True,
            )
        everything, machines = sample(list(titles)), sample(machine_processes(site))
        print(f"vacd in all: {everything.pss_mb:.1f} MB PSS; in {minutes:g} minutes", flush=True)
        print(f"machines' processes: {machines.processes}, {machines.pss_mb:.1f} MB PSS", flush=True)
