"""Which containers the Docker driver takes for its own, what it makes of their states, and of events."""

from __future__ import annotations

from typing import Any

import pytest

from vac.drivers.base import EngineState
from vac.drivers.docker.details import container_details, ended_time
from vac.drivers.docker.events import event_machine
from vac.drivers.docker.listing import Ownership, adoptable

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
def test_a_container_is_ours_by_its_labels_and_never_by_its_name(labels: dict[str, str] | None) -> None:
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


def test_machines_whose_uuid_is_no_containers_id_are_not_adopted() -> None:
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
    assert event_machine(event, OURS) == name


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
def test_when_a_container_ended(told: str | None, seconds: float | None) -> None:
    assert ended_time({"State": {"FinishedAt": told}}) == seconds


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


def test_details_of_machines_made_by_earlier_versions_tell_no_password() -> None:
    labels = {"vac.image": "https://me:hunter2@example.com/image.tar"}
    told = container_details({"Config": {"Labels": labels}})
    assert told == {"image": "https://me:***@example.com/image.tar"}
