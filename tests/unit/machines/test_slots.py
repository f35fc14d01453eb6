"""Slots rebuilt from disk: our own, half-made ones, those of a classic factory; and what is removed when."""

from __future__ import annotations

import os
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
from vac.machines import files, slots
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, left_process, mark_started
from vac.machines.slots import (
    Expiry,
    Found,
    finished_machines,
    load_slots,
    note_finish,
    read_slot,
    remove_orphaned_slots,
)
from vac.scheduling.model import MachineEnd


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


def test_a_machine_that_lost_its_slot_is_still_to_be_accounted(tmp_path: Path) -> None:
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


def test_finishes_names_the_newest_machine_that_started(tmp_path: Path) -> None:
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
        MachineEnd("lhcb-prod", CREATED, STARTED, STARTED + 36000, "300 Nothing"),
        MachineEnd("lhcb-prod", failed.created_time, None, failed.created_time, None),
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
    assert machine.settings.mb_per_processor == 2048
    assert machine.kind.fizzle_seconds == 900
    assert slots["vac-85-00.example.org"].kind.heartbeat_file == "vm-heartbeat"
    assert slots["vac-85-01.example.org"].kind.fizzle_seconds == Machinetype(name="x").fizzle_seconds


def test_outcomes_of_a_classic_factorys_machines_are_known(tmp_path: Path) -> None:
    outcomes = finished_machines(classic_state(tmp_path), {}, None)
    assert len(outcomes) == 6
    assert {outcome.message for outcome in outcomes} == {"300 No work available"}


def test_processes_of_running_classic_machines_are_known(tmp_path: Path) -> None:
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


DAY = 86400
FINISHED = CREATED + DAY


def ended(machine: Machine, message: bytes = b"200 Success") -> Path:
    (machine.directory / "joboutputs" / "shutdown_message").write_bytes(message)
    (machine.directory / "finished").write_bytes(b"")
    os.utime(machine.directory / "finished", (FINISHED, FINISHED))
    return machine.directory


@pytest.mark.parametrize(
    ("days", "age_days", "goes"),
    [
        (3.0, 2.9, False),
        (3.0, 3.1, True),
        (0.5, 0.6, True),
        (0, 1000, False),
        (10, 9, False),
        (None, 2.9, False),
        (None, 3.1, True),
    ],
)
def test_directories_are_kept_as_long_as_their_type_says(
    tmp_path: Path, days: float | None, age_days: float, goes: bool
) -> None:
    state = new_state(tmp_path)
    path = ended(running_machine(state))
    types = {} if days is None else {"lhcb-prod": machinetype_of(machines_dir_days=days)}
    removed = Expiry(state).run(types, (), FINISHED + age_days * DAY)
    assert removed == ([path] if goes else [])
    assert path.exists() is not goes


def test_an_ended_machine_in_no_slot_keeps_only_its_joboutputs(
    tmp_path: Path,
) -> None:
    state = new_state(tmp_path)
    gone, kept = ended(running_machine(state)), running_machine(state).directory
    assert Expiry(state).run({}, [kept], FINISHED) == []
    assert not (gone / "mnt").exists()
    assert (gone / "joboutputs/shutdown_message").exists()
    assert (kept / "mnt").is_dir()


def test_a_machine_that_never_started_goes_too(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    assert Expiry(state).run({}, [machine.directory], CREATED + 4 * DAY) == []
    assert Expiry(state).run({}, (), CREATED + 4 * DAY) == [machine.directory]


def test_a_machine_that_is_not_accounted_yet_stays_however_old(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    assert Expiry(state).run({}, (), CREATED + 4000 * DAY) == []
    assert machine.directory.exists()


@pytest.mark.parametrize("message", [b"300 No work", b"700 Trouble", None])
def test_only_the_newest_of_many_aborted_or_failed_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: bytes | None
) -> None:
    monkeypatch.setattr(slots, "MOST_ABORTED", 3)
    state = new_state(tmp_path)
    kept_type = {"lhcb-prod": machinetype_of(machines_dir_days=0)}
    good = [ended(running_machine(state)) for _ in range(4)]
    bad = []
    for _ in range(5):
        machine = new_machine(state) if message is None else running_machine(state)
        bad.append(ended(machine, message or b""))
    assert Expiry(state).run(kept_type, (), FINISHED + 1) == bad[:2]
    assert all(path.exists() for path in good + bad[2:])


def test_each_call_does_bounded_work_until_all_is_gone(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    paths = [ended(running_machine(state)) for _ in range(7)]
    cleaner = Expiry(state)
    rounds = [len(cleaner.run({}, (), FINISHED + 4 * DAY, limit=3)) for _ in range(4)]
    assert rounds == [3, 3, 1, 0]
    assert not any(path.exists() for path in paths)


def test_finished_directories_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_state(tmp_path)
    ended(running_machine(state))
    cleaner = Expiry(state)
    cleaner.run({}, (), FINISHED)
    monkeypatch.setattr(slots, "load", lambda path: pytest.fail("read again"))
    assert cleaner.run({}, (), FINISHED) == []


def test_what_cannot_be_removed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    stuck, other = ended(running_machine(state)), ended(running_machine(state))
    discard = files.discard

    def busy(path: Path, *, tmp: Path) -> None:
        if path == stuck:
            raise OSError("Device or resource busy")
        discard(path, tmp=tmp)

    monkeypatch.setattr(files, "discard", busy)
    assert Expiry(state).run({}, (), FINISHED + 4 * DAY) == [other]
    assert "busy" in caplog.text


def slot_files(state: StateDir) -> list[str]:
    return sorted(path.name for path in state.slots.iterdir())


def test_surplus_slots_go_once_they_are_empty(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    names = [
        NAME,
        "node1-01.example.org",
        "node1-02.example.org",
        "node1-03.example.org",
        "stranger.example.org",
    ]
    for name in names:
        state.slot(name).write_text(f"{CREATED} lhcb-prod docker\n")
    removed = remove_orphaned_slots(state, "node1.example.org", 2, ["node1-03.example.org"])
    assert removed == ["node1-02.example.org"]
    assert slot_files(state) == [name for name in names if name not in removed]
