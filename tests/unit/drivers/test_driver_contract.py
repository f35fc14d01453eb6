"""The contract of drivers: simulated machines, a stand-in for Docker's API, and libvirt's own mock."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker.errors
import libvirt
import pytest
import requests

from tests.driver_contract import ContractSite, DriverContract
from tests.fake_driver import FakeEngine, Script
from vac.config.machinetype import Machinetype
from vac.drivers.base import Driver, EngineUnavailable, MachineSpec
from vac.drivers.docker import docker_driver
from vac.drivers.docker.docker_driver import DockerDriver
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.drivers.volumes import NoLvm, Volumes


@pytest.fixture(autouse=True)
def no_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root no file gets another owner."""
    monkeypatch.setattr(os, "chown", lambda *arguments: None)


class FakeSite(ContractSite):
    """Simulated machines."""

    machinetype = Machinetype("t")

    def __init__(self, directory: Path) -> None:
        self.engine = FakeEngine(time.time)
        super().__init__(directory)

    def successor(self) -> Driver:
        return self.engine.driver()

    def end(self, spec: MachineSpec) -> None:
        machine = self.engine.machines[spec.uuid]
        lived = Script(max(0.0, time.time() - machine.created_time))
        self.engine.change(spec.uuid, replace(machine, script=lived))
        self.engine.wake()

    def break_creations(self) -> None:
        self.engine.script = lambda spec: Script(failure="no space left")

    def break_engine(self) -> None:
        self.engine.unavailable = "it is down"


class DockerEngine:
    """In place of docker_api.Connection and its client: containers in memory."""

    url = "unix:///stand-in"

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.refusal, self.down = "", False
        self.streams: list[queue.SimpleQueue[dict[str, Any] | None]] = []

    @contextlib.contextmanager
    def client(self) -> Iterator[DockerEngine]:
        if self.down:
            raise EngineUnavailable(f"{self.url}: refuses connections")
        yield self

    @contextlib.contextmanager
    def stream_client(self, seconds: float) -> Iterator[DockerEngine]:
        with self.client():
            yield self

    def forget(self) -> None:
        """See Connection."""

    def image(self, reference: str) -> Mapping[str, Any]:
        return {"Id": "sha256:1", "Config": {"Entrypoint": ["/run"]}}

    def version(self, api_version: bool) -> Mapping[str, Any]:
        return {}

    def info(self) -> Mapping[str, Any]:
        return {"CgroupDriver": "cgroupfs"}

    def make_container(self, config: Mapping[str, Any], name: str) -> str:
        if self.refusal:
            response = requests.Response()
            response.status_code = 400
            raise docker.errors.APIError(self.refusal, response=response, explanation=self.refusal)
        id_ = f"{len(self.made):064x}"
        self.made[id_] = {
            "Id": id_,
            "Labels": config["Labels"],
            "HostConfig": config["HostConfig"],
            "State": "created",
            "Ended": {},
        }
        return id_

    def start(self, id_: str) -> None:
        self.made[id_]["State"] = "running"

    def containers(self, **asked: Any) -> list[dict[str, Any]]:
        wanted = dict(label.split("=", 1) for label in asked["filters"].get("label", ()))
        return [each for each in self.made.values() if wanted.items() <= each["Labels"].items()]

    def inspect_container(self, id_: str) -> Mapping[str, Any]:
        found = self.made[id_]
        return {"Id": id_, "State": {"Status": found["State"], "Pid": 0, **found["Ended"]}}

    def kill(self, id_: str) -> None:
        self.end(id_, 137)

    def end(self, id_: str, exit_code: int) -> None:
        self.made[id_]["State"] = "exited"
        self.made[id_]["Ended"] = {"ExitCode": exit_code, "FinishedAt": "2026-11-21T07:23:36.123456789Z"}
        actor = {"ID": id_, "Attributes": self.made[id_]["Labels"]}
        for stream in self.streams:
            stream.put({"Action": "die", "Actor": actor})

    def wait(self, id_: str, **how: Any) -> None:
        """It has ended already."""

    def logs(self, id_: str, tail: int) -> bytes:
        return b""

    def remove_container(self, id_: str, **how: Any) -> None:
        del self.made[id_]

    def events(self, **asked: Any) -> Stream:
        self.streams.append(queue.SimpleQueue())
        return Stream(self.streams[-1])


class Stream:
    """The events of one connection, until it is closed."""

    def __init__(self, events: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        self.events = events

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.events.get, None)

    def close(self) -> None:
        self.events.put(None)


def no_lvm(command: object) -> str:
    raise NoLvm("there is no LVM")


class DockerSite(ContractSite):
    """The stand-in for Docker."""

    machinetype = Machinetype("t", machine_model="docker", root_image="docker://pilot@sha256:1")

    def __init__(self, directory: Path) -> None:
        self.engine = DockerEngine()
        super().__init__(directory)

    def successor(self) -> Driver:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(docker_driver, "Connection", lambda url, seconds: self.engine)
            patch.setattr(docker_driver, "Volumes", lambda: Volumes(no_lvm))
            return DockerDriver(self.settings)

    def end(self, spec: MachineSpec) -> None:
        (container,) = (each for each in self.engine.made.values() if each["Labels"]["vac.uuid"] == spec.uuid)
        self.engine.end(container["Id"], 0)

    def break_creations(self) -> None:
        self.engine.refusal = "Minimum memory limit allowed is 6MB"

    def break_engine(self) -> None:
        self.engine.down = True


class LibvirtSite(ContractSite):
    """The mock that comes with libvirt: one hypervisor per process."""

    settings = replace(ContractSite.settings, libvirt_uri="test:///default", vm_domain_type="test")
    machinetype = Machinetype("t", machine_model="cernvm3", root_image="boot.iso", disk_gb_per_processor=1)
    keeps_remains = False

    def __init__(self, directory: Path) -> None:
        (directory / "boot.iso").write_bytes(b"an image")
        self.connection = libvirt.open("test:///default")
        super().__init__(directory)

    def successor(self) -> Driver:
        driver = LibvirtDriver(self.settings, grace_seconds=0.0)
        setattr(driver, "_volumes", Volumes(no_lvm))  # noqa: B010
        return driver

    def end(self, spec: MachineSpec) -> None:
        self.connection.lookupByUUIDString(spec.uuid).destroy()

    def break_creations(self) -> None:
        (self.directory / "boot.iso").unlink()

    def break_engine(self) -> None:
        self.settings = replace(self.settings, libvirt_uri="test:///no/such/hypervisor.xml")

    def close(self) -> None:
        super().close()
        for domain in self.connection.listAllDomains():
            if domain.name().startswith("f1-"):
                domain.destroy()
        self.connection.close()


@pytest.fixture(params=[FakeSite, DockerSite, LibvirtSite])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContractSite]:
    with contextlib.closing(request.param(tmp_path)) as site:
        yield site


class TestContract(DriverContract):
    """As each of the drivers keeps it."""
