"""What is removed, and what never is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.state_dirs import (
    CREATED,
    NAME,
    machinetype_of,
    new_machine,
    new_state,
    running_machine,
)
from vac.machines import files, slots
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.slots import Expiry, remove_orphaned_slots

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
def test_directories_are_kept_as_long_as_their_type_says_and_three_days_without_type(
    tmp_path: Path, days: float | None, age_days: float, goes: bool
) -> None:
    state = new_state(tmp_path)
    path = ended(running_machine(state))
    types = {} if days is None else {"lhcb-prod": machinetype_of(machines_dir_days=days)}
    removed = Expiry(state).run(types, (), FINISHED + age_days * DAY)
    assert removed == ([path] if goes else [])
    assert path.exists() is not goes


def test_the_disk_of_an_ended_machine_that_is_in_no_slot_goes_at_once_and_its_joboutputs_stay(
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


def test_each_call_does_a_bounded_amount_of_work_and_all_goes_in_the_end(tmp_path: Path) -> None:
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


def test_slots_that_a_smaller_factory_has_no_more_go_once_they_are_empty(tmp_path: Path) -> None:
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
