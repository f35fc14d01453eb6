"""`vac machine`: what is told of one machine, and whose word counts."""

from __future__ import annotations

from pathlib import Path

from tests.unit.state_dirs import new_machine, new_state
from vac.cli.machine import known_of
from vac.machines.machine import note_details
from vac.machines.status import Status


def test_what_an_engine_once_told_takes_nothing_from_what_the_factory_knows(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    note_details(state, machine, {"state": "running", "uuid": "x", "image_digest": "site/pilot@sha256:1"})
    told = known_of(machine, Status(slot_states={machine.name: "Unknown"}), "f1.example.com")
    assert told["state"] == "Unknown"
    assert told["uuid"] == machine.uuid
    assert told["image_digest"] == "site/pilot@sha256:1"
