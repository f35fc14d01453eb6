"""Looks at disks, at health and below /cvmfs hold nobody up, however long they take."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vac.drivers.base import CreationFailed
from vac.drivers.images import ImageFiles
from vac.host import probes
from vac.host.child_processes import Finished
from vac.host.probes import (
    AT_ONCE,
    BYTES_PER_INODE,
    DU,
    DiskMeasured,
    DiskMessage,
    DiskMeter,
    DiskNotMeasured,
    HealthCheck,
    HealthChecked,
    RepositorySeen,
    RepositoryWatch,
    problem_of,
)

PATIENCE = 60
MANY = [f"r{number:03d}" for number in range(2 * AT_ONCE)]
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def measure(directory: Path, *command: str, others: Sequence[Path] = ()) -> DiskMessage:
    messages: queue.SimpleQueue[DiskMessage] = queue.SimpleQueue()
    meter = DiskMeter(messages.put, 0.2 if command else 60.0, command or DU)
    meter.start("u0", directory, *others)
    return messages.get(timeout=PATIENCE)


@pytest.mark.allow_subprocess
def test_disk_use_is_what_is_allocated(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(os.urandom(1_000_000))
    with (tmp_path / "sparse\nname").open("wb") as file:
        file.truncate(10**12)
    measured = measure(tmp_path)
    assert isinstance(measured, DiskMeasured)
    assert 1_000_000 <= measured.used_bytes < 1_200_000


@pytest.mark.allow_subprocess
def test_directories_are_measured_together_if_they_are_there(tmp_path: Path) -> None:
    own, layer = tmp_path / "own", tmp_path / "layer"
    for directory in (own, layer):
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(1_000_000))
    measured = measure(own, others=[layer, tmp_path / "gone"])
    assert isinstance(measured, DiskMeasured)
    assert 2_000_000 <= measured.used_bytes < 2_400_000


@pytest.mark.allow_subprocess
def test_many_empty_files_use_disk_too(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"f{number}").touch()
    measured = measure(tmp_path)
    assert isinstance(measured, DiskMeasured)
    assert measured.used_bytes == 1001 * BYTES_PER_INODE


@pytest.mark.allow_subprocess
def test_unlinked_files_that_are_open_use_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "machine_processes", lambda key: [os.getpid(), 2**22 + 1])
    with (tmp_path / "file").open("wb") as one, (tmp_path / "file").open("rb") as same:
        one.write(os.urandom(5_000_000))
        one.flush()
        same.read(1)
        (tmp_path / "file").unlink()
        measured = measure(tmp_path)
    assert isinstance(measured, DiskMeasured)
    assert 5_000_000 <= measured.used_bytes < 5_200_000


@pytest.mark.allow_subprocess
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((), "du can't measure /nowhere: nice failed (1): du: "),
        (SLEEP, "du of /nowhere took over 0 s"),
        (("/not/there/program",), "du can't measure /nowhere: /not/there/program is not installed"),
    ],
)
def test_a_failed_measurement_is_told(command: tuple[str, ...], reason: str) -> None:
    failed = measure(Path("/nowhere"), *command)
    assert isinstance(failed, DiskNotMeasured)
    assert failed.reason.startswith(reason)


@pytest.mark.allow_subprocess
def test_asking_twice_measures_once(tmp_path: Path) -> None:
    messages: queue.SimpleQueue[DiskMessage] = queue.SimpleQueue()
    meter = DiskMeter(messages.put, 0.2, SLEEP)
    for key in ("u0", "u0", "u1"):
        meter.start(key, tmp_path)
    assert [messages.get(timeout=PATIENCE).key for _ in range(2)] == ["u0", "u1"]


def check(path: Path, script: str, seconds: float = 10.0) -> str | None:
    command = path / "check"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    told: queue.SimpleQueue[HealthChecked] = queue.SimpleQueue()
    HealthCheck(told.put, seconds).start(command)
    return told.get(timeout=PATIENCE).problem


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
    told: queue.SimpleQueue[HealthChecked] = queue.SimpleQueue()
    HealthCheck(told.put).start(tmp_path / "none")
    assert told.get(timeout=PATIENCE).problem == f"{tmp_path}/none is not installed"


class Looks:
    """Looks at repositories that hang until they are let go."""

    def __init__(self) -> None:
        self.started: queue.Queue[str] = queue.Queue()
        self.go = threading.Event()

    def __call__(self, path: Path, _: float | None) -> Finished:
        self.started.put(path.name)
        assert self.go.wait(PATIENCE)
        return Finished(0)

    def begun(self, number: int) -> list[str]:
        return sorted(self.started.get(timeout=PATIENCE) for _ in range(number))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    looks = Looks()
    monkeypatch.setattr(probes, "_look", looks)
    yield looks
    looks.go.set()


def test_only_so_many_repositories_are_looked_at_together(looks: Looks) -> None:
    seen: queue.Queue[RepositorySeen] = queue.Queue()
    watch = RepositoryWatch(seen.put)
    watch.look(MANY)
    watch.look(MANY)
    assert looks.begun(AT_ONCE) == MANY[:AT_ONCE]
    assert looks.started.empty()
    looks.go.set()
    answers = [seen.get(timeout=PATIENCE) for _ in MANY]
    assert sorted(each.repository for each in answers) == MANY
    assert {each.problem for each in answers} == {None}
    assert looks.begun(AT_ONCE) == MANY[AT_ONCE:]


def test_repositories_that_hang_make_room_but_not_without_end(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MOST_HANGING", len(MANY))
    seen: queue.Queue[RepositorySeen] = queue.Queue()
    watch = RepositoryWatch(seen.put, 0.2)
    more = [*MANY, *(f"s{number:03d}" for number in range(2 * AT_ONCE))]
    watch.look(more)
    problems = [seen.get(timeout=PATIENCE).problem for _ in MANY]
    assert problems == len(MANY) * ["doesn't answer within 0 s"]
    watch.look(more)
    assert len(MANY) <= looks.started.qsize() < len(more), "those that were under way, and no more"
    looks.go.set()
    answers: set[str] = set()
    while len(answers) < len(more):
        answer = seen.get(timeout=PATIENCE)
        if answer.problem is None:
            answers.add(answer.repository)


def test_a_thread_that_can_not_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    seen: list[RepositorySeen] = []
    watch = RepositoryWatch(seen.append)
    for _ in range(2):
        watch.look(["a.b"])
    assert seen == 2 * [RepositorySeen("a.b", "can't be looked at: can't start new thread")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where /cvmfs is."""
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
        ImageFiles(None, lambda: None).path(image, None, place)


def test_paths_elsewhere_are_not_looked_at(place: Path) -> None:
    for path in ("/", "https://example.com/x", f"{place}/../file", f"{place}x"):
        assert problem_of(path) is None
