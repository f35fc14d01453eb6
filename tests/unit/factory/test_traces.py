"""Facts that a driver knows of its machines are kept with them, beyond their end."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fake_driver import FakeDriver, FakeEngine, InlineEngine
from tests.simulated import HoldingEngine, World
from vac.cli.machine_commands import known_of
from vac.config.settings import Settings
from vac.host.connections import Contact
from vac.machines.slots import find_ended

HOME = Contact("tcp", "192.0.2.1", 443, incoming=False)


class Watchful(FakeDriver):
    """A simulated driver that tells a fact of each machine first, another later, and always a contact."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.looks = 0

    def new_details(self) -> Mapping[str, Mapping[str, str]]:
        self.looks += 1
        facts = {"user": "nobody"} if self.looks < 5 else {"image_digest": "sha256:1"}
        return {machine.uuid: facts for machine in self.list()}

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        return {machine.uuid: frozenset([HOME]) for machine in self.list()}


def test_traces_are_kept_with_the_machine_and_outlive_it(world: World) -> None:
    driver = Watchful(world.engine())

    def open_engine(machine_model: str, settings: Settings) -> InlineEngine:
        return HoldingEngine(world, "docker", driver)

    world.open_engine = open_engine
    world.fill()
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
