"""The launcher: what it leaves behind, what it tells, and what it executes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_root
from vac.drivers.processes.launch_plan import STATUS_FILE, read_status
from vac.drivers.processes.process_driver import _spawn
from vac.host.filesystems import stamp_of
from vac.host.syscall_filter import compiled

pytestmark = pytest.mark.allow_subprocess

IMAGE = "/etc/passwd"
MODEL = '''
"""A model whose program is a shell."""
PROGRAMS = ("sh",)
TELLS = True
def command_line(plan):
    if plan["image"].endswith("bad"):
        raise ValueError("the image is bad")
    return ["/bin/sh", "-c", plan["script"]]
'''
LOOK = """
echo '{"exit-code": 7}' >&3
echo $(id -u) $(id -g) $(id -G) $A $HOME
ls /proc/self/fd | tr '\\n' ' '; echo
pwd
od -An -v -tx1 <&4 | tr -d ' \\n'
"""


CONFINED = """
grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status | tr -s '[:space:]' ' '; echo
cat /proc/sys/user/max_user_namespaces; tr -s ' ' </proc/self/uid_map
unshare -Ur unshare -Ur unshare -Ur true && echo three
unshare -Ur unshare -Ur unshare -Ur unshare -Ur true 2>/dev/null || echo not four
"""


def start(tmp_path: Path, image: str, script: str = LOOK, **more: Any) -> tuple[str, int]:
    """What the program has printed, and its exit code."""
    require_root()
    (tmp_path / "standin_model.py").write_text(MODEL)
    plan: dict[str, Any] = {
        "machine": "m_u", "model": "bubblewrap", "module": "standin_model", "path": str(tmp_path), "image": image,
        "entrances": [str(tmp_path / "cgroup.procs")], "uid": 65534, "gid": 65534, "script": script, **more,
        "environment": {"A": "b", "PATH": "/usr/bin:/bin"}, "filter": compiled(False).hex(),
    }  # fmt: skip
    (tmp_path / "cgroup.procs").touch()
    with (tmp_path / "output").open("wb") as output, (tmp_path / STATUS_FILE).open("wb") as status:
        child = _spawn(plan, output.fileno(), status.fileno())
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (tmp_path / "output").read_text(), exit_code


def test_the_program_gets_what_is_the_machines_and_nothing_else(tmp_path: Path) -> None:
    said, exit_code = start(tmp_path, IMAGE)
    assert exit_code == 0, said
    listing = "0 1 2 3 4 5 "  # the last being that of ls
    assert said.splitlines() == ["65534 65534 65534 b", listing, "/", compiled(False).hex()]
    assert (tmp_path / "cgroup.procs").read_text() == "0"


def test_a_program_that_takes_no_filter_is_put_under_one(tmp_path: Path) -> None:
    said, exit_code = start(
        tmp_path, IMAGE, CONFINED, inherited_filter=compiled(True).hex(), most_user_namespaces=3
    )
    status, most, users, *rest = said.splitlines()
    assert exit_code == 0, said
    assert status.strip() == "CapEff: 0000000000000000 NoNewPrivs: 0 Seccomp: 2"
    assert (most, users.strip(), *rest) == ("3", "65534 65534 1", "three", "not four")


def test_the_status_tells_how_the_machine_began_and_ended(tmp_path: Path) -> None:
    start(tmp_path, IMAGE)
    status = read_status(tmp_path)
    lines = [json.loads(line) for line in status.text.splitlines()]
    assert lines[0].keys() == {"machine", "model", "pid"}
    assert lines[1:] == [
        {"image_path": IMAGE, "stamp": list(stamp_of(IMAGE))},
        {"executing": True},
        {"exit-code": 7},
    ]
    assert status.exit_code == 7
    assert status.first_process == lines[0]["pid"]
    assert status.model is not None


def test_a_reason_not_to_launch_is_told(tmp_path: Path) -> None:
    said, exit_code = start(tmp_path, "/bad")
    assert (said, exit_code) == ("", 1)
    assert '{"failure": "the image is bad"}' in read_status(tmp_path).text
