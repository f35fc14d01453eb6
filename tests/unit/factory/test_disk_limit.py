"""A container that outgrows its disk: found at a cycle, ended as soon as the measurement has come."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulated import Meter, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import WRITES_TO
from vac.factory import watch
from vac.machines.outputs import note_details

GB = 1000**3


@pytest.fixture
def small(make_world: MakeWorld) -> World:
    """Machines with a disk of 1 GB, none of which is measured by itself."""
    small = make_world(one_type(disk_gb_per_processor=1))
    small.fill()
    return small


def meter() -> Meter:
    measure: object = vars(watch)["measure_disk"]
    assert isinstance(measure, Meter)
    return measure


def test_a_measurement_between_cycles_ends_the_machine_at_once(small: World) -> None:
    fat, lean = small.machine(0), small.machine(1)
    assert set(meter().asked) == {fat.uuid, lean.uuid}
    next_cycle_time = small.factory.next_cycle_time
    small.measured(lean, GB)
    small.measured(fat, GB + 1)
    small.turn()
    small.run(5)
    assert small.clock.boot() < next_cycle_time
    assert fat.finished
    assert (fat.directory / "shutdown_message").read_text().strip() == "700 Disk limit"
    assert not lean.finished


@pytest.mark.parametrize(
    ("took_seconds", "rest_seconds"), [(0.01, 30), (0.1, 100), (0.2, 200), (100.0, 300), (None, 300)]
)
def test_what_takes_long_to_measure_is_measured_less_often(
    small: World, took_seconds: float | None, rest_seconds: float
) -> None:
    uuid = small.machine().uuid
    small.clock.now += 400
    small.wake()
    before = meter().asked.count(uuid)
    if took_seconds is not None:
        small.measured(small.machine(), 1000, took_seconds)
    small.clock.now += rest_seconds - 1
    small.wake()
    assert meter().asked.count(uuid) == before
    small.clock.now += 2
    small.wake()
    assert meter().asked.count(uuid) == before + 1


def test_directories_outside_a_machines_own_are_measured_too(small: World) -> None:
    machine = small.machine()
    note_details(small.factory.state.dir, machine, {WRITES_TO: "/engine/layer:/engine/volume"})
    small.clock.now += 400
    small.wake()
    assert meter().directories[machine.uuid] == [
        machine.directory,
        Path("/engine/layer"),
        Path("/engine/volume"),
    ]


def test_uncountable_files_end_a_machine_after_an_hour(small: World) -> None:
    hoarder, slow = small.machine(0), small.machine(1)
    small.measured(hoarder, None, 240.0)
    small.measured(slow, None, 240.0)
    small.run(3000, 60)
    assert not hoarder.finished, "a busy disk is nobody's fault"
    small.measured(hoarder, None, 240.0)
    small.measured(slow, GB - 1, 100.0)
    small.run(700, 60)
    assert hoarder.finished
    assert (hoarder.directory / "shutdown_message").read_text() == "700 Disk use takes too long to measure\n"
    assert not slow.finished
