"""Our lines in /etc/hosts, and everybody else's."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from vac.host import hosts_file

THEIRS = "127.0.0.1 localhost\n# a comment \\ with %s\n\n::1 ip6-localhost"
LINES = [hosts_file.line(f"169.254.169.{number}", f"node1-0{number}.example.org") for number in range(2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(THEIRS)
    path.chmod(0o640)
    return path


def test_a_line_has_short_and_full_name() -> None:
    assert LINES[0] == "169.254.169.0 node1-00 node1-00.example.org # added by Vac"


def test_ours_come_to_theirs_once_and_go_again(path: Path) -> None:
    assert hosts_file.update(LINES, path)
    assert path.read_text() == THEIRS + "\n" + "".join(f"{line}\n" for line in LINES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    inode = path.stat().st_ino
    assert not hosts_file.update(LINES, path)
    assert path.stat().st_ino == inode
    assert hosts_file.update(LINES[1:], path)
    assert hosts_file.update([], path)
    assert path.read_text() == THEIRS + "\n"
    assert os.listdir(path.parent) == ["hosts"]  # noqa: PTH208


def test_strange_bytes_survive(path: Path) -> None:
    path.write_bytes(b"10.0.0.1 caf\xe9\r\n10.0.0.2 x # added by Vacuum\n")
    hosts_file.update(LINES, path)
    hosts_file.update([], path)
    assert path.read_bytes() == b"10.0.0.1 caf\xe9\r\n10.0.0.2 x # added by Vacuum\n"


def test_a_link_stays_a_link_and_a_missing_file_is_made(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to("elsewhere")
    assert hosts_file.update(LINES, link)
    assert link.is_symlink()
    assert path.with_name("elsewhere").read_text().count("added by Vac") == 2


def test_a_file_that_is_mounted_is_written_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    assert hosts_file.update(LINES, path)
    assert path.read_text().startswith(THEIRS)
    assert path.read_text().count("added by Vac") == 2
    assert os.listdir(path.parent) == ["hosts"]  # noqa: PTH208


def test_another_error_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        hosts_file.update(LINES, path)
    assert path.read_text() == THEIRS
    assert os.listdir(path.parent) == ["hosts"]  # noqa: PTH208
