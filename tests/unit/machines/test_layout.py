"""Names, addresses, the reserve and the lock of a state directory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.unit.state_dirs import new_state
from vac.machines import files
from vac.machines.layout import (
    RESERVE_BYTES,
    DirectoryName,
    StateDir,
    StateDirBusy,
    parse_directory_name,
    slot_address,
    slot_name,
    slot_number,
)

FACTORY = "factory1.example.com"


@pytest.mark.parametrize(
    ("number", "name", "address"),
    [
        (0, "factory1-00.example.com", "169.254.169.0"),
        (7, "factory1-07.example.com", "169.254.169.7"),
        (100, "factory1-100.example.com", "169.254.169.100"),
        (252, "factory1-252.example.com", "169.254.169.252"),
        (253, "factory1-253.example.com", "169.254.170.0"),
        (254, "factory1-254.example.com", "169.254.170.1"),
        (509, "factory1-509.example.com", "169.254.171.0"),
    ],
)
def test_slots_have_classic_names_and_addresses_that_never_are_the_factorys(
    number: int, name: str, address: str
) -> None:
    assert slot_name(FACTORY, number) == name
    assert slot_number(FACTORY, name) == number
    assert slot_address(number) == address


@pytest.mark.parametrize(
    "name",
    [
        "factory1-0.example.com",
        "factory1-007.example.com",
        "factory2-00.example.com",
        "factory1-00",
        "x",
        "-",
        "",
    ],
)
def test_strangers_have_no_slot_number(name: str) -> None:
    assert slot_number(FACTORY, name) is None


def test_a_factory_name_with_dashes_and_digits_keeps_its_slots_apart() -> None:
    assert slot_number("vac-85.example.org", "vac-85-03.example.org") == 3
    assert slot_number("vac.example.org", "vac-85-03.example.org") is None


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (
            "1795219947_type-08_vac-85-08.example.org",
            DirectoryName(1795219947, "type-08", "vac-85-08.example.org"),
        ),
        ("1_a_host_with_underscores", DirectoryName(1, "a", "host_with_underscores")),
        ("1_a", None),
        ("x_a_b", None),
        ("1__b", None),
        ("lost+found", None),
    ],
)
def test_a_machines_directory_is_known_by_its_name(text: str, parsed: DirectoryName | None) -> None:
    assert parse_directory_name(text) == parsed
    if parsed is not None:
        assert str(parsed) == text


def test_prepare_makes_everything_with_the_right_modes_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        state = new_state(tmp_path)
    finally:
        os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.root.iterdir() if path.is_dir()}
    assert modes.pop("requests") == 0o700
    assert set(modes.values()) == {0o755}
    assert set(modes) >= {
        "slots",
        "machines",
        "finishes",
        "machinetypes",
        "apel-archive",
        "apel-outgoing",
        "tmp",
    }


def test_prepare_discards_what_is_in_tmp_and_touches_nothing_else(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    (state.tmp / "half" / "machine").mkdir(parents=True)
    (state.machines / "1_a_b").mkdir()
    state.apel_outgoing.chmod(0o775)
    state.prepare()
    state.prepare()
    assert [(path / "machine").is_dir() for path in files.trash(state.tmp)] == [True]
    assert list(state.tmp.iterdir()) == files.trash(state.tmp)
    assert (state.machines / "1_a_b").is_dir()
    assert stat.S_IMODE(state.apel_outgoing.stat().st_mode) == 0o775


def test_the_reserve_takes_real_space_and_is_given_up_once(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    assert state.reserve.stat().st_size == RESERVE_BYTES
    assert state.reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    assert state.release_reserve()
    assert not state.release_reserve()
    assert state.keep_reserve()
    assert state.reserve.stat().st_size == RESERVE_BYTES


def test_a_full_disk_without_room_for_the_reserve_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    state = new_state(tmp_path)
    assert not state.reserve.exists()
    assert not state.release_reserve()


def test_one_factory_process_per_state_dir(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    with state.lock():
        assert state.pid("factory").read_text() == f"{os.getpid()}\n"
        with pytest.raises(StateDirBusy, match=str(os.getpid())), StateDir(state.root).lock():
            pass
    with state.lock():
        pass


def test_a_shorter_process_number_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    state.pid("factory").write_text("123456789012\n")
    with state.lock():
        assert state.pid("factory").read_text() == f"{os.getpid()}\n"
