"""What is kept of a machine's connections."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.unit.state_dirs import new_machine, new_state
from vac.host.connections import Contact
from vac.machines import outputs
from vac.machines.outputs import MOST_CONTACTS, note_contacts, read_contacts

HOME = Contact("tcp", "192.0.2.1", 443, incoming=False)
CALLER = Contact("tcp", "192.0.2.1", 22, incoming=True)


def test_each_is_kept_with_its_first_and_last_time(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    assert read_contacts(machine) == []
    note_contacts(state, machine, [HOME, CALLER], 1000.7)
    note_contacts(state, machine, [HOME], 1060.2)
    assert read_contacts(machine) == [
        {**CALLER._asdict(), "first_seen": 1000, "last_seen": 1000},
        {**HOME._asdict(), "first_seen": 1000, "last_seen": 1060},
    ]


def test_a_machine_that_talks_to_everybody_fills_no_disk(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    for hundred in range(MOST_CONTACTS // 100 + 2):
        many = [HOME._replace(port=100 * hundred + number) for number in range(100)]
        note_contacts(state, machine, many, 1000 + hundred)
    kept = [entry["port"] for entry in read_contacts(machine)]
    assert kept == list(range(200, MOST_CONTACTS + 200)), "those that were seen last"


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '[{"protocol": "tcp"}]'])
def test_a_broken_file_is_begun_anew(tmp_path: Path, content: str) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    (machine.directory / outputs.CONTACTS).write_text(content)
    assert read_contacts(machine) == []
    note_contacts(state, machine, [HOME], 1000)
    assert len(read_contacts(machine)) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("vac.machines.files.write_atomic", full)
    if number == errno.ENOSPC:
        note_contacts(state, machine, [HOME], 1000)
    else:
        with pytest.raises(OSError, match="no"):
            note_contacts(state, machine, [HOME], 1000)
    assert read_contacts(machine) == []
