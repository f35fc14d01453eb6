"""Disks: sparse files, images that refer to other files, and what LVM is told and has told."""

from __future__ import annotations

import json
import os
import queue
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vac.config.settings import Settings
from vac.drivers.base import CreationFailed
from vac.drivers.libvirt.disks import make_sparse, open_image, overlay_command, remove_names
from vac.drivers.libvirt.domain_xml import Image
from vac.drivers.libvirt.volumes import (
    DEFAULT_GROUP,
    GROUP_LOOK_SECONDS,
    Group,
    GroupFinder,
    Volume,
    Wiper,
    group_in_use,
    make_volume,
    read_group,
    remove_volume,
    run_lvm,
    volume_bytes,
)

SETTINGS = Settings(factory_name="factory1.example.com", total_processors=8)
NAME, UUID = "factory1-00.example.com", "5b4e6c1a"
EXTENT = 4 * 1024 * 1024
GROUP_REPORT = """
  {
      "report": [
          {
              "vg": [
                  {"vg_size":"1000203091968", "vg_extent_size":"4194304"}
              ]
          }
      ]
  }
"""
VOLUMES_REPORT = """
  {
      "report": [
          {
              "lv": [
                  {"lv_name":"root", "lv_size":"200001191936", "lv_tags":""},
                  {"lv_name":"factory1-00.example.com", "lv_size":"100000595968", "lv_tags":"vac.uuid=5b4e6c1a"},
                  {"lv_name":"factory1-01.example.com", "lv_size":"100000595968", "lv_tags":"a,vac.uuid=77"}
              ]
          }
      ]
  }
"""


OWNERS_REPORT = """
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"debian", "lv_name":"root", "lv_tags":""},
                  {"vg_name":"old", "lv_name":"factory1-00.example.com", "lv_tags":"vac.uuid=5b4e6c1a"},
                  {"vg_name":"vg", "lv_name":"factory1-00.example.com", "lv_tags":"vac.uuid=0815"},
                  {"vg_name":"vg", "lv_name":"factory1-01.example.com", "lv_tags":"a,vac.uuid=77"}
              ]
          }
      ]
  }
"""


class Lvm:
    """Answers as recorded, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> str:
        if command[0] in ("vgs", "lvs"):
            if "vg_name,lv_name,lv_tags" in command:
                return OWNERS_REPORT
            return GROUP_REPORT if command[0] == "vgs" else VOLUMES_REPORT
        self.told.append(list(command))
        return ""

    def wipe(self, path: Path) -> None:
        self.told.append(["wipe", str(path)])


def test_a_sparse_file_takes_no_room(tmp_path: Path) -> None:
    path = make_sparse(tmp_path / "root.img", 10**12)
    assert (path.stat().st_size, path.stat().st_blocks) == (10**12, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    remove_names([path, path])
    assert not path.exists()


def qcow2(backing_offset: int = 0, incompatible: int = 0, version: int = 3) -> bytes:
    header = struct.pack(">4sIQI", b"QFI\xfb", version, backing_offset, 0)
    return header.ljust(72, b"\0") + incompatible.to_bytes(8, "big") + bytes(100)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "raw"), (b"\x33\xed" * 100, "raw"), (qcow2(), "qcow2"), (qcow2(version=2), "qcow2")],
)
def test_an_images_format(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    path.chmod(0o600)
    assert open_image(path) == Image(path, expected, readable=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (qcow2(backing_offset=104), "refers to another file"),
        (qcow2(incompatible=4), "refers to another file"),
        (qcow2()[:40], "cut off"),
    ],
)
def test_an_image_that_refers_to_the_hosts_files_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(content)
    with pytest.raises(CreationFailed, match=reason):
        open_image(path)


def test_only_a_regular_file_is_an_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(CreationFailed, match="is no regular file"):
            open_image(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_image(tmp_path / "directory")


def test_a_link_out_of_cvmfs_is_no_image(tmp_path: Path) -> None:
    repository = tmp_path / "cvmfs/a.example.com"
    repository.mkdir(parents=True)
    (tmp_path / "shadow").write_text("secret")
    (repository / "image").write_text("")
    (repository / "inner").symlink_to("image")
    (repository / "outer").symlink_to("../../shadow")
    cvmfs = str(tmp_path / "cvmfs")
    assert open_image(repository / "inner", cvmfs).path == repository / "image"
    with pytest.raises(CreationFailed, match=r"is a link to .*/shadow; one below .* must not leave it"):
        open_image(repository / "outer", cvmfs)


def test_an_overlay_names_the_format_of_what_is_below_it() -> None:
    command = overlay_command(Image(Path("/i"), "qcow2"), Path("/o"))
    assert command == ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "/i", "/o"]


def test_lvms_report() -> None:
    assert read_group(GROUP_REPORT, VOLUMES_REPORT) == Group(
        1000203091968,
        EXTENT,
        (
            Volume("root", 200001191936, ()),
            Volume(NAME, 100000595968, ("vac.uuid=5b4e6c1a",)),
            Volume("factory1-01.example.com", 100000595968, ("a", "vac.uuid=77")),
        ),
    )


@pytest.mark.parametrize("report", ["", "[]", json.dumps({"report": [{"vg": []}]}), '{"report": [{}]}'])
def test_a_report_that_is_none(report: str) -> None:
    with pytest.raises(CreationFailed, match="LVM's report"):
        read_group(report, VOLUMES_REPORT)


@pytest.mark.parametrize(
    ("gb", "processors", "expected"),
    [
        (10, 1, 10**10 // EXTENT * EXTENT),
        (10, 4, 4 * 10**10 // EXTENT * EXTENT),
        (None, 1, (1000203091968 - 200001191936) // 8 // EXTENT * EXTENT),
        (None, 8, 1000203091968 - 200001191936),
    ],
)
def test_a_volumes_size_is_configured_or_its_share_of_what_is_not_others(
    gb: int | None, processors: int, expected: int
) -> None:
    assert volume_bytes(read_group(GROUP_REPORT, VOLUMES_REPORT), gb, processors, SETTINGS) == expected


def test_a_volume_left_by_another_machine_is_replaced() -> None:
    lvm = Lvm()
    path = make_volume("vg", NAME, "new", 10, 1, SETTINGS, lvm, lvm.wipe)
    assert path == Path("/dev/vg", NAME)
    size = f"{10**10 // EXTENT * EXTENT}b"
    options = ["--yes", "--wipesignatures", "y", "--addtag", "vac.uuid=new"]
    assert lvm.told == [
        ["wipe", f"/dev/vg/{NAME}"],
        ["lvremove", "--yes", f"vg/{NAME}"],
        ["lvcreate", *options, "--size", size, "--name", NAME, "vg"],
    ]


@pytest.mark.parametrize(
    ("uuid", "told"),
    [
        (UUID, [["wipe", f"/dev/old/{NAME}"], ["lvremove", "--yes", f"old/{NAME}"]]),
        ("0815", [["wipe", f"/dev/vg/{NAME}"], ["lvremove", "--yes", f"vg/{NAME}"]]),
        ("another", []),
        ("77", []),
    ],
)
def test_only_the_machines_own_volume_is_wiped_and_removed_in_whatever_group_it_is(
    uuid: str, told: list[list[str]]
) -> None:
    lvm = Lvm()
    remove_volume("vg", NAME, uuid, lvm, lvm.wipe)
    assert lvm.told == told


def test_a_volume_that_takes_long_to_wipe_is_asked_for_again_and_wiped_once() -> None:
    told: list[Sequence[str]] = []
    answers: queue.SimpleQueue[CreationFailed | None] = queue.SimpleQueue()

    def run(command: Sequence[str]) -> str:
        told.append(command)
        if (failure := answers.get(timeout=60)) is not None:
            raise failure
        return ""

    hasty, patient = Wiper(run, 0.01), Wiper(run, 60.0)
    patient._works = hasty._works
    path = Path("/dev/vg", NAME)
    for _ in range(2):
        with pytest.raises(CreationFailed, match=f"{path} is being wiped"):
            hasty.wipe(path)
    answers.put(None)
    patient.wipe(path)
    assert told == [["blkdiscard", "--force", "--zeroout", str(path)]]
    answers.put(CreationFailed("blkdiscard: Input/output error"))
    with pytest.raises(CreationFailed, match="Input/output error"):
        patient.wipe(path)
    answers.put(None)
    patient.wipe(path)
    assert len(told) == 3, "what has failed is tried again"


def test_a_volume_stays_until_it_is_wiped() -> None:
    def busy(path: Path) -> None:
        raise CreationFailed(f"{path} is being wiped")

    lvm = Lvm()
    with pytest.raises(CreationFailed, match="is being wiped"):
        remove_volume("vg", NAME, UUID, lvm, busy)
    with pytest.raises(CreationFailed, match="is being wiped"):
        make_volume("vg", NAME, "new", 10, 1, SETTINGS, lvm, busy)
    assert lvm.told == []


@pytest.mark.parametrize(("program", "package"), [("blkdiscard", "util-linux"), ("lvs", "lvm2")])
def test_a_program_that_is_missing_is_told_with_its_package(
    monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    def run(command: Sequence[str], **_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", command[0])

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(CreationFailed, match=f"{program} isn't there: install {package}"):
        run_lvm([program])


def test_without_lvm_no_volume_has_to_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], **_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", command[0])

    monkeypatch.setattr("subprocess.run", run)
    remove_volume("vg", NAME, UUID, run_lvm, Wiper(run_lvm).wipe)


def test_a_volume_that_lvm_can_not_look_for_is_not_taken_as_removed_where_a_group_is_in_use() -> None:
    with pytest.raises(CreationFailed, match="not found"):
        remove_volume("vg", NAME, UUID, no_group, Lvm().wipe)
    with pytest.raises(CreationFailed, match="LVM's report"):
        remove_volume("vg", NAME, UUID, lambda _: '{"report": [{"lv": [{"lv_name": "a"}]}]}', Lvm().wipe)
    remove_volume(None, NAME, UUID, no_group, Lvm().wipe)


def test_a_volume_that_can_not_be_removed_is_an_error_in_any_group() -> None:
    def run(command: Sequence[str]) -> str:
        return OWNERS_REPORT if command[0] == "lvs" else no_group(command)

    with pytest.raises(CreationFailed, match="lvremove"):
        remove_volume(None, NAME, UUID, run, Lvm().wipe)


def no_group(command: Sequence[str]) -> str:
    raise CreationFailed(f"{command[0]}: Volume group not found")


def test_the_usual_group_is_used_if_lvm_knows_it_though_dev_has_no_directory_of_it() -> None:
    assert group_in_use(SETTINGS, Lvm()) == DEFAULT_GROUP
    assert group_in_use(SETTINGS, no_group) is None


def test_a_configured_group_is_used_without_asking() -> None:
    assert group_in_use(replace(SETTINGS, volume_group="vg"), no_group) == "vg"


def test_lvm_is_asked_for_the_usual_group_now_and_then_only() -> None:
    asked: list[Sequence[str]] = []
    now = 0.0

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        return no_group(command) if len(asked) == 1 else GROUP_REPORT

    groups = GroupFinder(run, lambda: now)
    assert [groups.in_use(SETTINGS), groups.in_use(SETTINGS), len(asked)] == [None, None, 1]
    now = GROUP_LOOK_SECONDS
    assert [groups.in_use(SETTINGS), groups.in_use(SETTINGS), len(asked)] == [DEFAULT_GROUP, DEFAULT_GROUP, 2]
    assert groups.in_use(replace(SETTINGS, volume_group="vg")) == "vg"
