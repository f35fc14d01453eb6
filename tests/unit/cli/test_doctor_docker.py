"""What `vac doctor` says of an engine of containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vac.cli.doctor_docker import disk_row, engine_rows, nested_rows, propagates

LOCAL = "unix:///var/run/docker.sock"
ROOT = "27 1 254:0 / / rw,relatime{} - ext4 /dev/vda rw\n"
CVMFS = "90 27 0:50 / /cvmfs rw,relatime{} - autofs /etc/auto.cvmfs rw\n"


@pytest.mark.parametrize("told", ["docker-init", "/opt/init"])
def test_containers_need_an_init(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    there = {told}
    monkeypatch.setattr("shutil.which", lambda name, path: name if name in there else None)
    rows = engine_rows({"InitBinary": told}, LOCAL, podman=False)
    assert (f"{told} of Docker", None, True) in [*rows]
    there.clear()
    missing = "isn't there, and no machine can be made: install tini"
    rows = engine_rows({"InitBinary": told}, LOCAL, podman=False)
    assert (f"{told} of Docker", missing, True) in [*rows]


def test_the_init_of_an_engine_elsewhere_can_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    url = "tcp://engine.example.com:2376"
    assert [*engine_rows({"LiveRestoreEnabled": True}, url, podman=False)] == [
        ("live-restore of Docker", None, False)
    ]
    assert [*engine_rows({}, LOCAL, podman=True)] == []


@pytest.mark.parametrize(("told", "noted"), [({"LiveRestoreEnabled": True}, False), ({}, True)])
def test_machines_that_end_with_dockerd_are_a_note(told: dict[str, Any], noted: bool) -> None:
    rows = {what: (problem, serious) for what, problem, serious in engine_rows(told, LOCAL, podman=False)}
    problem, serious = rows["live-restore of Docker"]
    assert (problem is not None, serious) == (noted, False)


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}, True),
        ({"Driver": "vfs"}, False),
        ({"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, False),
    ],
)
def test_layers_that_can_not_be_measured_are_a_note(told: dict[str, Any], known: bool) -> None:
    _, problem, serious = disk_row(told)
    assert ((problem is None), serious) == (known, False)


@pytest.mark.parametrize(
    ("mounts", "shared"),
    [
        (ROOT.format(" shared:1"), True),
        (ROOT.format(""), False),
        (ROOT.format(" shared:1") + CVMFS.format(""), False),
        (ROOT.format("") + CVMFS.format(" shared:9"), True),
        (ROOT.format("") + CVMFS.format(" master:9"), True),
        (CVMFS.format(" shared:9") + CVMFS.format(""), False),
        (ROOT.format(" shared:1") + CVMFS.format("").replace("/cvmfs", "/cvmfs-other"), True),
        ("", False),
    ],
)
def test_whether_later_mounts_come_through(mounts: str, shared: bool) -> None:
    assert propagates("/cvmfs", mounts) is shared


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces"),
        ("user/max_user_namespaces", "95000", None),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone"),
        ("kernel/unprivileged_userns_clone", "1", None),
    ],
)
def test_user_namespaces_that_are_switched_off_keep_nested_containers_from_being_made(
    tmp_path: Path, name: str, value: str, option: str | None
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n")
    found = [problem for _, problem, serious in nested_rows(tmp_path) if problem and serious]
    assert [problem.partition(" ")[0] for problem in found] == ([] if option is None else [option])


@pytest.mark.parametrize(("mode", "noted"), [(0o666, False), (0o600, True), (None, True)])
def test_image_files_in_nested_containers_need_fuse(tmp_path: Path, mode: int | None, noted: bool) -> None:
    fuse = tmp_path / "fuse"
    if mode is not None:
        fuse.touch()
        fuse.chmod(mode)
    ((_, problem, serious),) = nested_rows(tmp_path, fuse)
    assert (problem is not None, serious) == (noted, False)
