"""Traces that an incident team finds of running and ended machines, on a real factory."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import require_tool
from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, factory_site
from tests.engines.process_site import make_tree
from vac.machines.machine import Machine

pytestmark = pytest.mark.engine

WAKE_SECONDS = 10.0
"""From one look at connections to the next."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A service on this host, which machines connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(300)
        yield server


def told_of(site: FactorySite, name: str) -> dict[str, Any]:
    """Return the facts that the command prints, by the machine's name or uuid."""
    facts: dict[str, Any] = json.loads(site.vac("machine", "--json", name).stdout)
    return facts


def wait_for_contact(site: FactorySite, machine: Machine, port: int) -> dict[str, Any]:
    """Have the factory look until it has seen the machine's connection; what it tells of the machine then."""
    pause = threading.Event()
    for _ in range(30):
        told = told_of(site, machine.name)
        if any(contact["port"] == port for contact in told.get("contacts", [])):
            return told
        site.wake()
        pause.wait(WAKE_SECONDS)
    pytest.fail(f"{machine.name}: its connection isn't seen\n{site.log()}")


def test_a_machines_contacts_are_known_to_its_end_and_later(listener: socket.socket) -> None:
    require_tool("apptainer")
    port = listener.getsockname()[1]
    talk = f"sleep 600 | busybox nc 127.0.0.1 {port}"
    kinds = {
        "host": Kind(talk),
        "tree": Kind(talk, {"machine_model": "singularity", "root_image": "tree"}),
    }
    with factory_site(kinds, processors=2, machines_per_cycle=AT_ONCE, start=False) as site:
        make_tree(site.state.machinetype_files("tree") / "tree")
        site.start()
        connections = [listener.accept()[0] for _ in kinds]
        site.wait_for(lambda: len(site.running()) == 2, "two machines run")
        for machine in site.running():
            told = wait_for_contact(site, machine, port)
            (contact,) = told["contacts"]
            assert (contact["protocol"], contact["address"]) == ("tcp", "127.0.0.1")
            assert not contact["incoming"]
            assert told["uuid"] == machine.uuid
            assert told["slot"] in (0, 1)
            assert told["user"] == "nobody (65534)"
            image = (
                "/" if machine.machinetype == "host" else str(site.state.machinetype_files("tree") / "tree")
            )
            assert told["image_path"] == image
            assert told["network"] == "host"
            assert told["CPU seconds"] >= 0
        victim = site.running()[0]
        assert site.vac("destroy", victim.name).returncode == 0
        site.wait_for((victim.directory / "finished").exists, "it has ended")
        site.wait_for(lambda: len(site.running()) == 2, "its slot has another machine")
        after = told_of(site, victim.uuid)
        assert (after["machine"], after["state"]) == (victim.name, "Shut down")
        assert [each["port"] for each in after["contacts"]] == [port]
        for connection in connections:
            connection.close()
