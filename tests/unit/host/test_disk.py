"""Measuring a directory never holds anybody up, however long it takes."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vac.host.disk import DU, DiskMeasured, DiskMessage, DiskMeter, DiskNotMeasured

pytestmark = pytest.mark.allow_subprocess


@pytest.fixture
def messages() -> Iterator[queue.SimpleQueue[DiskMessage]]:
    yield queue.SimpleQueue()


def measure(
    messages: queue.SimpleQueue[DiskMessage], directory: Path, *command: str, others: Sequence[Path] = ()
) -> DiskMessage:
    meter = DiskMeter(messages.put, 0.2 if command else 60.0, command or DU)
    meter.start("u0", directory, *others)
    message = messages.get(timeout=60)
    meter.close()
    return message


def test_use_is_what_is_allocated(messages: queue.SimpleQueue[DiskMessage], tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(os.urandom(1_000_000))
    with (tmp_path / "sparse\nname").open("wb") as file:
        file.truncate(10**12)
    measured = measure(messages, tmp_path)
    assert isinstance(measured, DiskMeasured)
    assert 1_000_000 <= measured.used_bytes < 1_200_000


def test_all_directories_are_measured_together_as_far_as_they_are_there(
    messages: queue.SimpleQueue[DiskMessage], tmp_path: Path
) -> None:
    own, layer = tmp_path / "own", tmp_path / "layer"
    for directory in (own, layer):
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(1_000_000))
    measured = measure(messages, own, others=[layer, tmp_path / "gone"])
    assert isinstance(measured, DiskMeasured)
    assert 2_000_000 <= measured.used_bytes < 2_400_000


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((), "can't measure /nowhere: exit code 1"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "du of /nowhere took over 0 s"),
        (("/not/there/program",), "can't start /not/there/program: No such file or directory"),
    ],
)
def test_failure_is_told(
    messages: queue.SimpleQueue[DiskMessage], command: tuple[str, ...], reason: str
) -> None:
    failed = measure(messages, Path("/nowhere"), *command)
    assert isinstance(failed, DiskNotMeasured)
    assert reason in failed.reason


def test_asking_twice_measures_once(messages: queue.SimpleQueue[DiskMessage], tmp_path: Path) -> None:
    meter = DiskMeter(messages.put, 0.2, (sys.executable, "-c", "import time; time.sleep(60)"))
    meter.start("u0", tmp_path)
    meter.start("u0", tmp_path)
    meter.start("u1", tmp_path)
    assert [messages.get(timeout=60).key for _ in range(2)] == ["u0", "u1"]
    meter.close()
