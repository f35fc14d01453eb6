"""tools/bootstrap with a package system of the test's own: what it installs, and what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parents[2] / "tools" / "bootstrap"
ENTRIES = [
    entry
    for line in re.findall(r"^(?:run|test) +(.*)$", BOOTSTRAP.read_text(), re.MULTILINE)
    for entry in line.split()
]
KNOWN = {name for entry in ENTRIES for name in entry.lstrip("?").split("|")}
ALL = {entry.lstrip("?").split("|")[0] for entry in ENTRIES}
NEWER = {"docker-cli", "docker-ce-cli", "virtiofsd"}
"""Not in Debian 12 by these names."""
COMMANDS = {
    "dpkg-query": "printf 'config-files/gcc '; for each in $(cat installed); do printf 'installed/%s ' $each; done",
    "apt-cache": "cat known",
    "apt-get": 'shift 5; echo "$*" >>asked; [ "$1" = update ] || { shift 3; echo "$*" >>installed; }',
    "id": "echo $USER_ID",
    "flock": "exit 0",
    "python3": "grep -q '\\<python3\\>' installed",
    "install-apptainer": "echo proved >&2",
}

pytestmark = pytest.mark.allow_subprocess


def bootstrap(
    directory: Path,
    installed: Collection[str],
    known: Collection[str] = KNOWN,
    user_id: int = 0,
    purpose: str = "test",
    path: str = os.defpath,
    absent: Collection[str] = (),
    apt: str = COMMANDS["apt-get"],
) -> tuple[int, str, list[str]]:
    """Exit code, messages, and how apt-get was called."""
    for name, script in {**COMMANDS, "apt-get": apt}.items():
        if name in absent:
            continue
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    shutil.copy(BOOTSTRAP, directory)
    (directory / "installed").write_text("\n".join(["python3", *installed]) + "\n")
    (directory / "known").write_text("\n".join(known) + "\n")
    (directory / "asked").write_text("")
    done = subprocess.run(
        ["/bin/sh", directory / "bootstrap", purpose],
        cwd=directory,
        env={"PATH": f"{directory}:{path}", "USER_ID": str(user_id)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout, (directory / "asked").read_text().splitlines()


def test_nothing_missing_needs_neither_root_nor_a_mirror(tmp_path: Path) -> None:
    assert bootstrap(tmp_path, ALL, user_id=1000) == (0, "proved\n", [])


@pytest.mark.parametrize("missing", [{"libvirt-dev"}, {"gcc"}, {"libc6-dev", "kmod"}])
def test_missing_packages_are_installed_and_named(missing: set[str], tmp_path: Path) -> None:
    status, said, asked = bootstrap(tmp_path, ALL - missing)
    assert status == 0
    assert asked[0] == "update"
    assert set(asked[1].split()) == {"install", "--yes", "--no-install-recommends", *missing}
    assert asked[1] in said
    assert said.endswith("proved\n")


@pytest.mark.parametrize(
    ("installed", "known", "wanted"),
    [
        (ALL - NEWER, KNOWN - NEWER, set()),
        (ALL - NEWER, KNOWN, {"docker-cli", "virtiofsd"}),
        (ALL - {"pkgconf"} | {"pkg-config"}, KNOWN, set()),
        (ALL - {"pkgconf"}, KNOWN - {"pkgconf"}, {"pkg-config"}),
        (ALL - {"docker.io", "docker-cli"} | {"docker-ce", "docker-ce-cli"}, KNOWN, set()),
    ],
    ids=["Debian 12", "Debian 13", "other name", "other name only", "Docker's own packages"],
)
def test_names_are_those_of_the_release(
    installed: set[str], known: set[str], wanted: set[str], tmp_path: Path
) -> None:
    status, _, asked = bootstrap(tmp_path, installed, known)
    assert status == 0
    assert {package for line in asked[1:] for package in line.split()[3:]} == wanted


@pytest.mark.parametrize(
    ("purpose", "wanted"),
    [
        ("run", {"bubblewrap", "openssl"}),
        ("fresh", {"debian-archive-keyring", "debootstrap", "git", "mount"}),
        ("browser", {"chromium"}),
    ],
)
def test_other_purposes_need_less_than_tests(purpose: str, wanted: set[str], tmp_path: Path) -> None:
    status, said, asked = bootstrap(tmp_path, (), purpose=purpose)
    assert status == 0
    assert set(asked[1].split()[3:]) == wanted
    assert "proved" not in said


def test_who_is_not_root_is_told_what_to_install(tmp_path: Path) -> None:
    status, said, asked = bootstrap(tmp_path, ALL - {"podman"}, user_id=1000)
    assert (status, asked) == (1, [])
    assert "as root please: apt-get install podman\n" in said


def test_elsewhere_than_on_debian_packages_are_only_named(tmp_path: Path) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for name in ("cat", "echo", "sed", "xargs"):
        (path / name).symlink_to(shutil.which(name, path=os.defpath) or name)
    status, said, _ = bootstrap(tmp_path, (), path=str(path), absent=("dpkg-query", "apt-get", "apt-cache"))
    assert status == 0
    assert "not a Debian system" in said
    assert set(re.split(r"[\s|?]+", said)) >= ALL


def test_what_apt_says_is_shown_when_it_fails(tmp_path: Path) -> None:
    status, said, _ = bootstrap(tmp_path, ALL - {"podman"}, apt="echo E: no such mirror >&2; exit 100")
    assert status == 1
    assert "E: no such mirror" in said
    assert "proved" not in said


def test_a_package_that_did_not_come_is_named(tmp_path: Path) -> None:
    status, said, _ = bootstrap(tmp_path, ALL - {"podman"}, apt="exit 0")
    assert (status, said.splitlines()[-1]) == (
        1,
        "tools/bootstrap: still missing after apt-get install: podman",
    )
