"""The contract of drivers, kept by simulated machines, a stand-in for Docker and libvirt's own mock."""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker.errors
import libvirt
import pytest
import requests

from tests.driver_contract import ContractSite, DriverContract, details_of, usages
from tests.fake_driver import FakeEngine, Script
from tests.waiting import wait_for
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers import volumes
from vac.drivers.base import CreationFailed, Driver, EngineState, EngineUnavailable, MachineSpec
from vac.drivers.docker import docker_driver
from vac.drivers.docker.docker_api import Server
from vac.drivers.docker.docker_driver import DockerDriver
from vac.drivers.images import ImageFacts
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.drivers.volumes import NoLvm


@pytest.fixture(autouse=True)
def no_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root no file gets another owner, and there are no volumes."""
    monkeypatch.setattr(os, "chown", lambda *arguments: None)
    monkeypatch.setattr(volumes, "run_lvm", no_lvm)


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

    def server(self, client: object) -> Server:
        return Server(podman=False, systemd=False)

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
        started = datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
        self.made[id_]["State"] = "running"
        self.made[id_]["Ended"].update(StartedAt=started, ExitCode=0)

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
        self.made[id_]["Ended"].update(ExitCode=exit_code, FinishedAt="2026-11-21T07:23:36.123456789Z")
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
    tells_start = True

    def __init__(self, directory: Path) -> None:
        self.engine = DockerEngine()
        super().__init__(directory)

    def successor(self) -> Driver:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(docker_driver, "Connection", lambda url: self.engine)
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
        setattr(driver, "_image_facts", ImageFacts(lambda path, stamp: "abc"))  # noqa: B010
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


def test_a_container_that_people_have_restarted_ends_anew(tmp_path: Path) -> None:
    with contextlib.closing(DockerSite(tmp_path)) as site:
        spec = site.create()
        (container_id,) = site.engine.made
        for exit_code in (1, 7):
            site.engine.end(container_id, exit_code)
            if exit_code == 1:
                site.engine.start(container_id)
                running = site.seen(spec)
                assert running is not None and running.usage.ended_time is None
                assert (running.details["container"], running.details["state"]) == (container_id, "running")
        ended = site.seen(spec)
        assert ended is not None and (ended.state, ended.usage.exit_code) == (EngineState.ENDED, 7)
        assert ended.details["exit_code"] == "7"


def test_facts_of_a_vm_are_known_beyond_its_end(tmp_path: Path) -> None:
    with contextlib.closing(LibvirtSite(tmp_path)) as site:
        spec = site.create()
        wait_for(lambda: "image_digest" in details_of(site.driver, spec.uuid), "its image's digest is known")
        running = details_of(site.driver, spec.uuid)
        assert {"image", "addresses", "image_path"} <= running.keys()
        site.driver.stop(spec.name, spec.uuid)
        assert details_of(site.driver, spec.uuid) == running
        site.driver.destroy(spec.name, spec.uuid)
        assert details_of(site.driver, spec.uuid) == {}


class Crash(BaseException):
    """The factory dies here."""


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spec(directory: Path, name: str = "f1-00.example.com", uuid: str = "u0") -> MachineSpec:
    return MachineSpec(name, uuid, Machinetype("t"), Settings(), 1, 2**31, directory, directory)


def test_machine_ends_after_its_lifetime_with_its_message(tmp_path: Path) -> None:
    clock = Clock()
    engine = FakeEngine(clock, lambda spec: Script(60.0, "200 Success"))
    (tmp_path / "joboutputs").mkdir()
    engine.driver().create(spec(tmp_path))
    clock.now += 59
    assert [m.state for m in engine.driver().list()] == [EngineState.RUNNING]
    assert not (tmp_path / "joboutputs/shutdown_message").exists()
    clock.now += 100
    assert [(m.state, m.usage.cpu_seconds) for m in engine.driver().list()] == [(EngineState.ENDED, 60.0)]
    assert (tmp_path / "joboutputs/shutdown_message").read_text() == "200 Success\n"


def test_stopped_machine_leaves_no_message_and_keeps_its_usage(tmp_path: Path) -> None:
    clock = Clock()
    engine = FakeEngine(clock, lambda spec: Script(60.0, "200 Success"))
    (tmp_path / "joboutputs").mkdir()
    driver = engine.driver()
    driver.create(spec(tmp_path))
    clock.now += 10
    driver.stop("f1-00.example.com", "other")
    assert [m.state for m in driver.list()] == [EngineState.RUNNING]
    driver.stop("f1-00.example.com", "u0")
    clock.now += 100
    assert [m.state for m in driver.list()] == [EngineState.ENDED]
    assert usages(driver)["u0"].cpu_seconds == 10.0
    assert not (tmp_path / "joboutputs/shutdown_message").exists()
    driver.destroy("f1-00.example.com", "u0")
    assert not driver.list()


@pytest.mark.parametrize(
    ("script", "states"),
    [
        (Script(1.0, vanishes=True), []),
        (Script(1.0, paused=True), [EngineState.PAUSED]),
        (Script(None), [EngineState.RUNNING]),
    ],
)
def test_states_after_a_while(tmp_path: Path, script: Script, states: list[EngineState]) -> None:
    clock = Clock()
    engine = FakeEngine(clock, lambda spec: script)
    engine.driver().create(spec(tmp_path))
    clock.now += 10
    assert [m.state for m in engine.driver().list()] == states


def test_machines_outlive_the_driver(tmp_path: Path) -> None:
    engine = FakeEngine(Clock())
    first = engine.driver()
    first.create(spec(tmp_path))
    first.close()
    assert [m.uuid for m in engine.driver().list()] == ["u0"]


@pytest.mark.parametrize(("moment", "exists"), [("before", False), ("after", True)])
def test_crash_leaves_the_call_undone_or_done(tmp_path: Path, moment: str, exists: bool) -> None:
    engine = FakeEngine(Clock())

    def crash(call: str, when: str) -> None:
        if (call, when) == ("create", moment):
            raise Crash

    engine.hook = crash
    with pytest.raises(Crash):
        engine.driver().create(spec(tmp_path))
    assert ("u0" in engine.machines) is exists


def test_failures_have_their_reasons(tmp_path: Path) -> None:
    engine = FakeEngine(Clock(), lambda spec: Script(failure="no space"))
    with pytest.raises(CreationFailed, match="no space"):
        engine.driver().create(spec(tmp_path))
    engine.unavailable = "down"
    with pytest.raises(EngineUnavailable, match="down"):
        engine.driver().list()


def test_end_by_the_real_clock_is_an_event(tmp_path: Path) -> None:
    engine = FakeEngine(time.time, lambda spec: Script(0.02))
    driver = engine.driver()
    names: list[str] = []
    driver.create(spec(tmp_path))

    def listen() -> None:
        names.append(next(driver.events()))

    listener = threading.Thread(target=listen)
    listener.start()
    listener.join(60)
    assert names == ["f1-00.example.com"]


def test_closing_ends_the_listening() -> None:
    driver = FakeEngine(time.time).driver()
    listener = threading.Thread(target=lambda: list(driver.events()))
    listener.start()
    driver.close()
    listener.join(60)
    assert not listener.is_alive()
