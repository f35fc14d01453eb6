"""The ends of process machines are told, and their console logs don't fill the disk."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vac.drivers.processes import machine_watch
from vac.drivers.processes.machine_watch import KEPT_BYTES, SLACK_BYTES, MachineWatcher, close_up, limit
from vac.host.cgroups import GroupsV2

MOST = 2 * KEPT_BYTES + SLACK_BYTES


def used(log: Path) -> int:
    return log.stat().st_blocks * 512


def test_the_beginning_and_the_end_of_a_large_log_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    writer = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(writer, b"begin\n")
    for number in range(40):
        os.write(writer, bytes([65 + number % 26]) * 1_000_000)
        limit(log)
        assert used(log) <= MOST + 1_000_000
    os.write(writer, b"end\n")
    os.close(writer)
    close_up(log)
    content = log.read_bytes()
    assert content.startswith(b"begin\nAAA")
    assert content.endswith(b"NNN" + b"end\n")
    left_out = 40_000_010 - 2 * KEPT_BYTES
    assert f"\n[{left_out} bytes were left out here]\n".encode() in content
    assert len(content) < 2 * KEPT_BYTES + 100
    assert not (tmp_path / ".console.log.short").exists()


def test_a_log_that_is_not_too_large_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * MOST)
    limit(log)
    close_up(log)
    assert log.read_bytes() == b"x" * MOST


def test_a_log_that_was_blown_up_by_its_machine_is_closed_up(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"begin")
    os.truncate(log, 2 * 10**12)
    limit(log)
    close_up(log)
    assert log.stat().st_size < 2 * KEPT_BYTES + 100


def test_all_logs_are_limited_and_absent_ones_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_watch, "LOOK_SECONDS", 0.01)
    seen = threading.Event()

    def directories() -> list[Path]:
        if used(large) <= MOST:
            seen.set()
        return [tmp_path / "gone", tmp_path / "own"]

    large = tmp_path / "own/console.log"
    large.parent.mkdir()
    large.write_bytes(b"x" * (MOST + 10_000_000))
    (tmp_path / "cgroup.controllers").touch()
    watcher = MachineWatcher(GroupsV2(tmp_path, "f1"), directories)
    listener = threading.Thread(target=lambda: list(watcher.ends()))
    listener.start()
    assert seen.wait(60)
    watcher.close()
    listener.join(60)
    assert not listener.is_alive()
