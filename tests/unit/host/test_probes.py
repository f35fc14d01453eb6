"""Looks at disks, at health and below /cvmfs hold nobody up, however long they take."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from vac.drivers.base import CreationFailed, no_images
from vac.drivers.images import ImageFiles
from vac.host import probes
from vac.host.probes import BYTES_PER_INODE, DU, health_problem, measure_disk, problem_of

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def measure(directory: Path, *others: Path) -> int:
    return measure_disk("u0", [directory, *others]).used_bytes or 0


@pytest.mark.allow_subprocess
def test_disk_use_is_what_is_allocated(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(os.urandom(1_000_000))
    with (tmp_path / "sparse\nname").open("wb") as file:
        file.truncate(10**12)
    measured = measure(tmp_path)
    assert 1_000_000 <= measured < 1_200_000


@pytest.mark.allow_subprocess
def test_directories_are_measured_together_if_they_are_there(tmp_path: Path) -> None:
    own, layer = tmp_path / "own", tmp_path / "layer"
    for directory in (own, layer):
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(1_000_000))
    measured = measure(own, layer, tmp_path / "gone")
    assert 2_000_000 <= measured < 2_400_000


@pytest.mark.allow_subprocess
def test_many_empty_files_use_disk_too(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"f{number}").touch()
    measured = measure(tmp_path)
    assert measured == 1001 * BYTES_PER_INODE


@pytest.mark.allow_subprocess
def test_unlinked_files_that_are_open_use_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "machine_processes", lambda key: [os.getpid(), 2**22 + 1])
    with (tmp_path / "file").open("wb") as one, (tmp_path / "file").open("rb") as same:
        one.write(os.urandom(5_000_000))
        one.flush()
        same.read(1)
        (tmp_path / "file").unlink()
        measured = measure(tmp_path)
    assert 5_000_000 <= measured < 5_200_000


@pytest.mark.allow_subprocess
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (DU, "du can't measure /nowhere: nice failed (1): du: "),
        (("/not/there/program",), "du can't measure /nowhere: /not/there/program is not installed"),
    ],
)
def test_a_failed_measurement_is_told(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(OSError, match=re.escape(reason)):
        measure_disk("u0", [Path("/nowhere")], 60.0, command)


@pytest.mark.allow_subprocess
def test_what_takes_too_long_to_measure_is_unknown() -> None:
    assert measure_disk("u0", [Path("/nowhere")], 0.2, SLEEP).used_bytes is None


def check(path: Path, script: str, seconds: float = 10.0) -> str | None:
    command = path / "check"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return health_problem(command, seconds)


@pytest.mark.allow_subprocess
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo fine", None),
        ("echo no space on /scratch; echo more; exit 1", "no space on /scratch"),
        ("echo broken >&2; exit 3", "broken"),
        ("printf '\\377\\n'; exit 1", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_first_line_of_a_failing_check_is_the_reason(
    tmp_path: Path, script: str, problem: str | None
) -> None:
    assert check(tmp_path, script) == problem


@pytest.mark.allow_subprocess
def test_a_check_that_fails_silently_is_named(tmp_path: Path) -> None:
    assert check(tmp_path, "exit 7") == f"{tmp_path}/check failed (7) and said nothing"


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("leaves", ["sleep 1000", "setsid sleep 30"])
def test_a_check_that_takes_too_long_is_ended(tmp_path: Path, leaves: str) -> None:
    assert "took longer" in (check(tmp_path, f"{leaves} & sleep 1000", 0.2) or "")


@pytest.mark.allow_subprocess
def test_a_check_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert health_problem(tmp_path / "none") == f"{tmp_path}/none is not installed"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory that stands for /cvmfs."""
    place = tmp_path / "cvmfs"
    (place / "a.b/empty").mkdir(parents=True)
    (place / "a.b/file").write_text("it answers")
    monkeypatch.setattr(probes, "CVMFS", place)
    return place


@pytest.mark.allow_subprocess
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.b", None),
        ("a.b/file", None),
        ("a.b/empty", "is empty, so it isn't mounted"),
        ("c.d/file", "can't be read: No such file or directory"),
    ],
)
def test_a_path_below_cvmfs_answers_or_has_a_problem(place: Path, name: str, problem: str | None) -> None:
    assert problem_of(str(place / name)) == problem


@pytest.mark.allow_subprocess
def test_a_path_that_hangs_is_waited_for_no_longer_than_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_LOOK", "import time; time.sleep(600)")
    monkeypatch.setattr(probes, "ANSWER_SECONDS", 0.4)
    late = "doesn't answer within 0 s"
    image = str(place / "a.b/file")
    assert problem_of(image) == late
    with pytest.raises(CreationFailed, match=f"{image} {late}"):
        ImageFiles(no_images, lambda: None).held(image, None, place)


def test_paths_elsewhere_are_not_looked_at(place: Path) -> None:
    for path in ("/", "https://example.com/x", f"{place}/../file", f"{place}x"):
        assert problem_of(path) is None
