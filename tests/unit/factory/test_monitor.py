"""VacMon is told of each cycle and of each end, and whatever happens to it is nothing to the factory."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_driver import Script
from tests.unit.factory.conftest import MakeWorld


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(60)
        yield service


def next_of(service: socket.socket, kind: str) -> dict[str, Any]:
    """The next message of this kind."""
    while True:
        message: dict[str, Any] = json.loads(service.recv(9000))
        if message["message_type"] == kind:
            return message


def test_each_cycle_and_each_end_is_told(make_world: MakeWorld, service: socket.socket) -> None:
    world = make_world(slots=1, vacmon_hostport=(f"127.0.0.1:{service.getsockname()[1]}",))
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    first = world.machine()
    factory = next_of(service, "factory_status")
    assert (factory["cookie"], factory["factory"], factory["max_processors"]) == (
        "0",
        world.settings.factory_name,
        1,
    )
    assert next_of(service, "machinetype_status")["machinetype"] == "t"
    world.run(400)
    ended = next_of(service, "machine_status")
    assert world.machine().uuid != first.uuid, "there is another machine in its slot"
    assert (ended["machine"], ended["uuid"], ended["state"]) == (first.name, first.uuid, "Shut down")
    assert ended["shutdown_message"] == "200 Success"


def test_a_service_that_does_not_exist_harms_nothing(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(vacmon_hostport=("vacmon.example.invalid:8884",))
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    world.run(600)
    assert len(world.records()) == 2
    assert sum("VacMon" in record.getMessage() for record in caplog.records) <= 1


def test_without_a_service_nothing_is_started(make_world: MakeWorld) -> None:
    before = set(threading.enumerate())
    make_world().fill()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "vacmon"]
