"""Cost of a factory: one cycle with so many machines, simulated and real, and the time until slots are full.

Absolute times depend on the host and on what else runs there. The ratios are to a plain Python loop, timed in turn
with the real thing, that writes and reads as many files as that can't do without.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable

from tests.conftest import require_root, require_tool
from tests.engines.factory_fixture import AT_ONCE, Kind, Life, Option, factory_site, replacements
from tests.fake_driver import InlineEngine
from tests.simulated import World, one_type
from vac.config.settings import Settings
from vac.drivers.engine import engine_name
from vac.drivers.processes.process_driver import ProcessDriver, open_driver
from vac.host.cgroups import open_groups

SIZES = (0, 8, 64, 256)
ROUNDS = 9
CYCLE_SECONDS = 60.0
SLOTS = 64
REPLACED = 50
"""Number of replacements to wait for."""
GROUP_FILES = 4
"""Files of a machine's cgroup that have to be read: processes, CPU time, memory, peak memory."""
SLEEP = "#!/bin/sh\nexec sleep 3600\n"
WORK = """
sleep $(( 20 + 0x$(cut -c1-2 $JOBFEATURES/job_id) * 20 / 256 ))
echo '200 done' > $JOBOUTPUTS/shutdown_message
"""
Step = Callable[[], object]


class RealWorld(World):
    """The same factory, in virtual time, with machines of bubblewrap."""

    def __init__(self, root: Path, driver: ProcessDriver, factory: str, size: int) -> None:
        kind = one_type(machine_model="bubblewrap", root_image="/", user_data="user_data")
        super().__init__(root, kind, **_settings(size), factory_name=factory, factories=(factory,))
        self.driver = driver
        files = self.state.machinetype_files(kind.name)
        files.mkdir(parents=True)
        (files / "user_data").write_text(SLEEP)

    def open_engine(self, machine_model: str, settings: Settings) -> InlineEngine:
        """See World."""
        return InlineEngine(engine_name(machine_model), lambda: self.driver, self.inbox.put, self.clock.boot)


def run() -> None:
    """Print the figures."""
    require_root()
    require_tool("bwrap")
    for size in SIZES:
        with _directory() as root:
            world = World(root / "state", **_settings(size))
            world.fill()
            _tell(f"one cycle, {size:3} simulated machines", size, _cycle(world), _writing(root, size))
    for size in SIZES:
        with _directory() as root, _real_world(root, size) as world:
            _observe_and_cycle(world, size, _reading(world), _writing(root, size))
    fill("bubblewrap")


def _observe_and_cycle(world: RealWorld, size: int, reading: Step, writing: Step) -> None:
    driver = world.driver
    _tell(f"one cycle, {size:3} bubblewrap machines", size, _cycle(world), lambda: (reading(), writing()))
    _tell(f"observing  {size:3} of them", size, driver.list, reading)


def _settings(size: int) -> dict[str, int | bool]:
    """Of a factory that creates so many machines at once, then no more."""
    return {"slots": size or 1, "machines_per_cycle": AT_ONCE, "mb_per_processor": 64, "draining": not size}


def _cycle(world: World) -> Step:
    def cycle() -> None:
        world.clock.now += CYCLE_SECONDS
        world.turn()

    return cycle


def _writing(root: Path, size: int) -> Step:
    """Measure the least that a cycle needs: a file of a few bytes for each machine, which appears whole."""
    new, place = root / "new", root / "heartbeat"

    def write() -> None:
        for _ in range(size):
            new.write_bytes(b"0.0 0.0\n")
            new.rename(place)

    return write


def _reading(world: RealWorld) -> Step:
    """Measure the least that observing needs: some small files of each machine's cgroup."""
    groups = open_groups(world.settings.factory_name)
    paths: Sequence[Path] = [groups.procs_files(name)[0] for name in groups.names()] * GROUP_FILES

    def read() -> None:
        for path in paths:
            path.read_bytes()

    return read


def _tell(title: str, size: int, step: Step, bare: Step) -> None:
    """Time both in turn and print one line."""
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        step()
        middle = time.perf_counter()
        bare()
        times.append((middle - begun, time.perf_counter() - middle))
    seconds, bare_seconds = (statistics.median(each) for each in zip(*times))
    line = f"{title}: {seconds * 1e3:7.2f} ms"
    if size:
        line += f", {seconds / size * 1e3:.3f} ms a machine, {seconds / bare_seconds:4.1f} × a plain loop"
    print(line, flush=True)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """One that machines can reach."""
    directory = Path(tempfile.mkdtemp(prefix="vac-bench-", dir="/var/lib"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def _real_world(root: Path, size: int) -> Iterator[RealWorld]:
    factory = f"{root.name}.example.com".replace("_", "x")
    driver = open_driver(Settings(factory_name=factory))
    try:
        world = RealWorld(root / "state", driver, factory, size)
        begun = time.perf_counter()
        world.fill()
        if size:
            seconds = time.perf_counter() - begun
            print(
                f"creating   {size:3} bubblewrap machines: {seconds:.1f} s, {size / seconds:.1f} a second",
                flush=True,
            )
        yield world
    finally:
        for machine in driver.list():
            driver.destroy(machine.name, machine.uuid)
        driver.close()


def fill(model: str, options: Mapping[str, Option] = MappingProxyType({}), **settings: Any) -> None:
    """A real factory process: time to fill with a type that nobody knows, to replace what ends, and to fill again."""
    _fill_by_the_ramp(model, options, **settings)
    kind = Kind(WORK, {"fizzle_seconds": 3, "machine_model": model, **options})
    with factory_site({"work": kind}, processors=SLOTS, **settings) as site:
        site.wait_for(lambda: site.occupied() >= SLOTS, "all slots are taken", 180)
        full = max(life.started or 0.0 for life in site.lives())
        site.wait_for(lambda: len(replacements(site.lives(), full)) >= REPLACED, "so many are replaced", 120)
        pauses = [start - end for end, start in replacements(site.lives(), full)]
        print(
            f"replacing a {model} machine that has ended, with {SLOTS - 1} beside it: "
            f"median {statistics.median(pauses):.3f} s, longest of {len(pauses)} {max(pauses):.3f} s"
        )
        site.vac("drain")
        site.wait_for(lambda: not site.occupied(), "all machines have ended", 180)
        site.stop()
        known = len(site.lives())
        site.start()
        site.vac("undrain")
        site.wait_for(lambda: site.occupied() >= SLOTS, "all slots are taken again", 180)
        _tell_fill(f"{SLOTS} {model} slots with a known type, after a restart", site.lives()[known:])


def _fill_by_the_ramp(model: str, options: Mapping[str, Option], **settings: Any) -> None:
    kind = Kind("exec sleep 3600", {"fizzle_seconds": 600, "machine_model": model, **options})
    with factory_site({"work": kind}, processors=SLOTS, **settings) as site:
        site.wait_for(lambda: site.occupied() >= SLOTS, "all slots are taken", 180)
        _tell_fill(f"{SLOTS} {model} slots by the ramp", site.lives())


def _tell_fill(what: str, lives: Sequence[Life]) -> None:
    full = max(life.started or 0.0 for life in lives[:SLOTS])
    print(f"filling {what}: {full - lives[0].created:.1f} s", flush=True)
