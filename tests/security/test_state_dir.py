"""state_dir with what machines leave in it: setuid files count for nothing. In a mount name space of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from vac.host.filesystems import Mount, parse_mounts
from vac.machines import layout
from vac.machines.layout import NOSUID_OPTIONS, StateDir

pytestmark = pytest.mark.engine


def shown(directory: Path, process: str = "self") -> list[Mount]:
    """Mounts at this directory or below that a process sees."""
    found = parse_mounts(Path(f"/proc/{process}/mountinfo").read_text())
    return [mount for mount in found if f"{mount.point}/".startswith(f"{directory}/")]


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def effective_user(program: Path) -> str:
    """Run `id -u` that is setuid as another account; who it is then."""
    command = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", str(program), "-u"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def own_file_system(home: Path, *options: str) -> StateDir:
    """A state_dir on a shared file system, as systemd makes them."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", home)
    mount("--make-shared", home)
    layout.RUN_DIRECTORY = home / "run"
    layout.RUN_DIRECTORY.mkdir()
    state = StateDir(home / "vac state")
    state.root.mkdir()
    if options:
        mount("-t", "tmpfs", *options, "tmpfs", state.root)
    state.prepare()
    return state


def a_setuid_file_is_none(home: Path) -> None:
    state = own_file_system(home)
    left = state.machines / "id"
    shutil.copy("/usr/bin/id", left)
    left.chmod(0o4755)
    assert effective_user(left) == "0"
    assert state.mount_nosuid() is None
    assert state.is_nosuid()
    assert effective_user(left) == "1234"


def restarts_do_not_stack_mounts(home: Path) -> None:
    state = own_file_system(home)
    for _ in range(3):
        assert state.mount_nosuid() is None
    assert len(shown(state.root)) == 1
    assert not list(layout.RUN_DIRECTORY.iterdir())


def directories_are_still_renamed_and_linked(home: Path) -> None:
    state = own_file_system(home)
    state.mount_nosuid()
    (state.tmp / "machine").mkdir()
    (state.tmp / "machine").rename(state.machines / "machine")
    (state.imagecache / "image").touch()
    os.link(state.imagecache / "image", state.machines / "machine/root.image")


def engines_in_their_own_name_space_see_all_of_it(home: Path) -> None:
    state = own_file_system(home)
    engine = subprocess.Popen(["unshare", "--mount", "--propagation", "slave", "sleep", "600"])
    try:
        while "master" not in str([one.propagation for one in shown(home, str(engine.pid))]):
            time.sleep(0.01)
        state.mount_nosuid()
        volume = state.machines / "volume"
        volume.mkdir()
        mount("-t", "tmpfs", "tmpfs", volume)
        for process in ("self", str(engine.pid)):
            assert [one.options >= NOSUID_OPTIONS for one in shown(state.root, process)] == [True, False]
            assert [Path(one.point) for one in shown(volume, process)] == [volume]
        subprocess.run(["umount", volume], check=True)
        assert not shown(volume, str(engine.pid))
    finally:
        engine.kill()
        engine.wait()


def a_file_system_of_its_own_gets_the_options(home: Path) -> None:
    state = own_file_system(home, "-o", "noatime")
    volume = state.machines / "volume"
    volume.mkdir()
    mount("-t", "tmpfs", "tmpfs", volume)
    assert state.mount_nosuid() is None
    top, below = shown(state.root)
    assert {*NOSUID_OPTIONS, "noatime"} <= top.options
    assert below.point == str(volume)


def mounts_of_machines_are_not_hidden(home: Path) -> None:
    state = own_file_system(home)
    volume = state.machines / "volume"
    volume.mkdir()
    mount("-t", "tmpfs", "tmpfs", volume)
    assert "is mounted below it" in (state.mount_nosuid() or "")
    assert not state.is_nosuid()


SCENES = (
    a_setuid_file_is_none,
    restarts_do_not_stack_mounts,
    directories_are_still_renamed_and_linked,
    engines_in_their_own_name_space_see_all_of_it,
    a_file_system_of_its_own_gets_the_options,
    mounts_of_machines_are_not_hidden,
)


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_state_dir_is_mounted_on_itself(tmp_path: Path, scene: str) -> None:
    require_root()
    for tool in ("unshare", "setpriv"):
        require_tool(tool)
    script = f"import sys; from pathlib import Path; from {__name__} import *; {scene}(Path(sys.argv[1]))"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_without_the_right_to_mount_it_says_so(tmp_path: Path) -> None:
    require_root()
    script = f"from {layout.__name__} import *; print(StateDir(Path({str(tmp_path)!r})).mount_nosuid())"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mount failed")
