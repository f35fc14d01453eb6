"""Cost of the libvirt driver: observing 1, 8 and 256 domains, and making one.

The first two are machines of plain QEMU on a libvirtd of its own, with the fixture of the engine tests; for 256
it is libvirt's own mock inside this process, which says what the driver itself costs.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
import uuid
from pathlib import Path

from tests.engines.guest_images import IDLE, Guest, boot_iso
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.libvirt_machines import FACTORY, Machines
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import MachineSpec
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver

SIZES = (1, 8)
MOCKED = 256
ROUNDS = 20


def run() -> None:
    """Print the figures, in seconds."""
    with contextlib.closing(PrivateLibvirt()) as engine, contextlib.closing(Machines(engine)) as machines:
        image = engine.directory / "boot.iso"
        shutil.copyfile(boot_iso(Guest(IDLE)), image)
        seconds: list[float] = []
        for size in SIZES:
            while len(seconds) < size:
                seconds.append(_seconds_of_creation(machines, machines.spec(image)))
            _observe(machines.driver, size, "machines")
        print(
            f"libvirt: making a machine: median {statistics.median(seconds):.2f}, "
            f"longest {max(seconds):.2f} of {len(seconds)}"
        )
        started = time.perf_counter()
        machines.destroy_all()
        print(f"libvirt: {len(seconds)} destroyed in {time.perf_counter() - started:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        _observe_mock(Path(directory))


def _seconds_of_creation(machines: Machines, spec: MachineSpec) -> float:
    machines.prepare(spec)
    started = time.perf_counter()
    machines.driver.create(spec)
    return time.perf_counter() - started


def _observe(driver: LibvirtDriver, size: int, what: str) -> None:
    """Print how long a listing with everybody's usage takes."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        listed = driver.list()
        rounds.append(time.perf_counter() - started)
        assert len(listed) == size
    print(
        f"libvirt: observing {size} {what}: median {statistics.median(rounds):.4f}, longest {max(rounds):.4f}"
    )


def _observe_mock(directory: Path) -> None:
    settings = Settings(vac_space="vac.example.com", factory_name=FACTORY, libvirt_uri="test:///default")
    image = directory / "boot.iso"
    image.touch()
    with contextlib.closing(LibvirtDriver(settings)) as driver:
        started = time.perf_counter()
        for number in range(MOCKED):
            own = directory / str(number)
            own.mkdir()
            driver.create(
                MachineSpec(
                    name=f"factory1-{number:02}.example.com",
                    uuid=str(uuid.uuid4()),
                    machinetype=Machinetype("mock", root_image=str(image), disk_gb_per_processor=1),
                    settings=settings,
                    processors=1,
                    memory_bytes=2**20,
                    directory=own,
                    files=directory,
                )
            )
        print(f"libvirt: {MOCKED} mocked domains made in {time.perf_counter() - started:.2f}")
        _observe(driver, MOCKED, "mocked domains")


if __name__ == "__main__":
    run()
