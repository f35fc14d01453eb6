"""A real factory with bubblewrap machines in a throw-away state_dir, of which nothing is left afterwards."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Union

from tests.conftest import cgroups_named, require_root, require_tool
from tests.waiting import PATIENCE_SECONDS, wait_for
from vac.config.settings import Settings
from vac.drivers.processes.process_driver import open_driver
from vac.host.filesystems import mounts
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.slots import read_slots
from vac.machines.status import Status
from vac.machines.status import read as read_status

ROOT = Path(__file__).parents[2]
LOOK_SECONDS = 0.05
AT_ONCE = 1000
Option = Union[str, int, float, Path]


@dataclass(frozen=True)
class Kind:
    """A machinetype: the shell script that its machines run, and what differs from the usual options."""

    script: str
    options: Mapping[str, Option] = field(default_factory=dict)


USUAL: Mapping[str, Option] = {
    "machine_model": "bubblewrap",
    "root_image": "/",
    "user_data": "user_data",
    "target_share": 1,
    "backoff_seconds": 5,
    "fizzle_seconds": 3,
    "max_wallclock_seconds": 3600,
}


@dataclass(frozen=True)
class Life:
    """One machine's life as its directory tells it afterwards; Unix seconds, more exact than the slot's."""

    directory: Path
    machinetype: str
    name: str
    created: float
    started: float | None
    finished: float | None

    def output(self, name: str) -> str:
        """Return a file of the machine's joboutputs; empty if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "joboutputs" / name).read_text(errors="replace")
        return ""

    def output_time(self, name: str) -> float:
        """Return the time of its last write to that file."""
        return (self.directory / "joboutputs" / name).stat().st_mtime

    @property
    def message(self) -> str:
        """The machine's shutdown message as it is kept, or what it wrote itself."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "shutdown_message").read_text().strip()
        return self.output("shutdown_message").strip()


class FactorySite:
    """A factory's directories and process, and its administrator's commands."""

    def __init__(self, home: Path, processors: int) -> None:
        self.home = home
        self.processors = processors
        self.name = f"test-{home.name[-8:]}.example.com".lower().replace("_", "x")
        self.state = StateDir(home / "state")
        self.config = home / "config" / "vac.conf"
        self.log_file = home / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.enter: Sequence[str] = ()
        """Words before each command: where it runs."""
        self.words: Sequence[str] = ("--role", "factory")
        """The role of vacd to start; nothing: all of it."""
        self.state.root.mkdir()
        self.config.parent.mkdir(mode=0o700)

    def configure(self, kinds: Mapping[str, Kind], **settings: Option) -> None:
        """Write configuration and scripts; the factory sees them at its next cycle."""
        values: dict[str, Option] = {
            "vac_space": "vac.example.com",
            "factory_name": self.name,
            "state_dir": self.state.root,
            "total_processors": self.processors,
            "mb_per_processor": 64,
            "overload_per_processor": 1000,
            **settings,
        }
        sections = {"settings": values}
        for name, kind in kinds.items():
            files = self.state.machinetype_files(name)
            files.mkdir(parents=True, exist_ok=True)
            (files / "user_data").write_text(f"#!/bin/sh\n{kind.script}\n")
            sections[f"machinetype {name}"] = {**USUAL, **kind.options}
        lines = []
        for section, options in sections.items():
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in options.items())]
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands: this tree's modules, and the assumed processors."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "VAC_ASSUME_PROCESSORS": str(self.processors)}

    def start(self, module: str = "vac.daemon", **variables: str) -> None:
        """Start the factory; its log goes to log_file. variables are added to its environment."""
        command = [*self.enter, sys.executable, "-m", module, *self.words, "--config", str(self.config)]
        environment = {**self.environment, **variables}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=log, stdout=log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the factory; machines go on. Its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def wake(self) -> None:
        """Let it look at its configuration and requests now."""
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    def command(self, *words: str) -> list[str]:
        """Return the command line of bin/vac for this factory."""
        return [*self.enter, str(ROOT / "bin" / "vac"), "--config", str(self.config), *words]

    def vac(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run bin/vac for this factory."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def type_into_shell(self, machine: Machine, typed: bytes) -> tuple[int, str, str]:
        """Type at the first prompt of `vac exec`; return its exit status, what it showed, and our terminal's name."""
        ours, theirs = pty.openpty()
        try:
            with subprocess.Popen(
                self.command("exec", machine.name),
                env=self.environment,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
            ) as shell:
                prompted = select.select([ours], [], [], PATIENCE_SECONDS)[0]
                assert prompted, "what is typed before its prompt is dropped"
                os.write(ours, typed)
                code, told = shell.wait(), os.read(ours, 65536).decode()
            return code, told, os.ttyname(theirs)
        finally:
            os.close(theirs)
            os.close(ours)

    def follow_console(self, machine: Machine, end: Callable[[], object]) -> list[str]:
        """Return the lines of `vac logs -f`: the first that comes, and after end() all others until it ends."""
        words = self.command("logs", "-f", machine.name)
        with subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            first = following.stdout.readline()
            end()
            lines = [first, *following.stdout]
        assert following.returncode == 0
        return lines

    def wait_for(
        self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS
    ) -> float:
        """Wait until the condition holds; how long that took, seconds. The factory has to run meanwhile."""

        def holds() -> object:
            found = condition()
            assert found or self.process is None or self.process.poll() is None, (
                f"the factory ended\n{self._last_words()}"
            )
            return found

        return wait_for(holds, lambda: f"{what}\n{self._last_words()}", seconds)

    def _last_words(self) -> str:
        return "\n".join(self.log().splitlines()[-30:])

    def log(self) -> str:
        """All that the factory has logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def status(self) -> Status:
        """Return its last report."""
        return read_status(self.state) or Status()

    def machines(self) -> dict[str, Machine]:
        """The present or last machine of each slot."""
        return read_slots(self.state)

    def running(self, machinetype: str | None = None) -> list[Machine]:
        """Machines that have started and not ended."""
        return [
            machine
            for machine in self.machines().values()
            if machine.started_time is not None
            and not machine.finished
            and machinetype in (None, machine.machinetype)
        ]

    def occupied(self) -> int:
        """Return the number of machines that started and have not finished, fast."""
        directories = [Path(entry.path) for entry in _entries(self.state.machines)]
        return sum((one / "started").exists() and not (one / "finished").exists() for one in directories)

    def lives(self, machinetype: str | None = None) -> list[Life]:
        """All machines that there have been, in the order of their creation."""
        found = []
        for entry in _entries(self.state.machines):
            path = Path(entry.path)
            created = _mtime(path / "machinetype.json")
            _, kind, name = entry.name.split("_", 2)
            if created is not None and machinetype in (None, kind):
                life = Life(path, kind, name, created, _mtime(path / "started"), _mtime(path / "finished"))
                found.append(life)
        return sorted(found, key=lambda life: life.created)

    def clean_up(self) -> None:
        """End everything, then see that no process, cgroup or mount is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        driver = open_driver(Settings(factory_name=self.name, state_dir=self.state.root))
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while (machines := driver.list()) or processes_of(str(self.home)):
                assert time.monotonic() < deadline, f"processes are left: {processes_of(str(self.home))}"
                for machine in machines:
                    driver.destroy(machine.name, machine.uuid)
                time.sleep(LOOK_SECONDS)
        finally:
            driver.close()
        assert not cgroups_named(self.name), "cgroups are left"
        own = [mount.point for mount in mounts() if mount.point == str(self.state.root)]
        assert len(own) <= 1, "each start has mounted state_dir anew"
        for point in own:
            subprocess.run(["umount", point], check=True)
        assert str(self.home) not in Path("/proc/self/mountinfo").read_text(), "mounts are left"


@contextlib.contextmanager
def factory_site(
    kinds: Mapping[str, Kind], *, processors: int = 4, start: bool = True, **settings: Option
) -> Iterator[FactorySite]:
    """A factory of this many slots. Everything goes at the end, also if the test has failed.

    machines_per_cycle=AT_ONCE does without the ramp.
    """
    require_root()
    require_tool("bwrap")
    home = Path(tempfile.mkdtemp(prefix="vac-test-", dir="/var/lib"))  # machines see /var/lib, not /var/tmp
    home.chmod(0o755)
    site = FactorySite(home, processors)
    try:
        site.configure(kinds, **settings)
        if start:
            site.start()
        yield site
    finally:
        try:
            site.clean_up()
        finally:
            shutil.rmtree(home)


def replacements(lives: Iterable[Life], since: float) -> list[tuple[float, float]]:
    """Ends of machines, and starts of those in their place: the nth end with the nth start since all slots were taken.

    An end is when the machine wrote its shutdown message, its last act.
    """
    known = list(lives)
    ends = sorted(
        life.output_time("shutdown_message")
        for life in known
        if life.finished is not None and life.finished > since and life.message
    )
    starts = sorted(life.started for life in known if life.started is not None and life.started > since)
    return list(zip(ends, starts))


def processes_of(text: str) -> list[bytes]:
    """Command lines of this host's processes, zombies left out, that have the text in them."""
    return [words for words in command_lines().values() if text.encode() in words]


def command_lines() -> dict[int, bytes]:
    """Command lines of all processes of this host by their number, as everybody can read them."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def _entries(directory: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _mtime(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None


def records(site: FactorySite) -> dict[str, dict[str, str]]:
    """The fields of all accounting records by uuid; a second one of a machine is an error."""
    found: dict[str, dict[str, str]] = {}
    for path in site.state.apel_archive.glob("*/*"):
        fields = dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
        assert fields["LocalJobId"] not in found
        found[fields["LocalJobId"]] = fields
    return found


def uuids(site: FactorySite, machinetype: str | None = None) -> set[str]:
    """Return the uuids of the machines that run."""
    return {machine.uuid for machine in site.running(machinetype)}


def ended(machine: Machine) -> bool:
    """Return True if the factory has written its end."""
    return (machine.directory / "finished").exists()


def message(machine: Machine) -> str:
    """Its shutdown message as it is kept."""
    path = machine.directory / "shutdown_message"
    return path.read_text().strip() if path.exists() else ""
