"""The contract of drivers, kept by the driver of processes with bubblewrap in this host's cgroups."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.driver_contract import ContractSite, DriverContract
from tests.engines.process_site import group_makers
from tests.waiting import wait_for
from vac.config.machinetype import Machinetype
from vac.drivers.base import Driver, MachineSpec
from vac.drivers.processes.process_driver import ProcessDriver

pytestmark = pytest.mark.engine


class ProcessSite(ContractSite):
    """Machines of bubblewrap in the first kind of cgroups that this host has."""

    machinetype = Machinetype("t", machine_model="bubblewrap", root_image="/")
    can_be_unavailable = False

    def __init__(self, directory: Path) -> None:
        version = sorted(group_makers())[0]
        self.groups = group_makers()[version](f"test-{os.getpid()}-{directory.name[-8:]}.example.com")
        self.settings = dataclasses.replace(self.settings, state_dir=directory)
        super().__init__(directory)

    def successor(self) -> Driver:
        return ProcessDriver(self.groups)

    def end(self, spec: MachineSpec) -> None:
        group = f"{spec.name}_{spec.uuid}"
        for process in self.groups.processes(group):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        wait_for(lambda: not self.groups.populated(group), "its processes have ended")

    def break_creations(self) -> None:
        self.machinetype = dataclasses.replace(self.machinetype, root_image="/no/such/tree")

    def close(self) -> None:
        for machine in self.driver.list():
            self.driver.destroy(machine.name, machine.uuid)
        super().close()


@pytest.fixture
def site() -> Iterator[ContractSite]:
    require_root()
    require_tool("bwrap")
    directory = Path(tempfile.mkdtemp(prefix="vac-test-", dir="/var/tmp"))
    directory.chmod(0o711)
    try:
        with contextlib.closing(ProcessSite(directory)) as site:
            yield site
    finally:
        shutil.rmtree(directory)


class TestProcessContract(DriverContract):
    """As the driver of processes keeps it."""
