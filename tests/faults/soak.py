"""A real factory under random faults, judged by a ledger that its machines report to.

`python -m tests.faults.soak --minutes 6 --seed 1`, as root. The seed decides which faults come when. Exits with 1 if
the ledger and the accounting records disagree, or anything is left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from tests.engines.factory_fixture import (
    AT_ONCE,
    FactorySite,
    Kind,
    command_lines,
    factory_site,
    processes_of,
)
from tests.faults.ledger import Ledger, judge, read_records

SKEWED_CLOCK = Path(__file__).with_name("skewed_clock")
FIZZLE_SECONDS = 3
PROCESSORS = 6
STATE_MB = 1300  # nothing is created with less than 1 GB free
STEPS = (-40.0, 40.0, -3600.0, 3600.0, 200 * 86400.0, -10 * 365 * 86400.0, 10 * 365 * 86400.0)
PATIENCE_SECONDS = 120.0
SLOW_BWRAP = """\
#!/bin/bash
sleep 0.$(( RANDOM % 4 ))
exec {bwrap} "$@"
"""

SCRIPTS = {
    "brief": "live $(( 10 + RANDOM % 40 ))\nreport END\necho '200 done' > $JOBOUTPUTS/shutdown_message",
    "usual": "live $(( 50 + RANDOM % 250 ))\nreport END\necho '200 done' > $JOBOUTPUTS/shutdown_message",
    "silent": "live $(( 50 + RANDOM % 150 ))\nreport END",
    "crashing": "live $(( 40 + RANDOM % 60 ))\nreport END\nkill -9 $$",
    "lasting": "live $(( 300 + RANDOM % 2700 ))\nreport END\necho '200 done' > $JOBOUTPUTS/shutdown_message",
    "endless": "live 1000000",
}
OPTIONS = {"endless": {"max_wallclock_seconds": 25}}


def kinds(ledger: Ledger, share: Callable[[], int]) -> dict[str, Kind]:
    """Return the machinetypes: how long their machines live, and how they end."""
    usual = {"fizzle_seconds": FIZZLE_SECONDS, "backoff_seconds": 2, "min_wallclock_seconds": 1}
    return {
        name: Kind(f"{ledger.script}{script}", {**usual, "target_share": share(), **OPTIONS.get(name, {})})
        for name, script in SCRIPTS.items()
    }


@dataclass
class Soak:
    """One factory, its ledger and the faults that come over it."""

    site: FactorySite
    ledger: Ledger
    rng: random.Random
    clock: Path
    done: list[str] = field(default_factory=list)
    """The faults so far, in words."""

    def start(self) -> None:
        """Start vacd with all its processes."""
        search = os.pathsep.join([str(SKEWED_CLOCK), self.site.environment["PYTHONPATH"]])
        path = os.pathsep.join([str(self.site.home / "bin"), os.environ["PATH"]])
        self.site.start(PYTHONPATH=search, PATH=path, VAC_TEST_CLOCK=str(self.clock))

    def run(self, seconds: float) -> None:
        """Let machines come and go and faults happen, for so long; then mend all and drain."""
        self.step_clock(0.0)
        self.start()
        self.site.wait_for(lambda: self.ledger.lives, "the first machine reports")
        faults = [
            *(
                self.kill_factory,
                self.kill_responder,
                self.kill_all,
                self.restart,
                self.kill_all,
                self.restart,
            ),
            *(self.set_clock, self.set_clock, self.read_only, self.full, self.edit, self.break_configuration),
            self.lose_outgoing,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.rng.uniform(1.0, 8.0))
            fault = self.rng.choice(faults)
            fault()
        self.finish()

    def note(self, text: str) -> None:
        """Remember what was done, and show it."""
        self.done.append(text)
        print(f"{time.strftime('%H:%M:%S')} {text}; {len(self.ledger.lives)} machines so far", flush=True)

    def step_clock(self, offset: float) -> None:
        """Have vacd's wall clock be off by so many seconds."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", offset))

    def pids(self, title: str) -> list[int]:
        """Processes of this vacd by their title."""
        found = []
        for pid, words in command_lines().items():
            with contextlib.suppress(OSError):
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                if words.startswith(title.encode()) and str(self.clock).encode() in environ:
                    found.append(pid)
        return found

    def kill_factory(self) -> None:
        """Kill the process that makes machines; the supervisor starts it again."""
        self._kill("vacd-factory")

    def kill_responder(self) -> None:
        """Kill the process that answers peers."""
        self._kill("vacd-responder")

    def _kill(self, title: str) -> None:
        for pid in self.pids(title):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.note(f"killed {title}")

    def kill_all(self) -> None:
        """Kill all of vacd at once, as the kernel does when memory is short, and start it after a while."""
        pause = self._pause()
        assert self.site.process is not None
        os.kill(self.site.process.pid, signal.SIGKILL)
        for title in ("vacd-factory", "vacd-responder"):
            for pid in self.pids(title):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.site.process.wait()
        self.note(f"killed vacd for {pause:.0f} s")
        time.sleep(pause)
        self.start()

    def restart(self) -> None:
        """Stop vacd in good order and start it after a while, as an upgrade does."""
        pause = self._pause()
        self.site.stop()
        self.note(f"stopped vacd for {pause:.0f} s")
        time.sleep(pause)
        self.start()

    def _pause(self) -> float:
        """Mostly short, at times longer than machines live.

        The clock is right meanwhile: the kernel's file times, signs of life of what ends now, aren't stepped with it.
        """
        self.step_clock(0.0)
        return self.rng.choice([0.0, 1.0, 5.0, self.rng.uniform(10.0, 40.0)])

    def set_clock(self) -> None:
        """Step vacd's wall clock, or set it right."""
        offset = self.rng.choice([0.0, 0.0, *STEPS])
        self.step_clock(offset)
        self.note(f"clock off by {offset:.0f} s")

    def read_only(self) -> None:
        """Let state_dir be read-only for a while, as a file system is after an error."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._remount("ro")
            self.note("state_dir is read-only")
            time.sleep(self.rng.uniform(1.0, 6.0))
        self._remount("rw")

    def _remount(self, mode: str) -> None:
        """Remount state_dir's file system; its superblock, not only this mount."""
        command = ["mount", "-o", f"remount,{mode}", str(self.site.state.root)]
        subprocess.run(command, check=True, capture_output=True)

    def full(self) -> None:
        """Let state_dir be full for a while."""
        path = self.site.state.root / "ballast"
        with path.open("wb") as file:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
        self.note("state_dir is full")
        time.sleep(self.rng.uniform(1.0, 6.0))
        path.unlink()

    def edit(self) -> None:
        """Give the machinetypes other shares."""
        self.configure()
        self.note("shares changed")

    def break_configuration(self) -> None:
        """Leave the configuration broken for a while."""
        self.site.config.write_text("[settings]\nvac_space = \n[machinetype\n")
        self.site.wake()
        self.note("configuration is broken")
        time.sleep(self.rng.uniform(1.0, 5.0))
        self.edit()

    def lose_outgoing(self) -> None:
        """Remove the queue of records, as a sender or an administrator may."""
        shutil.rmtree(self.site.state.root / "apel-outgoing", ignore_errors=True)
        self.note("apel-outgoing is gone")

    def configure(self) -> None:
        """Write a configuration with shares drawn anew."""
        self.site.configure(
            kinds(self.ledger, lambda: self.rng.randint(1, 4)),
            machines_per_cycle=AT_ONCE,
            gocdb_sitename="SOAK",
            hs06_per_processor=10,
            vacquery_port=self.ledger.port + 1 if self.ledger.port < 65000 else 20000,
        )

    def finish(self) -> None:
        """Mend what is broken, destroy what runs, and wait until every slot is empty."""
        self.step_clock(0.0)
        self.site.vac("drain", "--reason", "the soak is over")
        self.site.wake()
        for machine in self.site.running():
            self.site.vac("destroy", machine.name)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (alive := self.ledger.alive()) or self.site.occupied():
            if time.monotonic() > deadline:
                print(f"still there: {alive}, {self.site.occupied()} directories")
                break
            for machine in self.site.running():
                self.site.vac("destroy", machine.name)
            time.sleep(1.0)

    def faults(self) -> list[str]:
        """Return what is wrong now that all is over."""
        found = judge(
            self.ledger.lives,
            list(read_records(self.site.state.apel_archive)),
            fizzle_seconds=FIZZLE_SECONDS,
        )
        found += [f"{name}: still taken" for name in (machine.name for machine in self.site.running())]
        left = [words for words in processes_of(str(self.site.state.root)) if b"bwrap" in words]
        found += [f"a process is left: {words[:100]!r}" for words in left]
        for pid in self.pids("vacd-factory"):
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            if descriptors > 60:
                found.append(f"vacd-factory has {descriptors} open files")
        return found


@contextlib.contextmanager
def soak(seed: int) -> Iterator[Soak]:
    """A factory whose state_dir is a file system of its own, not yet started."""
    ledger = Ledger()
    bwrap = shutil.which("bwrap")
    with contextlib.closing(ledger), factory_site({}, processors=PROCESSORS, start=False) as site:
        site.words = ()
        state = str(site.state.root)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={STATE_MB}m,mode=755", "soak", state], check=True
        )
        clock = site.home / "clock"
        clock.write_bytes(struct.pack("d", 0.0))
        slow = site.home / "bin" / "bwrap"
        slow.parent.mkdir()
        slow.write_text(SLOW_BWRAP.format(bwrap=bwrap))
        slow.chmod(0o755)
        run = Soak(site, ledger, random.Random(seed), clock)
        run.configure()
        try:
            yield run
        finally:
            if site.process is not None and site.process.poll() is None:
                site.stop()
            with contextlib.suppress(AssertionError):
                site.clean_up()
            subprocess.run(["umount", "--lazy", state], check=True)


def main() -> int:
    """Run one soak; 0 if nothing was lost and nothing invented."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--keep", type=Path, help="copy vacd's log and state_dir to this new directory at the end"
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:.0f} minutes")
    with soak(arguments.seed) as run:
        try:
            run.run(60 * arguments.minutes)
            found = run.faults()
        finally:
            if arguments.keep:
                ignore = shutil.ignore_patterns("ballast", "tmp")
                shutil.copytree(run.site.state.root, arguments.keep, symlinks=True, ignore=ignore)
                (arguments.keep / "log").write_text(run.site.log())
        records = len(list(read_records(run.site.state.apel_archive)))
        print(
            f"{len(run.ledger.lives)} machines, {records} records, {len(run.done)} faults; {len(found)} differences"
        )
        print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
