"""A space of real factories: each with vacd and all its processes on a host of its own, as tests.space.hosts has."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.conftest import require_root, require_tool
from tests.engines.factory_fixture import ROOT, FactorySite, Kind, Life, Option, command_lines
from tests.space.hosts import Namespaces, Network
from tests.waiting import PATIENCE_SECONDS, wait_for


class SpaceFactory(FactorySite):
    """One of the space's factories."""

    def __init__(self, home: Path, name: str, processors: int, host: Namespaces) -> None:
        super().__init__(home, processors)
        self.name = name
        self.host = host

    @property
    def short(self) -> str:
        """Its name without the domain."""
        return self.name.partition(".")[0]

    def start_vacd(self) -> None:
        """Start vacd with all its roles; their logs go to log_file."""
        command = self.host.inside(str(ROOT / "bin" / "vacd"), "--config", str(self.config))
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stderr=log, stdout=log)

    def kill(self) -> None:
        """SIGKILL for all of the factory's processes; only its machines go on."""
        if self.process is None:
            return
        killed = [self.process.pid, *_roles(self.process.pid)]
        ends = [os.pidfd_open(pid) for pid in killed]
        for end in ends:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(end, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for end in ends:
            assert select.select([end], [], [], PATIENCE_SECONDS)[0], "killed, but not ended"
            os.close(end)

    def vac(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run bin/vac on this factory's host."""
        command = self.host.inside(str(ROOT / "bin" / "vac"), "--config", str(self.config), *words)
        return subprocess.run(
            command,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def clean_up(self) -> None:
        """End everything; see that nothing is left."""
        self.kill()
        super().clean_up()


class Space:
    """All of them."""

    def __init__(self, home: Path, count: int, processors: int) -> None:
        self.domain = f"{secrets.token_hex(3)}.example.com"
        names = [f"f{number}.{self.domain}" for number in range(1, count + 1)]
        addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self.network = Network(home / "hosts", addresses)
        self.factories: list[SpaceFactory] = []
        self.slots = count * processors
        for name in names:
            directory = home / name.partition(".")[0]
            directory.mkdir()
            self.factories.append(SpaceFactory(directory, name, processors, self.network.hosts[name]))

    def configure(
        self, kinds: Mapping[str, Kind], own: Mapping[str, Mapping[str, Option]], **settings: Option
    ) -> None:
        """Configure all alike; own: what is different on some, by their short name."""
        listed = " ".join(factory.name for factory in self.factories)
        for factory in self.factories:
            common: dict[str, Option] = {"vac_space": f"space.{self.domain}", "factories": listed, **settings}
            factory.configure(kinds, **{**common, **own.get(factory.short, {})})

    def wait_for(
        self, condition: Callable[[], object], what: str, seconds: float = 2 * PATIENCE_SECONDS
    ) -> float:
        """Wait until the condition holds; how long that took, seconds."""
        return wait_for(condition, lambda: f"{what}\n{self.told()}", seconds)

    def told(self) -> str:
        """The last words of all factories, for who has to find out what went wrong."""
        return "\n".join(
            line for factory in self.factories for line in (factory.name, *factory.log().splitlines()[-15:])
        )

    def is_full(self) -> bool:
        """Return True if all slots are taken."""
        return sum(factory.occupied() for factory in self.factories) >= self.slots

    def lives(self, machinetype: str | None = None) -> list[Life]:
        """All machines that there have been in the space."""
        return [life for factory in self.factories for life in factory.lives(machinetype)]

    def clean_up(self) -> None:
        """End everything; see that nothing is left, whatever goes wrong."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.network.close)
            for factory in self.factories:
                stack.callback(factory.clean_up)
            for factory in self.factories:
                stack.callback(factory.kill)


@contextlib.contextmanager
def space_of(count: int, processors: int) -> Iterator[Space]:
    """A space of so many factories of so many slots each. Everything goes at the end, also if a test has failed."""
    require_root()
    for tool in ("bwrap", "ip", "nsenter", "unshare"):
        require_tool(tool)
    home = Path(tempfile.mkdtemp(prefix="vac-test-", dir="/var/lib"))  # machines see /var/lib, not /var/tmp
    try:
        home.chmod(0o755)
        space = Space(home, count, processors)
        try:
            yield space
        finally:
            space.clean_up()
    finally:
        shutil.rmtree(home)


def mean_machines(lives: Iterable[Life], begin: float, end: float) -> dict[str, float]:
    """Return each machinetype's mean number of machines between these times (Unix seconds)."""
    means: dict[str, float] = {}
    for life in lives:
        lived = min(life.finished or end, end) - max(life.created, begin)
        if lived > 0:
            means[life.machinetype] = means.get(life.machinetype, 0.0) + lived / (end - begin)
    return means


def _roles(supervisor: int) -> Sequence[int]:
    """The processes of this vacd's roles; not machines that it may have adopted."""
    found = []
    for process, words in command_lines().items():
        if b"vacd-" in words or b"--role" in words:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == supervisor:
                    found.append(process)
    return found
