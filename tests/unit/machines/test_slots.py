"""Slots rebuilt from disk: our own, half-made ones, and those of a classic factory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.state_dirs import (
    CREATED,
    NAME,
    STARTED,
    at,
    classic_state,
    contents,
    machinetype_of,
    new_machine,
    new_state,
    running_machine,
    settings_of,
)
from vac.config.machinetype import Machinetype
from vac.drivers.base import LeftProcess
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, left_process, mark_started
from vac.machines.slots import Found, finished_machines, load_slots, note_finish, read_slot
from vac.scheduling.model import Outcome


def loaded(state: StateDir) -> dict[str, Machine]:
    found = load_slots(state, {"lhcb-prod": machinetype_of()}, settings_of(state))
    return machines_of(found)


def machines_of(found: Found) -> dict[str, Machine]:
    return {name: machine for name, (machine, _) in found.slots.items()}


def finished(machine: Machine) -> Machine:
    (machine.directory / "finished").write_bytes(b"")
    return machine


def test_a_running_machine_is_found_again(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    assert {name: found.uuid for name, found in loaded(state).items()} == {NAME: machine.uuid}
    assert not load_slots(state, {}, None).orphans


def test_a_directory_without_slot_was_half_created_and_goes(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    state.slot(NAME).unlink()
    assert loaded(state) == {}
    assert not machine.directory.exists()


def test_a_slot_that_points_nowhere_is_empty(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    state.slot(NAME).write_text(f"{CREATED} lhcb-prod bubblewrap\n")
    assert loaded(state) == {}


@pytest.mark.parametrize("content", ["", "x", "x y z", "1 2", "1 2 3 4"])
def test_a_slot_file_that_says_nothing_is_no_slot(tmp_path: Path, content: str) -> None:
    state = new_state(tmp_path)
    state.slot(NAME).write_text(content)
    assert read_slot(state.slot(NAME)) is None


def test_a_running_machine_whose_slot_file_was_lost_gets_it_back(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    before = state.slot(NAME).read_bytes()
    for lost in (b"", None):
        state.slot(NAME).unlink()
        if lost is not None:
            state.slot(NAME).write_bytes(lost)
        assert loaded(state)[NAME].directory == machine.directory
        assert state.slot(NAME).read_bytes() == before


def test_a_machine_that_lost_its_slot_to_a_later_one_is_still_to_be_accounted(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    first = running_machine(state)
    second = running_machine(state)
    found = load_slots(state, {}, None)
    assert machines_of(found)[NAME].directory == second.directory
    assert [orphan.directory for orphan in found.orphans] == [first.directory]


def test_the_last_machine_of_a_slot_is_still_known(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = finished(running_machine(state))
    assert loaded(state)[NAME].finished
    assert state.finish("lhcb-prod").read_text().split() == [str(machine.created_time), "lhcb-prod", NAME]


def test_finishes_names_the_most_recently_created_machine_that_started(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    older, newer, never = new_machine(state), new_machine(state), new_machine(state)
    for machine in (older, newer):
        mark_started(state, machine, at(STARTED))
    for machine in (newer, older, never):
        note_finish(state, machine)
    assert state.finish("lhcb-prod").read_text().split()[0] == str(newer.created_time)


def test_outcomes_of_finished_machines_are_known_after_a_restart(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = finished(running_machine(state))
    (machine.directory / "joboutputs" / "shutdown_message").write_bytes(b"300 Nothing\n")
    failed = finished(new_machine(state))
    new_machine(state)

    assert finished_machines(state, {}, None) == [
        Outcome("lhcb-prod", CREATED, STARTED, STARTED + 36000, "300 Nothing"),
        Outcome("lhcb-prod", failed.created_time, None, failed.created_time, None),
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["slots/" + NAME], "Is a directory"),
        (["machines/*/started"], "Is a directory"),
        (["machines/*/jobfeatures/job_id"], "Is a directory"),
    ],
)
def test_a_machine_whose_files_cannot_be_read_is_set_aside_alone(
    tmp_path: Path, files: list[str], reason: str
) -> None:
    state = new_state(tmp_path)
    running_machine(state)
    other = running_machine(state, name="node1-01.example.org", uuid="u2")
    for pattern in files:
        (path,) = (one for one in state.root.glob(pattern) if NAME in str(one))
        path.unlink()
        path.mkdir()
    found = load_slots(state, {}, None)
    assert list(machines_of(found)) == [other.name]
    assert reason in found.unreadable[NAME]
    path.rmdir()


CLASSIC_TYPES = {
    "type-00": machinetype_of(name="type-00", machine_model="docker", heartbeat_file="vm-heartbeat"),
    "type-02": machinetype_of(name="type-02", machine_model="docker", fizzle_seconds=900),
}


def test_the_machines_of_a_classic_factory_are_taken_over(tmp_path: Path) -> None:
    state = classic_state(tmp_path)
    settings = settings_of(state, vac_space="vac01.example.org", factory_name="vac-85.example.org")
    before = contents(state.machines)
    slots = machines_of(load_slots(state, CLASSIC_TYPES, settings))
    assert contents(state.machines) == before
    assert sorted(slots) == [f"vac-85-{number:02d}.example.org" for number in range(7)]
    states = {
        name[7:9]: (machine.model, machine.started_time is not None, machine.finished)
        for name, machine in slots.items()
    }
    assert states == {
        "00": ("docker", True, False),
        "01": ("singularity", True, False),
        "02": ("cernvm4", True, False),
        "03": ("docker", True, False),
        "04": ("singularity", True, False),
        "05": ("cernvm4", False, False),
        "06": ("docker", True, True),
    }
    machine = slots["vac-85-02.example.org"]
    assert (machine.uuid, machine.processors, machine.shutdown_time) == (
        "594f5e7d-c06b-d90f-3de1-7657a5dbb5c9",
        1,
        1795313497,
    )
    assert (machine.started_time, machine.cpu_seconds, machine.cpu_percent) == (1795227157.0, 4.0, 92.2)
    assert (machine.fqan, machine.hs06) == ("/vo2.example.org/Role=NULL/Capability=NULL", 12.5)
    assert machine.options.mb_per_processor == 2048
    assert machine.options.fizzle_seconds == 900
    assert slots["vac-85-00.example.org"].options.heartbeat_file == "vm-heartbeat"
    assert slots["vac-85-01.example.org"].options.fizzle_seconds == Machinetype(name="x").fizzle_seconds


def test_outcomes_of_a_classic_factorys_machines_are_known(tmp_path: Path) -> None:
    outcomes = finished_machines(classic_state(tmp_path), {}, None)
    assert len(outcomes) == 6
    assert {outcome.message for outcome in outcomes} == {"300 No work available"}


def test_the_processes_of_classic_machines_that_run_are_known_and_no_others(tmp_path: Path) -> None:
    state = classic_state(tmp_path)
    settings = settings_of(state, singularity_user="vacuser", mb_per_processor=2048)
    machines = {machine.machinetype: machine for machine in loaded(state).values()}
    left = {name: left_process(machine, settings) for name, machine in machines.items()}
    assert sorted(name for name, process in left.items() if process) == ["type-01", "type-04"]
    known, first = left["type-01"], machines["type-01"]
    noted_time = (first.directory / "pid").stat().st_mtime
    assert known == LeftProcess(first.name, 1, noted_time, "vacuser", 1, 2**31, 3.0)
    (first.directory / "machinetype.json").write_text("{}")
    (machines["type-04"].directory / "pid").write_text("none")
    assert not any(left_process(machines[name], settings) for name in ("type-01", "type-04"))
