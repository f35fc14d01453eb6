"""Versions of files, and mountinfo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vac.host.filesystems import Mount, mount_of, mounts, other_paths, parse_mounts, stamp_of

TEXT = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 8:2 /vac /var/lib/vac rw,nosuid shared:2 master:1 - xfs /dev/sdb1 rw,noquota
41 22 0:40 / /mnt/with\040blank rw - tmpfs none rw,size=1024k
42 22 0:41 / /mnt rw - tmpfs a\011b rw
"""


def test_mountinfo_is_read_with_its_escapes() -> None:
    found = list(parse_mounts(TEXT))
    assert found[1] == Mount(
        "8:2",
        "/vac",
        "/var/lib/vac",
        frozenset(["rw", "nosuid"]),
        frozenset(["shared:2", "master:1"]),
        "xfs",
        "/dev/sdb1",
        frozenset(["rw", "noquota"]),
    )
    assert (found[2].point, found[3].source, found[2].propagation) == ("/mnt/with blank", "a\tb", frozenset())


def test_the_mount_that_holds_a_path_is_the_deepest_and_latest() -> None:
    found = [*parse_mounts(TEXT), *parse_mounts("43 22 0:42 / /mnt rw - tmpfs later rw\n")]
    assert [mount_of(path, found).point for path in ("/var/lib/vac/x", "/var/lib/vacuum", "/")] == [  # type: ignore[union-attr]
        "/var/lib/vac",
        "/",
        "/",
    ]
    assert mount_of("/mnt/x", found).source == "later"  # type: ignore[union-attr]
    assert mount_of("/x", []) is None


@pytest.mark.parametrize(
    ("more", "path", "places"),
    [
        ("", "/var/lib/vac", []),
        ("50 22 8:2 /vac /srv/alias rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", ["/srv/alias"]),
        ("50 22 8:2 / /disk rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", ["/disk/vac"]),
        ("50 22 8:2 /vac/machines/m /srv/m rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", ["/srv/m"]),
        ("50 22 8:2 /vacuum /srv/other rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", []),
        ("50 22 8:1 / /sysroot rw - ext4 /dev/sda1 rw\n", "/root", ["/sysroot/root"]),
        ("50 22 8:1 /root/a /srv/a rw - ext4 /dev/sda1 rw\n", "/root", ["/srv/a"]),
        (
            "50 40 8:3 / /var/lib/vac/machines rw - xfs c rw\n51 22 8:3 /m1 /srv/m1 rw - xfs c rw\n",
            "/var/lib/vac",
            ["/srv/m1"],
        ),
    ],
)
def test_other_ways_to_a_directory_are_found(more: str, path: str, places: list[str]) -> None:
    assert other_paths(path, list(parse_mounts(TEXT + more))) == places


def test_this_host_has_proc() -> None:
    assert any(mount.point == "/proc" and mount.kind == "proc" for mount in mounts())


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    first = stamp_of(file)
    with file.open() as opened:
        assert stamp_of(opened.fileno()) == first == stamp_of(str(file))
    os.utime(file, ns=(5, 5))
    assert stamp_of(file) != first
    assert stamp_of(file).mtime_ns == 5
