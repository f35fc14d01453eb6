"""What `vac doctor` says of CernVM-FS: what is needed of it, what answers, and whether later mounts get inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from vac.cli import doctor_cvmfs
from vac.cli.doctor_cvmfs import paths, rows
from vac.config.machinetype import Machinetype

WORKER = Machinetype("worker", machine_model="docker", cvmfs_repositories=("a.b", "c.d"))
IMAGE = Machinetype("image", machine_model="cernvm4", root_image="/cvmfs/c.d/image.iso")
LOCAL = Machinetype("local", machine_model="bubblewrap", root_image="/")
SHARED = "/cvmfs in containers"


@pytest.fixture(autouse=True)
def hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repository hangs."""
    answers = {"/cvmfs/c.d": "doesn't answer", "/cvmfs/c.d/image.iso": "doesn't answer"}
    monkeypatch.setattr(doctor_cvmfs, "problem_of", answers.get)


def test_repositories_and_images_that_do_not_answer_are_problems() -> None:
    found = {what: problem for what, problem, serious in rows([WORKER, IMAGE, LOCAL]) if serious}
    assert found == {
        "/cvmfs/a.b": None,
        "/cvmfs/c.d": "doesn't answer",
        "/cvmfs/c.d/image.iso": "doesn't answer",
    }
    assert [paths(one) for one in (IMAGE, LOCAL)] == [["/cvmfs/c.d", "/cvmfs/c.d/image.iso"], []]


@pytest.mark.parametrize("model", ["docker", "singularity", "bubblewrap"])
@pytest.mark.parametrize(("options", "noted"), [("shared:1", False), ("master:2", False), ("", True)])
def test_cvmfs_that_is_private_is_noted_where_containers_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, options: str, noted: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n90 27 0:50 / /cvmfs rw {options} - autofs x rw\n"
    )
    monkeypatch.setattr(doctor_cvmfs, "MOUNTS", mounts)
    one = Machinetype("t", machine_model=model, cvmfs_repositories=("a.b",))
    assert [problem is not None for what, problem, _ in rows([one]) if what == SHARED] == [noted]
    assert not [what for what, _, _ in rows([IMAGE, LOCAL]) if what == SHARED]
