"""The rules that end running machines, and measurements of containers' disks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulated import Meter, World, one_type
from tests.unit.factory.conftest import MakeWorld
from tests.unit.state_dirs import machinetype_of
from vac.clock import Moment
from vac.config.settings import Settings
from vac.drivers.base import WRITES_TO, EngineState
from vac.factory import watch
from vac.factory.state import ObservedState
from vac.factory.watch import judge
from vac.machines.machine import Machine
from vac.machines.outputs import note_details

GB = 1000**3
STARTED = 1_000_000.0
LONG_AGO = 0.0
FINE = ObservedState(engine_state=EngineState.RUNNING)
HEARTBEAT = {"heartbeat_file": "vm-heartbeat", "heartbeat_seconds": 300}
IDLE = {"idle_cpu_percent": 5.0, "idle_seconds": 3600}
DISK = {"disk_gb_per_processor": 1}


def running(lifetime_seconds: int = 86400, started: float = STARTED, **options: Any) -> Machine:
    return Machine(
        directory=Path("/x/1_a_node"),
        created_time=0,
        machinetype="a",
        name="node",
        uuid="",
        processors=1,
        kind=machinetype_of(**options),
        settings=Settings(),
        shutdown_time=int(started) + lifetime_seconds,
        started_time=float(int(started)),
        started_boot=("boot", started),
    )


def moment(time: float) -> Moment:
    return Moment(time, time, "boot")


@pytest.mark.parametrize(
    ("observed", "options", "age", "message"),
    [
        (FINE, {}, 100, None),
        (FINE, {}, 86400, "100 Shutdown time reached"),
        (replace(FINE, engine_state=EngineState.PAUSED), {}, 1, "700 Paused"),
        (FINE, HEARTBEAT, 599, None),
        (FINE, HEARTBEAT, 600, "700 Heartbeat file not created"),
        (FINE, {**HEARTBEAT, "fizzle_seconds": 0}, 700, None),
        (FINE, {**HEARTBEAT, "heartbeat_file": None}, 700, None),
        (replace(FINE, heartbeat_file=(1.0, STARTED + 500)), HEARTBEAT, 799, None),
        (
            replace(FINE, heartbeat_file=(1.0, STARTED + 500)),
            HEARTBEAT,
            800,
            "700 Heartbeat file not updated",
        ),
        (replace(FINE, heartbeat_file=(1.0, STARTED)), {**HEARTBEAT, "heartbeat_seconds": 0}, 9000, None),
        (replace(FINE, disk_used_bytes=GB + 1), DISK, 1, "700 Disk limit"),
        (replace(FINE, disk_used_bytes=GB), DISK, 1, None),
        (replace(FINE, disk_used_bytes=GB + 1), {**DISK, "machine_model": "vm-raw"}, 1, None),
        (FINE, DISK, 1, None),
        (replace(FINE, unmeasured_time=STARTED + 5), DISK, 3604, None),
        (replace(FINE, unmeasured_time=STARTED + 5), DISK, 3605, "700 Disk use takes too long to measure"),
        (replace(FINE, unmeasured_time=STARTED + 5), {}, 9000, None),
        (FINE, IDLE, 4199, None),
        (FINE, IDLE, 4200, "700 Idle"),
        (replace(FINE, busy_time=STARTED + 4000), IDLE, 7599, None),
        (replace(FINE, busy_time=STARTED + 4000), IDLE, 7600, "700 Idle"),
    ],
)
def test_a_machine_that_breaks_a_rule_is_ended_with_its_message(
    observed: ObservedState, options: dict[str, Any], age: float, message: str | None
) -> None:
    verdict = judge(running(**options), observed, LONG_AGO, moment(STARTED + age))
    assert verdict == message if message else not isinstance(verdict, str)


@pytest.mark.parametrize("options", [HEARTBEAT, IDLE])
def test_a_restart_of_the_factory_punishes_no_machine(options: dict[str, Any]) -> None:
    machine, restarted = running(**options), STARTED + 80000
    assert not isinstance(judge(machine, FINE, restarted, moment(restarted + 599)), str)
    assert isinstance(judge(machine, FINE, restarted, moment(restarted + 3600)), str)


_TIMES = st.integers(0, 10**5).map(float)


@given(
    st.builds(
        running,
        lifetime_seconds=st.integers(0, 10**5),
        started=_TIMES,
        fizzle_seconds=st.integers(0, 1000),
        heartbeat_file=st.none() | st.just("heartbeat"),
        heartbeat_seconds=st.integers(0, 1000),
        idle_cpu_percent=st.none() | st.just(5.0),
    ),
    st.builds(
        ObservedState,
        heartbeat_file=st.none() | st.tuples(st.just(1.0), _TIMES),
        busy_time=st.none() | _TIMES,
    ),
    _TIMES,
    _TIMES,
)
def test_nothing_changes_before_the_time_that_is_told(
    machine: Machine, observed: ObservedState, factory_started: float, age: float
) -> None:
    now = (machine.started_time or 0.0) + age
    verdict = judge(machine, observed, factory_started, moment(now))
    if not isinstance(verdict, str):
        assert verdict > now
        halfway = (now + verdict) / 2
        if halfway < verdict:
            assert not isinstance(judge(machine, observed, factory_started, moment(halfway)), str)
        assert isinstance(judge(machine, observed, factory_started, moment(verdict)), str)


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
