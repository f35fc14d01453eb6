"""Logical volumes: commands to LVM, by recorded answers, for disks of VMs and for scratch space of containers."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers import volumes
from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.drivers.volumes import (
    DEFAULT_GROUP,
    GROUP_LOOK_SECONDS,
    Group,
    NoLvm,
    Volume,
    Volumes,
    group_in_use,
    mount_points,
    read_group,
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
                  {"vg_name":"vg", "lv_name":"root", "lv_size":"200001191936", "lv_tags":""},
                  {"vg_name":"vg", "lv_name":"factory1-00.example.com", "lv_size":"100000595968",
                   "lv_tags":"vac.uuid=0815"},
                  {"vg_name":"vg", "lv_name":"factory1-01.example.com", "lv_size":"100000595968",
                   "lv_tags":"a,vac.uuid=77"}
              ]
          }
      ]
  }
"""
ALL_VOLUMES_REPORT = """
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"debian", "lv_name":"root", "lv_size":"1", "lv_tags":""},
                  {"vg_name":"old", "lv_name":"factory1-00.example.com", "lv_size":"1", "lv_tags":"vac.uuid=5b4e6c1a"},
                  {"vg_name":"vg", "lv_name":"factory1-00.example.com", "lv_size":"1", "lv_tags":"vac.uuid=0815"},
                  {"vg_name":"vg", "lv_name":"factory1-01.example.com", "lv_size":"1", "lv_tags":"a,vac.uuid=77"}
              ]
          }
      ]
  }
"""


class Recorded:
    """Answers as recorded, and remembers other commands."""

    def __init__(self, failure: str = "") -> None:
        self.told: list[list[str]] = []
        self.failure = failure

    def __call__(self, command: Sequence[str]) -> str:
        if command[0] == "vgs":
            return GROUP_REPORT
        if command[0] == "lvs":
            return VOLUMES_REPORT if command[-1] == "vg" else ALL_VOLUMES_REPORT
        if command[0] == self.failure:
            raise CreationFailed(f"{command[0]}: refused")
        self.told.append(list(command))
        return ""


def wiping(name: str) -> list[str]:
    return ["blkdiscard", "--force", "--zeroout", name]


def spec_of(tmp_path: Path, uuid: str = UUID, gb: int | None = 10) -> MachineSpec:
    machinetype = Machinetype("t", machine_model="docker", disk_gb_per_processor=gb)
    return MachineSpec(NAME, uuid, machinetype, SETTINGS, 1, 2**30, tmp_path, tmp_path / "files")


Use = Callable[[Callable[[Sequence[str]], str]], Volumes]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Returns a function that makes volumes by these answers."""

    def use(run: Callable[[Sequence[str]], str]) -> Volumes:
        monkeypatch.setattr(volumes, "run_lvm", run)
        return Volumes()

    return use


def in_use(found: Volumes) -> Volumes:
    """While the group vg is used."""
    found.group(replace(SETTINGS, volume_group="vg"))
    return found


def no_group(command: Sequence[str]) -> str:
    raise CreationFailed(f"{command[0]}: Volume group not found")


def test_lvms_reports_are_read(use: Use) -> None:
    use(Recorded())
    assert read_group("vg") == Group(
        1000203091968,
        EXTENT,
        (
            Volume("vg", "root", 200001191936, ()),
            Volume("vg", NAME, 100000595968, ("vac.uuid=0815",)),
            Volume("vg", "factory1-01.example.com", 100000595968, ("a", "vac.uuid=77")),
        ),
    )


@pytest.mark.parametrize("report", ["", "[]", json.dumps({"report": [{"vg": []}]}), '{"report": [{}]}'])
def test_an_unreadable_report_fails_the_creation(use: Use, report: str) -> None:
    use(lambda command: report)
    with pytest.raises(CreationFailed, match=r"LVM('s report| reports 0 groups)"):
        read_group("vg")


@pytest.mark.parametrize(
    ("gb", "processors", "expected"),
    [
        (10, 1, 10**10 // EXTENT * EXTENT),
        (10, 4, 4 * 10**10 // EXTENT * EXTENT),
        (None, 1, (1000203091968 - 200001191936) // 8 // EXTENT * EXTENT),
        (None, 8, 1000203091968 - 200001191936),
    ],
)
def test_size_is_configured_or_the_share_of_what_is_not_others(
    use: Use, gb: int | None, processors: int, expected: int
) -> None:
    use(Recorded())
    assert volume_bytes(read_group("vg"), gb, processors, SETTINGS) == expected


def test_a_volume_left_by_another_machine_is_replaced(use: Use, tmp_path: Path) -> None:
    lvm = Recorded()
    assert use(lvm).make("vg", spec_of(tmp_path, "new")) == Path("/dev/vg", NAME)
    size = f"{10**10 // EXTENT * EXTENT}b"
    options = ["--yes", "--wipesignatures", "y", "--addtag", "vac.uuid=new"]
    assert lvm.told == [
        wiping(f"/dev/vg/{NAME}"),
        ["lvremove", "--yes", f"vg/{NAME}"],
        ["lvcreate", *options, "--size", size, "--name", NAME, "vg"],
    ]


@pytest.mark.parametrize(
    ("uuid", "told"),
    [
        (UUID, [wiping(f"/dev/old/{NAME}"), ["lvremove", "--yes", f"old/{NAME}"]]),
        ("0815", [wiping(f"/dev/vg/{NAME}"), ["lvremove", "--yes", f"vg/{NAME}"]]),
        ("another", []),
        ("77", []),
    ],
)
def test_only_the_machines_own_volume_goes_whatever_its_group(
    use: Use, uuid: str, told: list[list[str]]
) -> None:
    lvm = Recorded()
    in_use(use(lvm)).remove(NAME, uuid)
    assert lvm.told == told


def test_a_volume_that_was_never_used_is_not_wiped(use: Use, tmp_path: Path) -> None:
    lvm = Recorded()
    use(lvm).discard(spec_of(tmp_path))
    assert lvm.told == [["lvremove", "--yes", f"old/{NAME}"]]


def test_slow_wiping_is_waited_for_again_and_done_once(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Sequence[str]] = []
    answers: queue.SimpleQueue[CreationFailed | None] = queue.SimpleQueue()
    lvm = Recorded()

    def run(command: Sequence[str]) -> str:
        if command[0] != "blkdiscard":
            return lvm(command)
        told.append(command)
        if (failure := answers.get(timeout=60)) is not None:
            raise failure
        return ""

    monkeypatch.setattr(volumes, "WIPE_PATIENCE_SECONDS", 0.01)
    found = use(run)
    path = f"/dev/old/{NAME}"
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=f"{path} is being wiped"):
            found.remove(NAME, UUID)
    assert lvm.told == [], "it stays until it is wiped"
    monkeypatch.setattr(volumes, "WIPE_PATIENCE_SECONDS", 60.0)
    answers.put(None)
    found.remove(NAME, UUID)
    assert told == [wiping(path)]
    assert lvm.told == [["lvremove", "--yes", f"old/{NAME}"]]
    answers.put(CreationFailed("blkdiscard: Input/output error"))
    with pytest.raises(EngineUnavailable, match="Input/output error"):
        found.remove(NAME, UUID)
    answers.put(None)
    found.remove(NAME, UUID)
    assert len(told) == 3, "what has failed is tried again"


def test_no_new_volume_is_made_while_an_old_one_is_wiped(use: Use, tmp_path: Path) -> None:
    lvm = Recorded("blkdiscard")
    with pytest.raises(CreationFailed, match="blkdiscard: refused"):
        use(lvm).make("vg", spec_of(tmp_path, "new"))
    assert lvm.told == []


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(("program", "package"), [("blkdiscard", "util-linux"), ("lvs", "lvm2")])
@pytest.mark.allow_subprocess
def test_a_missing_program_is_told_with_its_package(
    nothing_installed: None, program: str, package: str
) -> None:
    with pytest.raises(CreationFailed, match=f"{program} is not installed: install {package}"):
        run_lvm([program])


@pytest.mark.allow_subprocess
def test_without_lvm_no_volume_has_to_be_removed(nothing_installed: None) -> None:
    in_use(Volumes()).remove(NAME, UUID)


def test_a_volume_that_lvm_cannot_list_is_not_removed(use: Use) -> None:
    with pytest.raises(EngineUnavailable, match="not found"):
        in_use(use(no_group)).remove(NAME, UUID)
    with pytest.raises(EngineUnavailable, match="LVM's report"):
        in_use(use(lambda _: '{"report": [{"lv": [{"lv_name": "a"}]}]}')).remove(NAME, UUID)
    use(no_group).remove(NAME, UUID)


def test_a_volume_that_cannot_be_removed_is_an_error(use: Use) -> None:
    with pytest.raises(EngineUnavailable, match="lvremove"):
        use(Recorded("lvremove")).remove(NAME, UUID)


def test_the_default_group_is_used_if_lvm_knows_it(use: Use) -> None:
    use(Recorded())
    assert group_in_use(SETTINGS) == DEFAULT_GROUP
    use(no_group)
    assert group_in_use(SETTINGS) is None


def test_a_configured_group_is_used_without_asking(use: Use) -> None:
    use(no_group)
    assert group_in_use(replace(SETTINGS, volume_group="vg")) == "vg"


def test_lvm_is_asked_for_the_default_group_now_and_then_only(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []
    now = 0.0

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        return no_group(command) if len(asked) == 1 else GROUP_REPORT

    monkeypatch.setattr(volumes, "time", SimpleNamespace(monotonic=lambda: now))
    found = use(run)
    assert [found.group(SETTINGS), found.group(SETTINGS), len(asked)] == [None, None, 1]
    now = GROUP_LOOK_SECONDS
    assert [found.group(SETTINGS), found.group(SETTINGS), len(asked)] == [DEFAULT_GROUP, DEFAULT_GROUP, 2]
    assert found.group(replace(SETTINGS, volume_group="vg")) == "vg"


class Lvm:
    """Keeps the commands, and has the volumes that they made."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.volumes: dict[str, str] = {}
        self.fails = ""

    def __call__(self, command: Sequence[str]) -> str:
        program, *rest = command
        if program == self.fails:
            raise CreationFailed(f"{program}: refused")
        if program == "vgs":
            return GROUP_REPORT
        if program == "lvs":
            rows = [
                {"vg_name": "group", "lv_name": name, "lv_size": "4194304", "lv_tags": f"vac.uuid={uuid}"}
                for name, uuid in self.volumes.items()
            ]
            return json.dumps({"report": [{"lv": rows}]})
        if program == "lvcreate":
            self.volumes[rest[-2]] = rest[rest.index("--addtag") + 1].partition("=")[2]
        if program == "lvremove":
            del self.volumes[rest[-1].partition("/")[2]]
        self.commands.append(program)
        return ""


@pytest.fixture
def lvm(monkeypatch: pytest.MonkeyPatch) -> Lvm:
    """The volume is mounted wherever its number is in mountinfo."""
    monkeypatch.setattr(volumes, "mount_points", lambda device: [f"/machine/of/{device.name}/mnt"])
    lvm = Lvm()
    monkeypatch.setattr(volumes, "run_lvm", lvm)
    return lvm


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    (tmp_path / "mnt").mkdir()
    settings = Settings(factory_name="factory1.example.com", volume_group="group", total_processors=4)
    machinetype = Machinetype("t", machine_model="docker", disk_gb_per_processor=2)
    return MachineSpec(NAME, UUID, machinetype, settings, 1, 2**30, tmp_path, tmp_path / "files")


def test_scratch_exists_while_the_machine_does(lvm: Lvm, spec: MachineSpec) -> None:
    with Volumes().mounted(spec):
        assert lvm.commands == ["lvcreate", "mkfs.ext4", "mount"]
    Volumes().remove(NAME, "another-uuid")
    assert lvm.volumes == {NAME: UUID}
    Volumes().remove(NAME, UUID)
    assert lvm.commands[3:] == ["umount", "blkdiscard", "lvremove"], "another process has found it"


def test_scratch_left_by_a_predecessor_goes_first(lvm: Lvm, spec: MachineSpec) -> None:
    lvm.volumes[NAME] = "an-older-machine"
    with Volumes().mounted(spec):
        assert lvm.commands[:4] == ["umount", "blkdiscard", "lvremove", "lvcreate"]
    assert lvm.volumes == {NAME: UUID}


@pytest.mark.parametrize("program", ["mkfs.ext4", "mount", ""])
def test_a_failed_creation_leaves_no_scratch(lvm: Lvm, spec: MachineSpec, program: str) -> None:
    lvm.fails = program
    with pytest.raises(CreationFailed, match="refused"), Volumes().mounted(spec):
        raise CreationFailed("refused")
    assert lvm.volumes == {}


def test_scratch_of_a_machine_that_may_run_stays(lvm: Lvm, spec: MachineSpec) -> None:
    with pytest.raises(EngineUnavailable), Volumes().mounted(spec):
        raise EngineUnavailable("gone")
    assert lvm.volumes == {NAME: UUID}


def test_scratch_that_is_in_use_keeps_the_slot(lvm: Lvm, spec: MachineSpec) -> None:
    with Volumes().mounted(spec):
        lvm.fails = "umount"
    with pytest.raises(EngineUnavailable, match="umount: refused"):
        Volumes().remove(NAME, UUID)


def missing_lvm(command: Sequence[str]) -> str:
    raise NoLvm("not there")


def test_without_lvm_nothing_is_made(use: Use, spec: MachineSpec) -> None:
    without = use(missing_lvm)
    settings = Settings(factory_name="factory1.example.com")
    bare = MachineSpec(NAME, UUID, spec.machinetype, settings, 1, 2**30, spec.directory, spec.files)
    with without.mounted(bare):
        pass
    without.remove(NAME, UUID)


def test_a_volume_is_found_wherever_it_is_mounted(tmp_path: Path) -> None:
    number = Path("/dev/null").stat().st_rdev
    line = f"90 27 {os.major(number)}:{os.minor(number)} / {{}} rw,nosuid - ext4 /dev/mapper/group-a rw\n"
    other = "91 27 7:99 / /other rw - ext4 /dev/mapper/group-b rw\n"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(line.format("/var/lib/vac/tmp/a\\040b/mnt") + other + line.format("/twice"))
    assert mount_points(Path("/dev/null"), mounts) == ["/var/lib/vac/tmp/a b/mnt", "/twice"]
    assert mount_points(Path("/dev/no-such-volume"), mounts) == []


def test_a_volume_removed_by_hand_does_not_count_as_its_successor_wiped(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvm, go, by_hand = Recorded(), threading.Event(), False

    def run(command: Sequence[str]) -> str:
        if command[0] == "blkdiscard":
            assert go.wait(60)
        return '{"report": [{"lv": []}]}' if command[0] == "lvs" and by_hand else lvm(command)

    monkeypatch.setattr(volumes, "WIPE_PATIENCE_SECONDS", 0.0)
    found = use(run)
    with pytest.raises(EngineUnavailable, match="is being wiped"):
        found.remove(NAME, "0815")
    go.set()
    assert found._wiping.wait(f"/dev/vg/{NAME}", 60)
    by_hand = True
    found.make("vg", spec_of(tmp_path, "0815"))
    by_hand = False
    monkeypatch.setattr(volumes, "WIPE_PATIENCE_SECONDS", 60.0)
    found.remove(NAME, "0815")
    assert lvm.told.count(wiping(f"/dev/vg/{NAME}")) == 2
