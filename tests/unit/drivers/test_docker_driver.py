"""The Docker driver by stand-ins of its engine: whose containers, states, events, ends, output and usage."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import docker.errors
import pytest
import requests
import urllib3.exceptions

from vac.config.settings import Settings
from vac.drivers import volumes
from vac.drivers.base import WRITES_TO, EngineState, EngineUnavailable, Usage
from vac.drivers.docker import docker_api, docker_container
from vac.drivers.docker import docker_driver as docker_engine
from vac.drivers.docker.docker_api import Connection, EventReader, Server
from vac.drivers.docker.docker_container import UsageMeter, parse_net_dev
from vac.drivers.docker.docker_driver import (
    DockerDriver,
    Ownership,
    adoptable,
    container_details,
    start_and_end,
    written_directories,
)
from vac.drivers.volumes import NoLvm
from vac.host import connections
from vac.host.cgroups import EngineGroup, Mounts, find_engine_group

FACTORY = "factory1.example.com"
NAME = "factory1-00.example.com"
UUID = "4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b"
ID = "bc681720a870d332b3d3d08cb723ca225ddc05e43443d843efbfc66bae67cae8"
LABELS = {"vac.factory": FACTORY, "vac.uuid": UUID, "vac.machine": NAME, "vac.directory": "/d"}
OURS = Ownership(FACTORY, {})


def container(**changes: Any) -> dict[str, Any]:
    return {
        "Id": ID,
        "Names": [f"/{NAME}"],
        "Labels": LABELS,
        "State": "running",
        "HostConfig": {"NetworkMode": "bridge"},
        **changes,
    }


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("created", EngineState.HALF_MADE),
        ("running", EngineState.RUNNING),
        ("Running", EngineState.RUNNING),
        ("restarting", EngineState.RUNNING),
        ("stopping", EngineState.RUNNING),
        ("paused", EngineState.PAUSED),
        ("exited", EngineState.ENDED),
        ("dead", EngineState.ENDED),
        ("removing", EngineState.ENDED),
        ("a state of the future", EngineState.RUNNING),
    ],
)
def test_a_container_has_ended_only_if_the_engine_says_so(said: str, state: EngineState) -> None:
    listed = OURS.recognize(container(State=said))
    assert listed is not None
    assert listed.state is state


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {},
        {**LABELS, "vac.factory": "factory2.example.com"},
        {**LABELS, "vac.factory": "factory1.example.com.example.org"},
        {"vac.factory": FACTORY},
        {"vac.uuid": UUID, "vac.machine": NAME},
    ],
)
def test_a_container_is_ours_by_its_labels_not_its_name(labels: dict[str, str] | None) -> None:
    assert OURS.recognize(container(Labels=labels)) is None


def test_a_renamed_container_is_still_the_machine() -> None:
    listed = OURS.recognize(container(Names=["/else"]))
    assert listed is not None
    assert (listed.name, listed.uuid, listed.directory) == (NAME, UUID, "/d")


@pytest.mark.parametrize(
    ("mode", "own"),
    [("bridge", True), ("default", True), ("host", False), ("none", False), ("container:x", False)],
)
def test_whose_network_it_is(mode: str, own: bool) -> None:
    listed = OURS.recognize(container(HostConfig={"NetworkMode": mode}))
    assert listed is not None
    assert listed.own_network is own


@pytest.mark.parametrize("uuid", [ID, ID[:12]])
def test_an_older_vacs_container_is_known_by_its_id(uuid: str) -> None:
    adopting = Ownership(FACTORY, adoptable({uuid: NAME, UUID: "factory1-01.example.com"}))
    assert adopting.filters == {}
    listed = adopting.recognize(container(Labels={}))
    assert listed is not None
    assert (listed.name, listed.uuid) == (NAME, uuid)
    assert adopting.recognize(container(Labels={}, Id="0" * 64)) is None
    assert adopting.recognize(container(Labels={"vac.factory": "factory2.example.com"})) is None


def test_only_containers_ids_are_adopted() -> None:
    assert adoptable({UUID: NAME, "": NAME, "abc": NAME, "g" * 64: NAME}) == {}
    assert OURS.filters == {"label": [f"vac.factory={FACTORY}"]}


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ({"Action": "die", "Actor": {"ID": ID, "Attributes": LABELS}}, NAME),
        ({"Action": "died", "Actor": {"ID": ID, "Attributes": LABELS}}, NAME),
        ({"status": "remove", "Actor": {"ID": ID, "Attributes": LABELS}}, NAME),
        ({"Action": "exec_create: ls", "Actor": {"ID": ID, "Attributes": LABELS}}, None),
        ({"Action": "die", "Actor": {"ID": ID, "Attributes": {"name": NAME}}}, None),
        ({"Action": "die"}, None),
        ({}, None),
    ],
)
def test_events_are_news_of_our_machines_or_nothing(event: dict[str, Any], name: str | None) -> None:
    reader = EventReader(cast(Connection, None), lambda: OURS.filters, OURS.identify)
    assert reader.machine(event) == name


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("2026-11-21T07:23:36.123456789Z", 1795245816.0),
        ("2026-11-21T09:23:36+02:00", 1795245816.0),
        ("0001-01-01T00:00:00Z", None),
        ("2026-13-21T07:23:36Z", None),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_when_and_how_a_container_ended(told: str | None, seconds: float | None) -> None:
    assert start_and_end({"FinishedAt": told}) == Usage(ended_time=seconds)
    assert start_and_end({"StartedAt": told}) == Usage(started_time=seconds)
    ended = {"Status": "exited", "ExitCode": 137, "FinishedAt": told}
    assert start_and_end(ended) == Usage(ended_time=seconds, exit_code=137)
    assert start_and_end({**ended, "Status": "running"}) == Usage(), "it ended before it was started again"
    terminated = Usage(ended_time=seconds, signal=15)
    assert start_and_end({**ended, "ExitCode": 143}) == terminated, "its engine was stopped"
    lost = Usage(exit_code=255)
    assert start_and_end({**ended, "ExitCode": 255}) == lost, "dockerd has missed its end"
    assert start_and_end({**ended, "OOMKilled": False}, 4096) == start_and_end(ended)
    assert start_and_end({**ended, "OOMKilled": True}, 4096).peak_memory_bytes == 4096


def test_details_leave_out_what_is_not_known() -> None:
    assert container_details({}) == {}
    ended = {
        "Id": ID,
        "Name": "/else",
        "State": {"Status": "exited", "ExitCode": 0, "Pid": 0, "OOMKilled": True, "Error": "a\n b"},
    }
    assert container_details(ended) == {
        "container": ID,
        "container_name": "else",
        "state": "exited",
        "exit_code": "0",
        "killed_for_memory": "yes",
        "error": "a b",
    }


def test_details_tell_no_password() -> None:
    labels = {"vac.image": "https://me:hunter2@example.com/image.tar"}
    told = container_details({"Config": {"Labels": labels}})
    assert told["image"] == "https://***@example.com/image.tar"


@pytest.mark.parametrize(("user", "told"), [("", "root (0)"), ("pilot", "pilot"), ("1000:1000", "1000:1000")])
def test_details_name_the_user_also_where_nobody_has_named_one(user: str, told: str) -> None:
    assert container_details({"Config": {"User": user}}) == {"user": told}


@pytest.mark.parametrize(
    ("told", "directories"),
    [
        ({"GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/data/a/diff"}}}, ["/data/a/diff"]),
        ({"GraphDriver": {"Name": "vfs", "Data": None}}, []),
        ({"GraphDriver": None}, []),
        ({"Storage": {"RootFS": {}}}, []),
        ({"GraphDriver": {"Name": "x", "Data": {"UpperDir": "relative"}}}, []),
        (
            {
                "GraphDriver": {"Data": {"UpperDir": "/data/a/diff"}},
                "Mounts": [
                    {"Type": "bind", "Source": "/d/joboutputs"},
                    {"Type": "volume", "Source": "/data/volumes/w/_data"},
                    {"Type": "volume", "Source": "/data/volumes/v/_data"},
                ],
            },
            ["/data/a/diff", "/data/volumes/v/_data", "/data/volumes/w/_data"],
        ),
    ],
)
def test_directories_that_a_container_writes_are_told(told: dict[str, Any], directories: list[str]) -> None:
    assert written_directories(told) == directories
    assert container_details(told).get(WRITES_TO, "") == ":".join(directories)


OWNERSHIP = Ownership("f1.example.com", {})
EVENT_LABELS = {"vac.factory": "f1.example.com", "vac.uuid": "u0", "vac.machine": "f1-00.example.com"}
BROKEN_OFF = None


def event(action: str, **labels: str) -> dict[str, Any]:
    return {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": "c0", "Attributes": {**EVENT_LABELS, **labels}},
    }


class Stream:
    """The events of one connection, as the SDK returns them."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.events.get, BROKEN_OFF)

    def close(self) -> None:
        self.events.put(BROKEN_OFF)


class StandIn(Connection):
    """An engine that tells what tests put into its stream."""

    def __init__(self) -> None:
        super().__init__("unix:///stand-in")
        self.stream = Stream()
        self.asked: dict[str, Any] = {}

    @contextlib.contextmanager
    def stream_client(self, silence_seconds: float) -> Iterator[Any]:
        yield self

    def events(self, **asked: Any) -> Stream:
        self.asked = asked
        return self.stream


@pytest.fixture
def engine() -> StandIn:
    return StandIn()


@pytest.fixture
def reader(engine: StandIn) -> Iterator[EventReader]:
    reader = EventReader(cast(Connection, engine), lambda: OWNERSHIP.filters, OWNERSHIP.identify)
    yield reader
    reader.close()


def test_the_first_event_comes_when_events_are_collected(engine: StandIn, reader: EventReader) -> None:
    listening = reader.listen()
    assert next(listening) == "", "what has happened before isn't told by events"
    assert engine.asked["since"] < time.time(), "the engine answers before it begins to collect"
    engine.stream.events.put(event("pause"))
    assert next(listening) == "f1-00.example.com"


def test_a_broken_stream_of_events_is_an_error(engine: StandIn, reader: EventReader) -> None:
    listening = reader.listen()
    next(listening)
    engine.stream.close()
    with pytest.raises(EngineUnavailable, match="closed the stream of events"):
        next(listening)
    assert next(reader.listen()) == ""


@pytest.mark.parametrize(
    ("told", "machine"),
    [
        (event("die"), "f1-00.example.com"),
        (event("died"), "f1-00.example.com"),
        (event("remove"), "f1-00.example.com"),
        (event("exec_create: sh"), None),
        (event("start"), None),
        (event("die", **{"vac.factory": "f2.example.com"}), None),
        ({"status": "die", "Actor": {"ID": "c0", "Attributes": EVENT_LABELS}}, "f1-00.example.com"),
        ({"Type": "container", "Action": "die"}, None),
    ],
)
def test_events_that_are_news_name_the_machine(
    reader: EventReader, told: dict[str, Any], machine: str | None
) -> None:
    assert reader.machine(told) == machine


class Engine:
    """In place of Connection and its client: has one ended container, whose output can't be had."""

    def __init__(self, directory: Path, failure: Exception) -> None:
        self.labels = {
            "vac.factory": FACTORY,
            "vac.uuid": UUID,
            "vac.machine": NAME,
            "vac.directory": str(directory),
        }
        self.failure = failure
        self.removed: list[str] = []

    @contextmanager
    def client(self) -> Iterator[Engine]:
        yield self

    def containers(self, **asked: Any) -> list[dict[str, Any]]:
        return [
            {
                "Id": "c1",
                "Names": [f"/{NAME}"],
                "Labels": self.labels,
                "State": "exited",
                "HostConfig": {"NetworkMode": "none"},
            }
        ]

    def logs(self, container_id: str, tail: int) -> bytes:
        raise self.failure

    def remove_container(self, container_id: str, **how: bool) -> None:
        self.removed.append(container_id)


def no_lvm(command: Sequence[str]) -> str:
    raise NoLvm(f"{command[0]} isn't there")


@pytest.mark.parametrize(
    "failure",
    [
        docker.errors.APIError("no such log driver"),
        docker.errors.DockerException("not a stream"),
        requests.ReadTimeout("silent for 60 s"),
        requests.exceptions.ChunkedEncodingError("cut off"),
        urllib3.exceptions.ProtocolError("cut off"),
        urllib3.exceptions.ReadTimeoutError(None, "/logs", "silent for 60 s"),  # type: ignore[arg-type]
    ],
)
def test_a_container_without_readable_output_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    engine = Engine(tmp_path, failure)
    monkeypatch.setattr(docker_engine, "Connection", lambda url: engine)
    monkeypatch.setattr(volumes, "run_lvm", no_lvm)
    DockerDriver(Settings(factory_name=FACTORY)).destroy(NAME, UUID)
    assert engine.removed == ["c1"]
    assert not (tmp_path / "console.log").exists()


SHORT_ID = "bc681720a870"
TABLES = Path(__file__).parents[2] / "data/proc_net"


@pytest.mark.parametrize(
    ("hierarchies", "path", "group"),
    [
        ("v1 v2", "docker/ID", "docker/ID"),
        ("v1", "vac.slice/docker-ID.scope", "vac.slice/docker-ID.scope"),
        ("v2", "vac.slice/docker-ID.scope", "vac.slice/docker-ID.scope"),
        ("v2", "vac.slice/docker-ID.scope/inner/deeper", "vac.slice/docker-ID.scope"),
        ("v2", "machine.slice/libpod-ID.scope/container", "machine.slice/libpod-ID.scope"),
        ("v1", "libpod_parent/libpod-ID", "libpod_parent/libpod-ID"),
    ],
)
def test_a_containers_group_is_found_in_every_layout(
    tmp_path: Path, hierarchies: str, path: str, group: str
) -> None:
    path, group = path.replace("ID", SHORT_ID), group.replace("ID", SHORT_ID)
    v1 = [f"3:cpu,cpuacct:/{path}", f"2:memory:/{path}"] if "v1" in hierarchies else []
    v2 = [f"0::/{path}"] if "v2" in hierarchies else []
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("\n".join([*v1, *v2, ""]))
    mounts = Mounts({"cpuacct": Path("/c/cpuacct"), "memory": Path("/c/memory")}, Path("/c/v2"))
    assert find_engine_group(7, SHORT_ID, mounts, tmp_path) == EngineGroup(
        Path("/c/v2", group) if v2 else None,
        (Path("/c/cpuacct", group), Path("/c/memory", group)) if v1 else None,
    )


def test_only_the_containers_own_process_is_measured(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/user.slice/session-1.scope\n")
    assert find_engine_group(7, SHORT_ID, Mounts({}, Path("/c/v2")), tmp_path) is None
    with pytest.raises(FileNotFoundError):
        find_engine_group(8, SHORT_ID, Mounts({}, Path("/c/v2")), tmp_path)
    meter = UsageMeter()
    meter.add(SHORT_ID, os.getpid(), own_network=False)
    assert not meter.knows(SHORT_ID)
    assert meter.read([SHORT_ID]) == {}


def test_usage_is_read_from_both_kinds_of_cgroups(tmp_path: Path) -> None:
    (tmp_path / "cpuacct.usage").write_text("1500000000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("100\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text("200\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (tmp_path / "memory.current").write_text("300\n")
    usages = [
        EngineGroup(None, (tmp_path, tmp_path)).usage(),
        EngineGroup(tmp_path, None).usage(),
    ]
    found = [(each.cpu_seconds, each.memory_bytes, each.peak_memory_bytes) for each in usages if each]
    assert found == [(1.5, 100, 200), (2.5, 300, None)]
    gone = tmp_path / "gone"
    assert EngineGroup(gone, None).usage() is EngineGroup(None, (gone, gone)).usage() is None


def test_network_bytes_are_those_of_all_interfaces_but_lo() -> None:
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo:     999       2    0    0    0     0          0         0      999       0    0    0\n"
        "  eth0:     200       2    0    0    0     0          0         0       30       0    0    0\n"
        "  eth1:1000       2    0    0    0     0          0         0        4       0    0    0\n"
    )
    assert parse_net_dev(text) == (1200, 34)


def no_pidfd(pid: int) -> int:
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize(
    ("own_network", "addresses"),
    [(True, {"10.0.2.10", "192.168.0.2", "192.168.0.3", "2001:db8::1", "8.8.8.8"}), (False, {"192.168.0.2"})],
)
def test_contacts_are_those_of_the_container_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_network: bool, addresses: set[str]
) -> None:
    for directory in (tmp_path / "net", tmp_path / "7/net"):
        shutil.copytree(TABLES, directory)
    (tmp_path / "7/cgroup").write_text(f"0::/docker/{SHORT_ID}\n")
    (tmp_path / "7/fd").mkdir()
    (tmp_path / "7/fd/3").symlink_to("socket:[13]")
    (tmp_path / "cgroup.procs").write_text("7\n")
    monkeypatch.setattr(docker_container, "PROC", tmp_path)
    monkeypatch.setattr(connections, "PROC", tmp_path)
    monkeypatch.setattr(docker_container, "find_engine_group", lambda *_: EngineGroup(tmp_path, None))
    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    meter = UsageMeter()
    meter.add(SHORT_ID, 7, own_network)
    assert {contact.address for contact in meter.contacts()[SHORT_ID]} == addresses
    (tmp_path / "7/cgroup").write_text("0::/another\n")
    assert not own_network or meter.contacts() == {}, "the number has been given to another process"


@pytest.mark.allow_subprocess
def test_the_last_figures_are_read_when_the_first_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = queue.SimpleQueue[Usage]()
    for cpu_seconds in (1.0, 2.0):
        readings.put(Usage(cpu_seconds, 100, 200))

    class Group:
        def usage(self) -> Usage:
            return readings.get(timeout=60)

    monkeypatch.setattr(docker_container, "find_engine_group", lambda *_: Group())
    with subprocess.Popen(["sleep", "600"]) as process:
        meter = UsageMeter()
        meter.add(SHORT_ID, process.pid, own_network=False)
        assert meter.read([SHORT_ID])[SHORT_ID].cpu_seconds == 1.0
        assert meter.knows(SHORT_ID)
        process.kill()
        for thread in threading.enumerate():
            if thread.name == "docker-end":
                thread.join(60)
    assert not meter.knows(SHORT_ID)
    assert meter.ended_process(SHORT_ID) == process.pid
    assert meter.read([SHORT_ID])[SHORT_ID].cpu_seconds == 2.0


def test_a_container_that_was_never_seen_has_no_usage() -> None:
    meter = UsageMeter()
    assert meter.read(["x"]).get("x", Usage()) == Usage()


class Asked:
    """In place of Client: an engine that notes what it is asked."""

    calls: ClassVar[list[str]] = []

    def __init__(self, url: str, seconds: float, stream_seconds: float, version: str = "auto") -> None:
        self.calls.append(f"client {version}")
        self.api_version = "1.44"

    def version(self, api_version: bool) -> dict[str, Any]:
        self.calls.append("version")
        return {"Components": [{"Name": "Podman Engine"}]}

    def info(self) -> dict[str, Any]:
        self.calls.append("info")
        return {"CgroupDriver": "systemd"}

    def close(self) -> None:
        """Nothing."""


def test_an_engine_is_asked_once_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_api, "Client", Asked)
    calls: list[str] = []
    monkeypatch.setattr(Asked, "calls", calls)
    connection = Connection("unix:///none")

    def create() -> None:
        with connection.client() as client:
            assert connection.server(client) == Server(podman=True, systemd=True)

    for _ in range(2):
        thread = threading.Thread(target=create)
        thread.start()
        thread.join()
    assert calls == ["client auto", "version", "info", "client 1.44"]
    with connection.stream_client(1.0):
        create()
    assert calls[4:] == ["client auto", "client 1.44", "version", "info"]
    connection.forget()
    create()
    assert calls[8:] == ["client auto", "version", "info"]
