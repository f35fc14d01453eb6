"""What the factory counts, for metrics."""

from __future__ import annotations

import pytest

from tests.fake_driver import Script
from tests.simulated import START, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineUnavailable
from vac.machines.machine import load
from vac.scheduling.backoff import code_group


def counts(world: World) -> dict[tuple[str, str, str], int]:
    return {(one.what, one.kind, one.outcome): one.count for one in world.status().tallies}


def seconds(world: World, what: str, kind: str, outcome: str) -> float:
    return sum(
        one.seconds
        for one in world.status().tallies
        if (one.what, one.kind, one.outcome) == (what, kind, outcome)
    )


def test_creations_ends_and_destructions_are_counted_with_their_durations(make_world: MakeWorld) -> None:
    world = make_world(
        one_type("a", fizzle_seconds=10, backoff_seconds=0), one_type("b", target_share=9.0), slots=1
    )
    scripts = iter([Script(failure="no image"), Script(300.0, "200 Done"), Script(50.0, "350 Odd")])
    world.scripts = lambda spec: next(scripts, Script())
    world.types = world.types[:1]
    world.start()
    world.hold = True
    world.run(30)
    world.release()  # it took the engine 30 s to say that it couldn't
    world.run(460)
    assert counts(world)["creation", "docker", "failed"] == 1
    assert seconds(world, "creation", "docker", "failed") == 30
    assert counts(world)["creation", "docker", "created"] == 3
    assert counts(world)["destruction", "docker", "destroyed"] == 2
    assert counts(world)["end", "a", "200"] == counts(world)["end", "a", "300"] == 1
    assert seconds(world, "end", "a", "200") == pytest.approx(300, abs=10)
    assert counts(world)["cycle", "", ""] >= 7
    assert world.status().begin == START

    world.types = (one_type("b", target_share=9.0),)
    world.run(61)
    assert not [key for key in counts(world) if key[:2] == ("end", "a")], "of types that are gone"
    world.start()
    world.run(61)
    assert set(counts(world)) <= {("cycle", "", ""), ("creation", "docker", "created")}, "begins anew"


def test_destructions_that_fail_are_counted_and_timed(make_world: MakeWorld) -> None:
    world = make_world(one_type(), slots=1)
    world.scripts = lambda spec: Script(200.0, "200 Done")
    world.fill()

    def busy(call: str, moment: str) -> None:
        if call == "destroy" and moment == "before":
            raise EngineUnavailable("device or resource busy")

    world.hook = busy
    world.run(300)
    failed = counts(world)["destruction", "docker", "failed"]
    assert failed >= 2
    world.hook = lambda call, moment: None
    world.run(61)
    assert counts(world)["destruction", "docker", "destroyed"] == 1
    assert seconds(world, "destruction", "docker", "destroyed") > 100


def test_what_running_machines_use_is_told(make_world: MakeWorld) -> None:
    world = make_world(one_type(), slots=2, total_processors=1)
    world.scripts = lambda spec: Script(memory_bytes=5 << 20)
    world.fill()
    machine = world.machine(0)
    world.measured(machine, 1000)
    world.run(61)
    assert world.status().disk_used == {machine.uuid: 1000}
    told = load(machine.directory)
    assert told is not None
    assert (told.memory_bytes, told.peak_memory_bytes) == (5 << 20, 5 << 20)
    assert told.network_received_bytes is told.network_sent_bytes is None
    assert told.cpu_seconds == pytest.approx(world.clock.now - START, abs=65)


@pytest.mark.parametrize(
    ("message", "group"),
    [(None, "none"), ("bye", "none"), ("099 x", "none"), ("100 x", "100"), ("799 x", "700"), ("300", "300")],
)
def test_codes_between_hundreds_belong_to_the_hundred_below(message: str | None, group: str) -> None:
    assert code_group(message) == group
