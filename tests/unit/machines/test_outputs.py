"""Shutdown messages, honest and planted, and connections."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Callable

import pytest

from tests.unit.state_dirs import CREATED, ENDED, new_machine, new_state, running_machine
from vac.host.connections import Contact
from vac.machines import outputs
from vac.machines.outputs import (
    MOST_CONTACTS,
    UNREADABLE,
    keep_shutdown_message,
    note_contacts,
    read_contacts,
    set_shutdown_message,
    shutdown_message,
    shutdown_message_time,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"200 Success\n", "200 Success"),
        (b"300 No work available", "300 No work available"),
        (b"300 a\nsecond line\n", "300 a"),
        (b"  700 blanks  \r\n", "700 blanks"),
        (b"200 \x1b[31mred\x00\x07", "200 ?[31mred??"),
        (b"200 \xff\xfe", "200 \ufffd\ufffd"),
        ("300 für nichts".encode(), "300 für nichts"),
        (b"200 " + b"x" * 3000, "200 " + "x" * 251),
        (b"", None),
        (b"\n300 too late\n", None),
    ],
)
def test_the_first_line_is_the_message_made_printable(
    tmp_path: Path, content: bytes, message: str | None
) -> None:
    machine = new_machine(new_state(tmp_path))
    (machine.directory / "joboutputs" / "shutdown_message").write_bytes(content)
    assert shutdown_message(machine) == message


def plant_link(path: Path) -> None:
    path.symlink_to("/etc/shadow")


def plant_gigabyte(path: Path) -> None:
    with path.open("wb") as opened:
        opened.truncate(1 << 30)


@pytest.mark.parametrize("plant", [plant_link, os.mkfifo, Path.mkdir, plant_gigabyte])
def test_a_planted_message_is_unreadable_the_factorys_counts(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    plant(machine.directory / "joboutputs" / "shutdown_message")
    assert shutdown_message(machine) == UNREADABLE
    set_shutdown_message(state, machine, "700 Idle")
    assert shutdown_message(machine) == "700 Idle"


def test_the_factory_does_not_overrule_the_machines_message(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    assert shutdown_message_time(machine) is None
    (machine.directory / "joboutputs" / "shutdown_message").write_bytes(b"200 Success")
    set_shutdown_message(state, machine, "700 Heartbeat file not updated")
    assert shutdown_message(machine) == "200 Success"


@pytest.mark.parametrize(
    ("written", "kept"),
    [(ENDED - 5, ENDED - 5), (0, CREATED), (ENDED + 10**6, ENDED)],
    ids=["honest", "old", "future"],
)
def test_the_message_is_kept_with_a_believable_time(tmp_path: Path, written: int, kept: int) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    path = machine.directory / "joboutputs" / "shutdown_message"
    path.write_bytes(b"200 Success")
    os.utime(path, (written, written))
    assert keep_shutdown_message(state, machine, ENDED) == "200 Success"
    path.unlink()
    assert shutdown_message(machine) == "200 Success"
    assert shutdown_message_time(machine) == kept


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
