"""Files that appear whole, what machines plant, trash, names, the reserve and the lock of a state directory."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.state_dirs import checkpoints, new_state
from vac.host.filesystems import parse_mounts
from vac.machines import files
from vac.machines.files import TrashCollector
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


def temporary(tmp_path: Path) -> Path:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    return tmp


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    tmp, target = temporary(tmp_path), tmp_path / "target"
    target.write_bytes(b"before")
    seen = []

    def look(step: str, path: Path) -> None:
        seen.append((step, target.read_bytes()))

    with checkpoints(look):
        files.write_atomic(target, b"after", tmp=tmp)
    assert seen == [
        ("write", b"before"),
        ("written", b"before"),
        ("rename", b"before"),
        ("renamed", b"after"),
    ]
    assert not list(tmp.iterdir())


def test_a_file_has_the_wanted_mode_and_time_whatever_the_umask(tmp_path: Path) -> None:
    tmp, target = temporary(tmp_path), tmp_path / "target"
    umask = os.umask(0o077)
    try:
        files.write_atomic(target, b"", tmp=tmp, mode=0o644, mtime=1000.0)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert target.stat().st_mtime == 1000.0


def test_a_secret_is_never_readable_while_it_is_written(tmp_path: Path) -> None:
    modes = []
    umask = os.umask(0)
    try:
        descriptors: list[int] = []
        original = os.write

        def watching(descriptor: int, content: bytes) -> int:
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            descriptors.append(descriptor)
            return original(descriptor, content)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", watching)
            files.write_new(tmp_path / "secret", b"key", mode=0o500)
    finally:
        os.umask(umask)
    assert modes == [0o600]


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp, target = temporary(tmp_path), tmp_path / "target"
    target.write_bytes(b"before")

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(target, b"after", tmp=tmp)
    assert target.read_bytes() == b"before"
    assert not list(tmp.iterdir())


def plant_link(directory: Path) -> None:
    (directory / "x").symlink_to("/etc/shadow")


def plant_fifo(directory: Path) -> None:
    os.mkfifo(directory / "x")


def plant_directory(directory: Path) -> None:
    (directory / "x").mkdir()


def plant_gigabyte(directory: Path) -> None:
    with (directory / "x").open("wb") as opened:
        opened.truncate(1 << 30)


def plant_device(directory: Path) -> None:
    os.mknod(directory / "x", stat.S_IFCHR | 0o666, os.makedev(1, 5))


def plant_loop(directory: Path) -> None:
    (directory / "x").symlink_to("x")


PLANTED = [plant_link, plant_fifo, plant_directory, plant_gigabyte, plant_loop]
if os.geteuid() == 0:
    PLANTED.append(plant_device)


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_small_regular_file_is_unreadable(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path)
    with pytest.raises(files.Unreadable):
        files.read_untrusted(tmp_path, "x", 4096)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b"])
def test_a_name_with_a_path_in_it_is_unreadable(tmp_path: Path, name: str) -> None:
    with pytest.raises(files.Unreadable):
        files.read_untrusted(tmp_path, name, 4096)


def test_a_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"secret")
    (tmp_path / "joboutputs").symlink_to("real")
    with pytest.raises(files.Unreadable):
        files.read_untrusted(tmp_path / "joboutputs", "x", 4096)


def test_small_files_of_any_name_are_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "odd\nname").write_bytes(b"12345")
    assert files.read_untrusted(tmp_path, "odd\nname", 5) == b"12345"
    with pytest.raises(files.Unreadable):
        files.read_untrusted(tmp_path, "odd\nname", 4)
    with pytest.raises(FileNotFoundError):
        files.read_untrusted(tmp_path, "other", 5)


def test_the_time_of_a_planted_link_is_not_that_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").symlink_to("/etc/passwd")
    with pytest.raises(files.Unreadable):
        files.untrusted_mtime(tmp_path, "heartbeat")


@pytest.mark.allow_subprocess
def test_removal_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"")
    doomed = tmp_path / "doomed"
    (doomed / "joboutputs").mkdir(parents=True)
    (doomed / "joboutputs" / "link").symlink_to(tmp_path / "precious")
    (doomed / "direct").symlink_to(tmp_path / "precious")
    files.remove_tree(doomed)
    assert not doomed.exists()
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.allow_subprocess
def test_a_link_in_place_of_the_directory_is_removed_itself(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "doomed").symlink_to("precious")
    files.remove_tree(tmp_path / "doomed")
    files.remove_tree(tmp_path / "doomed")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.allow_subprocess
def test_removal_copes_with_odd_names_modes_and_kinds(tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    for name in ("a\nb", "closed", "\udcff", "-rf"):
        (doomed / "joboutputs" / name / "deeper" / "still").mkdir(parents=True)
        (doomed / "joboutputs" / name / "deeper" / "file").write_bytes(b"")
    os.mkfifo(doomed / "joboutputs" / "fifo")
    (doomed / "joboutputs" / "closed" / "deeper").chmod(0)
    (doomed / "joboutputs" / "closed").chmod(0)
    (doomed / "joboutputs").chmod(0o500)
    files.remove_tree(doomed)
    assert not list(tmp_path.iterdir())


@pytest.mark.allow_subprocess
@pytest.mark.timeout(600)
def test_a_very_deep_tree_exhausts_neither_stack_nor_descriptors() -> None:
    # Not in tmp_path: pytest would recurse into what a failure leaves there, at the end of some later run.
    home = Path(tempfile.mkdtemp(prefix="vac-test-"))
    top = home / "doomed"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(2 * sys.getrecursionlimit()):
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    files.remove_tree(top)
    home.rmdir()


@pytest.mark.allow_subprocess
def test_a_removal_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/directory")
    with pytest.raises(OSError, match="rm is not installed"):
        files.remove_tree(tmp_path)
    assert tmp_path.exists()


@pytest.mark.allow_subprocess
def test_nothing_is_removed_while_anything_is_mounted_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doomed/mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)
    text = "90 27 7:1 / {} rw,nosuid - ext4 /dev/mapper/group-a rw\n"
    monkeypatch.setattr(files, "mounts", lambda: [*parse_mounts(text.format(f"{tmp_path}/doomed/mnt"))])
    for path in (tmp_path / "doomed", tmp_path / "link/doomed", tmp_path / "doomed/mnt"):
        with pytest.raises(OSError, match="something is mounted there"):
            files.remove_tree(path)
    monkeypatch.setattr(files, "mounts", lambda: [*parse_mounts(text.format(f"{tmp_path}/doomed-not"))])
    files.remove_tree(tmp_path / "link/doomed")
    assert not (tmp_path / "doomed").exists()


def test_a_discarded_directory_is_gone_before_it_is_emptied(tmp_path: Path) -> None:
    tmp, doomed = temporary(tmp_path), tmp_path / "doomed"
    (doomed / "sub").mkdir(parents=True)
    files.discard(doomed, tmp=tmp)
    assert not doomed.exists()
    assert [(path / "sub").is_dir() for path in files.trash(tmp)] == [True]


def discarded(state: StateDir, name: str, depth: int = 1) -> None:
    path = state.machines / name
    path.joinpath(*"d" * depth).mkdir(parents=True)
    files.discard(path, tmp=state.tmp)
    assert not path.exists()


def at_once(work: Callable[[], None], name: str) -> None:
    work()


def test_all_that_was_discarded_goes_and_nothing_else(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    discarded(state, "a")
    discarded(state, "b")
    (state.tmp / "being-written").touch()
    TrashCollector(state.tmp, at_once).start()
    assert [path.name for path in state.tmp.iterdir()] == ["being-written"]


def test_a_failing_removal_holds_up_nothing_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    discarded(state, "mounted")
    (mounted,) = files.trash(state.tmp)
    discarded(state, "other")
    failures, remove_tree = 3, files.remove_tree

    def remove(path: Path) -> None:
        nonlocal failures
        if path == mounted and failures:
            failures -= 1
            raise OSError("something is mounted there")
        remove_tree(path)

    monkeypatch.setattr(files, "remove_tree", remove)
    collector = TrashCollector(state.tmp, at_once)
    for _ in range(3):
        collector.start()
        assert len(list(state.tmp.iterdir())) == 1, "it holds up nobody"
    assert caplog.text.count("can't be removed now") == 1
    collector.start()
    assert not list(state.tmp.iterdir())


def test_discarding_never_waits_and_all_goes_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state(tmp_path)
    begun, gate, gone = threading.Event(), threading.Event(), threading.Event()
    remove_tree = files.remove_tree

    def slow(path: Path) -> None:
        begun.set()
        assert gate.wait(60)
        remove_tree(path)
        if not files.trash(state.tmp):
            gone.set()

    monkeypatch.setattr(files, "remove_tree", slow)
    collector = TrashCollector(state.tmp)
    discarded(state, "a")
    collector.start()
    assert begun.wait(60)
    discarded(state, "b")
    collector.start()
    gate.set()
    assert gone.wait(60)


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
def test_slots_have_classic_names_and_never_its_own_addresses(number: int, name: str, address: str) -> None:
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


def test_slots_of_a_name_with_dashes_and_digits_are_apart() -> None:
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


def test_prepare_sets_the_right_modes_whatever_the_umask(tmp_path: Path) -> None:
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


def test_prepare_discards_what_is_in_tmp_and_nothing_else(tmp_path: Path) -> None:
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
    tried: list[bool] = []

    def write() -> None:
        tried.append(state.reserve.exists())
        if len(tried) != 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    state.spending_reserve(write)
    assert tried == [True, False]
    with pytest.raises(OSError, match="No space left"):
        state.spending_reserve(write)
    assert tried == [True, False, False]
    state.keep_reserve()
    assert state.reserve.stat().st_size == RESERVE_BYTES


def test_a_full_disk_without_room_for_the_reserve_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    state = new_state(tmp_path)
    assert not state.reserve.exists()


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
