"""Machines for tests of the Docker driver: directories and specifications, without the rest of a factory."""

from __future__ import annotations

import contextlib
import queue
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines.docker_fixture import IMAGE
from tests.engines.listening import listening
from tests.waiting import wait_for
from vac.background import Rest
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import EngineState, MachineSpec
from vac.drivers.docker import docker_api, docker_images
from vac.drivers.docker.docker_driver import DockerDriver

FACTORY = "factory1.example.com"
REST = Rest(6 * 3600.0, first_failure_seconds=0.1)
LOOK = """#!/bin/sh
cd /var/spool/joboutputs
hostname > hostname
cat /etc/hosts > hosts
cat /etc/resolv.conf > resolv.conf
cat /etc/machinefeatures/total_cpu /etc/jobfeatures/job_id > features
env > env
id -u > uid
cat /proc/self/status > status
cat /proc/1/cmdline > init
cat /proc/self/mountinfo > mountinfo
touch /etc/machinefeatures/x /etc/jobfeatures/x /user_data 2> refused
touch /scratch/file /var/scratch/deep/file
ls -a /run /var/run > run
touch done
exec sleep 600
"""
"""User data that writes down what it sees."""


class Machines:
    """A driver, and machines numbered from 00 whose directories are below a temporary one."""

    def __init__(self, url: str, directory: Path, call_seconds: float = 30.0, **settings: Any) -> None:
        self.settings = Settings(
            vac_space="vac.example.com",
            factory_name=FACTORY,
            docker_host=url,
            pids_per_processor=100,
            **settings,
        )
        self.directory = directory
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(docker_api, "CALL_SECONDS", call_seconds)
        self._patch.setattr(docker_images, "STALL_SECONDS", 2.0)
        self._patch.setattr(docker_images, "REST", REST)
        self._drivers: list[DockerDriver] = []
        self._number = 0
        self.driver = self.successor()

    def successor(self) -> DockerDriver:
        """Another driver of the same factory, as after a restart."""
        driver = DockerDriver(self.settings)
        self._drivers.append(driver)
        return driver

    def spec(self, user_data: str, **options: Any) -> MachineSpec:
        """The next machine, of two processors and 32 MiB, with its directory."""
        number, self._number = self._number, self._number + 1
        spec = MachineSpec(
            name=f"factory1-{number:02}.example.com",
            uuid=str(uuid.uuid4()),
            machinetype=Machinetype(
                "test", machine_model="docker", **{"root_image": f"docker://{IMAGE}", **options}
            ),
            settings=self.settings,
            processors=2,
            memory_bytes=32 * 1024 * 1024,
            directory=self.directory / f"machine{number:02}",
            files=self.directory / "files",
        )
        for name in ("machinefeatures", "jobfeatures", "joboutputs", "mnt"):
            (spec.directory / name).mkdir(parents=True)
        (spec.directory / "user_data").write_text(user_data)
        (spec.directory / "user_data").chmod(0o600)
        (spec.directory / "machinefeatures" / "total_cpu").write_text("2")
        (spec.directory / "jobfeatures" / "job_id").write_text(spec.uuid)
        return spec

    def create(self, spec: MachineSpec) -> None:
        """Create the machine as soon as its image is ready."""
        wait_for(lambda: self.prepared(spec) is None, "the image is ready")
        self.driver.create(spec)

    def prepared(self, spec: MachineSpec) -> str | None:
        """Return the result of prepare() for the machine's type."""
        return self.driver.prepare(spec.machinetype, self.settings, spec.files)

    def state(self, spec: MachineSpec) -> EngineState | None:
        """The machine's state as listed now; None if it isn't."""
        return {each.uuid: each.state for each in self.driver.list()}.get(spec.uuid)

    def wait_for_state(self, spec: MachineSpec, state: EngineState | None) -> None:
        """Wait until the machine is listed so."""
        wait_for(lambda: self.state(spec) is state, f"{spec.name} is {state}")

    def wait_for_output(self, spec: MachineSpec, name: str) -> Path:
        """Wait for a file in the machine's joboutputs, and give the directory."""
        outputs = spec.directory / "joboutputs"
        wait_for((outputs / name).exists, f"{name} exists in joboutputs, which has {list(outputs.iterdir())}")
        return outputs

    def listening(self) -> contextlib.AbstractContextManager[queue.SimpleQueue[str | None]]:
        """As listening() of the driver."""
        return listening(self.driver)

    def close(self) -> None:
        """Close all drivers."""
        for driver in self._drivers:
            driver.close()
        self._patch.undo()


def with_image(spec: MachineSpec, root_image: str) -> MachineSpec:
    """The same machine of a type with another image."""
    return replace(spec, machinetype=replace(spec.machinetype, root_image=root_image))
