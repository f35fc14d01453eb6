"""A file or directory below /cvmfs is looked at by a child process, with a deadline."""

from __future__ import annotations

from pathlib import Path

import pytest

from vac.drivers.base import CreationFailed
from vac.drivers.images import ImageFiles
from vac.host import cvmfs
from vac.host.cvmfs import problem_of

HANGING = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where /cvmfs is."""
    place = tmp_path / "cvmfs"
    (place / "a.b/empty").mkdir(parents=True)
    (place / "a.b/file").write_text("it answers")
    monkeypatch.setattr(cvmfs, "CVMFS", place)
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
def test_what_is_there_answers(place: Path, name: str, problem: str | None) -> None:
    assert problem_of(str(place / name)) == problem


@pytest.mark.allow_subprocess
def test_what_hangs_is_waited_for_no_longer_than_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvmfs, "_LOOK", HANGING)
    monkeypatch.setattr(cvmfs, "ANSWER_SECONDS", 0.4)
    late = "doesn't answer within 0 s"
    image = str(place / "a.b/file")
    assert problem_of(image) == late
    with pytest.raises(CreationFailed, match=f"{image} {late}"):
        ImageFiles(None, lambda: None).path(image, None, place)


def test_other_paths_are_not_looked_at(place: Path) -> None:
    for path in ("/", "https://example.com/x", f"{place}/../file", f"{place}x"):
        assert problem_of(path) is None
