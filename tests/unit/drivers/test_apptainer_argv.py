"""The command line of a Singularity/Apptainer machine, and telling whether its command runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.test_bubblewrap_argv import has, make_spec
from vac.drivers.base import MachineSpec
from vac.drivers.processes import apptainer

PARENT = b"Apptainer runtime parent: image.sif\0"
INIT = b"appinit\0\0\0\0"
FUSE = b"/usr/bin/squashfuse_ll\0-f\0-o\0allow_other,ro\0"
SCRIPT = b"/bin/sh\0/user_data\0"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "state/machinetypes/t/files/image").mkdir(parents=True)
    return tmp_path


def arguments(spec: MachineSpec) -> list[str]:
    return apptainer.command_line(apptainer.plan(spec, "/usr/bin/apptainer"))


def mounts(words: list[str]) -> dict[str, tuple[str, bool]]:
    """What is bound where: source, and whether it is read-only, by destination."""
    rows = csv.reader(word.partition("=")[2] for word in words if word.startswith("--mount="))
    found = {}
    for row in rows:
        fields = dict(entry.partition("=")[::2] for entry in row)
        assert fields["type"] == "bind"
        found[fields["destination"]] = fields["source"], "ro" in fields
    return found


def test_the_machine_gets_what_is_its_own(site: Path) -> None:
    options = {"tmp_binds": ("/scratch",), "cvmfs_repositories": ("a.b",), "token_dir": Path("/etc/t")}
    spec = make_spec(site, root_image="image", **options)
    words, own = arguments(spec), spec.directory
    assert has(words, "--hostname", spec.name)
    assert has(words, "--workdir", f"{own}/mnt")
    assert words[-2:] == [str(spec.files / "image"), "/user_data"]
    assert mounts(words) == {
        "/tmp/machinefeatures": (f"{own}/machinefeatures", True),
        "/tmp/jobfeatures": (f"{own}/jobfeatures", True),
        "/tmp/joboutputs": (f"{own}/joboutputs", False),
        "/user_data": (f"{own}/user_data", True),
        "/cvmfs": ("/cvmfs", True),
        "/etc/vac-tokens": ("/etc/t", True),
        "/scratch": (f"{own}/mnt/bind0", False),
    }


def test_places_may_have_any_name(site: Path) -> None:
    places = ('/a,b"c', "/d:e", "/f,ro", "/-g")
    found = mounts(arguments(make_spec(site, root_image="image", tmp_binds=places)))
    assert set(places) <= set(found)
    assert not any(found[place][1] for place in places)


@pytest.mark.parametrize(
    "image", ["docker://a", "library://a", "oras://a", "shub://a", "instance://a", "x://"]
)
def test_no_other_scheme_than_http_is_an_image(site: Path, image: str) -> None:
    with pytest.raises(ValueError, match="takes http:// and https:// URLs and paths only"):
        apptainer.plan(make_spec(site, root_image=image), "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"root_image": None}, "root_image is not set"),
        ({"root_image": "absent"}, r"files/absent can't be found"),
        ({"root_image": "/"}, "root_image / holds .*/state, which machines must not see"),
        ({"root_image": "../../.."}, "root_image .* holds .*/state, which machines must not see"),
    ],
)
def test_what_cannot_be_is_told(site: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        arguments(make_spec(site, **{"root_image": "image", **options}))


def test_a_state_dir_with_a_colon_or_comma_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a:b/state/machinetypes/t/files/image").mkdir(parents=True)
    with pytest.raises(ValueError, match="needs a state_dir without : and ,"):
        arguments(make_spec(tmp_path / "a:b", root_image="image"))


@pytest.mark.parametrize(
    ("others", "runs"),
    [
        ([], False),
        ([PARENT], False),
        ([PARENT, PARENT, FUSE], False),
        ([PARENT, INIT], False),
        ([PARENT, INIT, FUSE, b"", INIT], False),
        ([PARENT, INIT, FUSE, SCRIPT], True),
        ([b"Singularity runtime parent\0", b"sinit\0", SCRIPT], True),
    ],
)
def test_it_runs_when_a_process_is_the_machines_own(others: list[bytes], runs: bool) -> None:
    assert apptainer.running("", b"apptainer\0exec", others) is runs


@pytest.mark.parametrize(
    ("exit_code", "said", "ran"),
    [
        (0, "", True),
        (255, "", True),
        (1, "FATAL: the machine's own words", True),
        (255, "FATAL: stat /user_data: no such file or directory", False),
    ],
)
def test_an_ended_command_is_told_from_one_that_never_began(exit_code: int, said: str, ran: bool) -> None:
    assert apptainer.has_run("", exit_code, said) is ran
