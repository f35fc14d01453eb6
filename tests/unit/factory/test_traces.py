"""Facts that a driver knows of its machines are kept with them, beyond their end."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.fake_driver import FakeDriver, FakeEngine, InlineEngine
from tests.simulated import HoldingEngine, World
from vac.cli.machine_commands import known_of
from vac.config.settings import Settings
from vac.drivers.base import Observed
from vac.host.connections import Contact
from vac.machines import outputs
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.slots import find_ended

HOME = Contact("tcp", "192.0.2.1", 443, incoming=False)


class Watchful(FakeDriver):
    """A simulated driver that tells a fact of each machine first, another later, and always a contact."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.looks = 0

    def list(self) -> Sequence[Observed]:
        self.looks += 1
        facts = {"user": "nobody"} if self.looks < 5 else {"image_digest": "sha256:1"}
        return [replace(machine, details=facts) for machine in super().list()]

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        return {machine.uuid: frozenset([HOME]) for machine in super().list()}


def filled(world: World) -> Watchful:
    """Return the driver of a factory that has filled its slots with machines of which it tells."""
    driver = Watchful(world.engine())

    def open_engine(machine_model: str, settings: Settings) -> InlineEngine:
        return HoldingEngine(world, "docker", driver)

    world.open_engine = open_engine
    world.fill()
    return driver


def test_traces_are_kept_with_the_machine_and_outlive_it(world: World) -> None:
    filled(world)
    machine = world.machine()
    world.run(600.0)
    world.ask("destroy", machine)
    world.wake()
    world.run(600.0)
    assert world.machine().uuid != machine.uuid, "its slot has another by now"
    found = find_ended(world.state, machine.uuid)
    assert found is not None
    told = known_of(found, None, world.settings.factory_name)
    assert (told["slot"], told["user"], told["image_digest"]) == (0, "nobody", "sha256:1")
    contacts = told["contacts"]
    assert isinstance(contacts, list)
    assert [(each["address"], each["port"]) for each in contacts] == [("192.0.2.1", 443)]
    assert contacts[0]["last_seen"] > contacts[0]["first_seen"]


def test_details_are_written_when_they_have_changed_until_that_succeeds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, list[Mapping[str, str]]] = {}

    def note_details(state: StateDir, machine: Machine, details: Mapping[str, str]) -> None:
        written.setdefault(machine.uuid, []).append(details)
        if len(written[machine.uuid]) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(outputs, "note_details", note_details)
    filled(world)
    world.run(600.0)
    assert written[world.machine().uuid] == [
        {"user": "nobody"},
        {"user": "nobody"},
        {"image_digest": "sha256:1"},
    ]
