"""`vac machine`: what is told of one machine, and whose word counts."""

from __future__ import annotations

from pathlib import Path

from tests.unit.state_dirs import STARTED, at, new_machine, new_state
from vac.cli.machine import known_of
from vac.drivers.base import Usage
from vac.machines.machine import mark_started, renew_heartbeat
from vac.machines.outputs import note_details
from vac.machines.status import Status


def test_what_an_engine_once_told_takes_nothing_from_what_the_factory_knows(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    note_details(state, machine, {"state": "running", "uuid": "x", "image_digest": "site/pilot@sha256:1"})
    told = known_of(machine, Status(slot_states={machine.name: "Unknown"}), "f1.example.com")
    assert told["state"] == "Unknown"
    assert told["uuid"] == machine.uuid
    assert told["image_digest"] == "site/pilot@sha256:1"


def test_what_a_machine_uses_is_told(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    mark_started(state, machine, at(STARTED))
    renew_heartbeat(state, machine, at(STARTED + 30), Usage(2.0, 5 << 20, 7 << 20, 0, 800))
    told = known_of(machine, None, "f1.example.com")
    assert (told["memory MiB"], told["peak memory MiB"]) == (5, 7)
    assert (told["bytes received"], told["bytes sent"]) == (0, 800)
