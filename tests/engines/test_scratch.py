"""A container's volume as a real ext4 file system. A loop device stands for what LVM would make."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.engines.process_site import group_makers, open_site
from tests.waiting import wait_for
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers import volumes
from vac.drivers.base import EngineUnavailable, MachineSpec
from vac.drivers.volumes import Volumes, device, run_lvm

pytestmark = pytest.mark.engine

SIZE_BYTES = 64 * 1024 * 1024


class LoopGroup:
    """A stand-in for LVM's programs, for one group of its own; other commands are run."""

    def __init__(self, directory: Path) -> None:
        self.name = f"vactest{uuid.uuid4().hex[:8]}"
        self.directory = directory
        self.tags: dict[str, str] = {}
        Path("/dev", self.name).mkdir()

    def __call__(self, command: Sequence[str]) -> str:
        program, *rest = command
        if program == "vgs":
            return _report("vg", [{"vg_size": str(SIZE_BYTES), "vg_extent_size": "4194304"}])
        if program == "lvs":
            rows = [
                {"vg_name": self.name, "lv_name": name, "lv_size": str(SIZE_BYTES), "lv_tags": tag}
                for name, tag in self.tags.items()
            ]
            return _report("lv", rows)
        if program == "lvcreate":
            self._make(rest[-2], rest[rest.index("--addtag") + 1])
        elif program == "lvremove":
            self.remove(rest[-1].partition("/")[2])
        else:
            return run_lvm(command)
        return ""

    def _make(self, name: str, tag: str) -> None:
        file = self.directory / name
        with file.open("wb") as content:
            content.truncate(SIZE_BYTES)
        device(self.name, name).symlink_to(run_lvm(["losetup", "--find", "--show", str(file)]).strip())
        self.tags[name] = tag

    def remove(self, name: str) -> None:
        volume = device(self.name, name)
        run_lvm(["losetup", "--detach", str(volume.resolve())])
        volume.unlink()
        del self.tags[name]

    def close(self) -> None:
        for name in list(self.tags):
            subprocess.run(["umount", str(device(self.name, name).resolve())], check=False)
            self.remove(name)
        shutil.rmtree(Path("/dev", self.name))


def _report(kind: str, rows: list[dict[str, str]]) -> str:
    return json.dumps({"report": [{kind: rows}]})


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopGroup]:
    require_root()
    require_tool("losetup")
    require_tool("mkfs.ext4")
    with contextlib.closing(LoopGroup(tmp_path)) as group:
        monkeypatch.setattr(volumes, "run_lvm", group)
        yield group


def test_a_machine_has_a_file_system_of_its_own_until_it_goes(group: LoopGroup, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    place = tmp_path / "machine" / "mnt"
    place.mkdir(parents=True)
    place.chmod(0o1777)
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    settings = Settings(factory_name="factory1.example.com", volume_group=group.name, total_processors=1)
    one = Machinetype("t", machine_model="bubblewrap")
    spec = MachineSpec(
        "factory1-00.example.com", "u-1", one, settings, 1, 2**30, place.parent, tmp_path / "files"
    )
    with Volumes().mounted(spec):
        assert place.is_mount()
        found = place.stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o1777, nobody.pw_uid, nobody.pw_gid)
        space = os.statvfs(place)
        assert SIZE_BYTES / 2 < space.f_blocks * space.f_frsize <= SIZE_BYTES
    (place / "file").write_text("content")
    place.parent.rename(tmp_path / "moved")
    Volumes().remove(spec.name, spec.uuid)
    moved = tmp_path / "moved" / "mnt"
    assert not moved.is_mount()
    assert list(moved.iterdir()) == []
    assert group.tags == {}


@pytest.mark.parametrize("model", ["bubblewrap", "singularity"])
def test_fresh_directories_lie_on_the_machines_volume(group: LoopGroup, model: str) -> None:
    version = "v1" if "v1" in group_makers() else "v2"
    with open_site(version, model) as site:
        site.settings = replace(site.settings, volume_group=group.name, total_processors=1)
        script = "echo content >/tmp/file && echo more >/fresh/file && touch /tmp/joboutputs/done\nexec sleep 600\n"
        spec = site.spec(user_data=script, tmp_binds=("/fresh",))
        place = spec.directory / "mnt"
        place.mkdir()
        site.create(spec)
        wait_for((spec.directory / "joboutputs/done").exists, "the machine has written")
        assert place.is_mount()
        assert sorted(file.read_text() for file in place.glob("*/file")) == ["content\n", "more\n"]

        def destroyed() -> bool:
            with contextlib.suppress(
                EngineUnavailable
            ):  # others' mount namespaces may have a copy of the mount
                site.driver.destroy(spec.name, spec.uuid)
            return group.tags == {}

        wait_for(destroyed, "the volume is wiped and removed", 900)
        assert not place.is_mount()
