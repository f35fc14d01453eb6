"""A container's logical volume: which commands make, mount and remove it, by what LVM is recorded to say."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers import volumes
from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.drivers.scratch import Scratch
from vac.drivers.volumes import NoLvm, mount_points

NAME, UUID = "factory1-00.example.com", "4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b"
GROUP = json.dumps({"report": [{"vg": [{"vg_size": "107374182400", "vg_extent_size": "4194304"}]}]})


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
            return GROUP
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
    monkeypatch.setattr(volumes, "mount_points", lambda device, _: [f"/machine/of/{device.name}/mnt"])
    return Lvm()


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    (tmp_path / "mnt").mkdir()
    settings = Settings(factory_name="factory1.example.com", volume_group="group", total_processors=4)
    machinetype = Machinetype("t", machine_model="docker", disk_gb_per_processor=2)
    return MachineSpec(NAME, UUID, machinetype, settings, 1, 2**30, tmp_path, tmp_path / "files")


def test_the_volume_is_there_while_the_machine_is(lvm: Lvm, spec: MachineSpec) -> None:
    with Scratch(lvm).made(spec):
        assert lvm.commands == ["lvcreate", "mkfs.ext4", "mount"]
    Scratch(lvm).remove(NAME, "another-uuid")
    assert lvm.volumes == {NAME: UUID}
    Scratch(lvm).remove(NAME, UUID)
    assert lvm.commands[3:] == ["umount", "lvremove"], "another process has found it"


def test_what_a_predecessor_has_left_goes_first(lvm: Lvm, spec: MachineSpec) -> None:
    lvm.volumes[NAME] = "an-older-machine"
    with Scratch(lvm).made(spec):
        assert lvm.commands[:3] == ["umount", "lvremove", "lvcreate"]
    assert lvm.volumes == {NAME: UUID}


@pytest.mark.parametrize("program", ["mkfs.ext4", "mount", ""])
def test_a_creation_that_fails_leaves_no_volume(lvm: Lvm, spec: MachineSpec, program: str) -> None:
    lvm.fails = program
    with pytest.raises(CreationFailed, match="refused"), Scratch(lvm).made(spec):
        raise CreationFailed("refused")
    assert lvm.volumes == {}


def test_the_volume_of_a_machine_that_may_run_stays(lvm: Lvm, spec: MachineSpec) -> None:
    with pytest.raises(EngineUnavailable), Scratch(lvm).made(spec):
        raise EngineUnavailable("gone")
    assert lvm.volumes == {NAME: UUID}


def test_a_volume_that_is_in_use_keeps_the_slot(lvm: Lvm, spec: MachineSpec) -> None:
    with Scratch(lvm).made(spec):
        lvm.fails = "umount"
    with pytest.raises(EngineUnavailable, match="umount: refused"):
        Scratch(lvm).remove(NAME, UUID)


def test_without_lvm_nothing_is_made(spec: MachineSpec) -> None:
    def run(command: Sequence[str]) -> str:
        raise NoLvm("not there")

    without = Scratch(run)
    settings = Settings(factory_name="factory1.example.com")
    bare = MachineSpec(NAME, UUID, spec.machinetype, settings, 1, 2**30, spec.directory, spec.files)
    with without.made(bare):
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
