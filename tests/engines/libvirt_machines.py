"""Machines for tests of the libvirt driver: directories and specifications, without the rest of a factory."""

from __future__ import annotations

import contextlib
import queue
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.listening import listening
from tests.waiting import PATIENCE_SECONDS, wait_for
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import EngineState, Fetch, MachineSpec, Observed, no_images
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.host.nat import NatHost

SHORT = f"f{secrets.token_hex(3)}"
"""Names of this process's own: libvirt names cgroups of the host's after machines."""
FACTORY = f"{SHORT}.example.com"
MIB = 1024 * 1024


class Machines:
    """A driver, and machines numbered from 00 of plain QEMU, whose directories are below the hypervisor's."""

    def __init__(self, engine: PrivateLibvirt, fetch: Fetch = no_images, **settings: Any) -> None:
        self.engine = engine
        self.settings = Settings(
            vac_space="vac.example.com",
            libvirt_uri=engine.uri,
            **{"vm_domain_type": "qemu", "factory_name": FACTORY, **settings},
        )
        self._fetch = fetch
        self._number = 0
        self._drivers: list[LibvirtDriver] = []
        self.driver = self.successor()

    def successor(self, **keywords: Any) -> LibvirtDriver:
        """Another driver of the same factory, as after a restart."""
        nat = NatHost(tuple(self.engine.enter), self.engine.directory / "hosts")
        driver = LibvirtDriver(self.settings, self._fetch, nat=nat, **keywords)
        self._drivers.append(driver)
        return driver

    def spec(self, root_image: Path | str, **options: Any) -> MachineSpec:
        """The next machine, of one processor and 96 MiB, with its directory."""
        number, self._number = self._number, self._number + 1
        own = str(uuid.uuid4())
        directory = self.engine.directory / f"machine-{own}"
        directory.mkdir(mode=0o755)
        return MachineSpec(
            name=f"{SHORT}-{number:02}.example.com",
            uuid=own,
            machinetype=Machinetype(
                "test", **{"root_image": str(root_image), "disk_gb_per_processor": 1, **options}
            ),
            settings=self.settings,
            processors=1,
            memory_bytes=96 * MIB,
            directory=directory,
            files=self.engine.directory / "files",
            address=f"169.254.169.{number}",
        )

    def prepare(self, spec: MachineSpec) -> None:
        """Wait until the machine's type can be made."""
        kind = spec.machinetype
        wait_for(
            lambda: self.driver.prepare(kind, self.settings, spec.files) is None,
            lambda: f"its type is ready: {self.driver.prepare(kind, self.settings, spec.files)}",
        )

    def wait_until_refused(self, spec: MachineSpec, reason: str) -> None:
        """Wait until the machine's type can't be made for this reason."""
        kind = spec.machinetype
        wait_for(
            lambda: reason in (self.driver.prepare(kind, self.settings, spec.files) or ""),
            lambda: f"{reason}: {self.driver.prepare(kind, self.settings, spec.files)}",
        )

    def create(self, spec: MachineSpec) -> MachineSpec:
        """Create the machine as soon as its image and network are ready."""
        self.prepare(spec)
        self.driver.create(spec)
        return spec

    def observed(self, spec: MachineSpec) -> Observed | None:
        """The machine as listed now; None if it isn't."""
        return {each.uuid: each for each in self.driver.list()}.get(spec.uuid)

    def state(self, spec: MachineSpec) -> EngineState | None:
        """Its state."""
        found = self.observed(spec)
        return found.state if found else None

    def wait_for_state(self, spec: MachineSpec, state: EngineState | None) -> None:
        """Wait until the machine is listed so."""
        wait_for(lambda: self.state(spec) is state, f"{spec.name} is {state}")

    def wait_for_console(self, spec: MachineSpec, words: str) -> None:
        """Wait until the guest has said this."""
        wait_for(lambda: words in console(spec), lambda: f"{words!r} on the console: {console(spec)}")

    @contextlib.contextmanager
    def listening(self) -> Iterator[queue.SimpleQueue[str | None]]:
        """As listening() of the driver, once it has begun."""
        with listening(self.driver) as news:
            assert news.get(timeout=PATIENCE_SECONDS) == ""
            yield news

    def destroy_all(self) -> None:
        """End whatever there is."""
        for machine in self.driver.list():
            self.driver.destroy(machine.name, machine.uuid)

    def close(self) -> None:
        """Close all drivers."""
        for driver in self._drivers:
            driver.close()


def console(spec: MachineSpec) -> str:
    """Return the guest's console output so far."""
    path = spec.directory / "console.log"
    return path.read_text(errors="replace") if path.exists() else ""
