"""The command line of a Singularity/Apptainer machine: apptainer-exec(1), of Apptainer 1.0 and SingularityCE 3.9
or later, with or without their setuid parts. The launcher imports this module, too.
"""

# ruff: noqa: PTH110

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vac.host.filesystems import real_image, with_other_paths

if TYPE_CHECKING:
    from vac.drivers.base import MachineSpec

PROGRAMS = ("apptainer", "singularity")
PACKAGE = "apptainer"
OPTION = "singularity_path"
TELLS = False
TAKES_URLS = True
NEEDS_ACCOUNT = True
FILTERED = False

_INIT = (b"appinit", b"sinit")
"""Name of their first process in a machine's own PID namespace, once it is about to run the command."""
_OWN = (*_INIT, b"Apptainer runtime parent", b"Singularity runtime parent")
_HELPERS = (b"squashfuse", b"squashfuse_ll", b"fuse2fs", b"fuse-overlayfs", b"gocryptfs")
"""Programs that they mount images with."""
_FAILED = 255
"""Their exit code when they fail; the machine's command may end with it as well."""


def plan(spec: MachineSpec, program: str, mounts: list[tuple[str, str, str]]) -> dict[str, Any]:
    """See Model. A root_image with a URL has been replaced by its copy's path.

    tmp, var_tmp and home are --workdir's own; only we can make places in them to mount at.
    """
    own = spec.directory / "mnt"
    paths = [os.path.normpath(path) for path in spec.machinetype.tmp_binds]
    binds = [("rw", str(own / f"bind{number}"), path) for number, path in enumerate(paths)]
    places = [place[1:] for _, _, place in mounts if place.startswith("/tmp/")]
    return {
        "program": program,
        "hostname": spec.name,
        "image": str(spec.files / (spec.machinetype.root_image or "")),
        "workdir": str(own),
        "hidden": with_other_paths([str(spec.settings.state_dir)]),
        "binds": [each for each in (*mounts, *binds) if each[2] != "/user_data" or os.path.exists(each[1])],
        "fresh": ["tmp", "var_tmp", "home", *places, *(f"bind{number}" for number in range(len(binds)))],
        "command": spec.machinetype.container_command,
        "environment": {"HOME": str(own / "home")},
    }


def command_pids(told: Mapping[str, Any], first: bytes, others: Mapping[int, bytes]) -> list[int]:
    """See Model: processes that aren't Apptainer's, beside the init of the machine's own PID namespace."""
    if not any(map(_is_init, others.values())):
        return []
    return [pid for pid, each in others.items() if each and not _is_own(each)]


def executed(told: Mapping[str, Any]) -> bool:
    return "executing" in told


def may_pass(failure: str) -> bool:
    return False


def has_run(told: Mapping[str, Any], exit_code: int, said: str) -> bool:
    """See Model: a failure has an exit code that the command may also have, and a last message."""
    return not (exit_code == _FAILED and "FATAL:" in said)


def command_line(plan: dict[str, Any]) -> list[str]:
    """See Model. The image is given as an absolute path without `//`, which can be neither option nor URI."""
    image = real_image(plan["image"])
    if not os.path.exists(image):
        where = "can't be found, or not by user"
        raise ValueError(
            f"root_image {plan['image']} {where} {os.getuid()}; a path, or a URL, would be right"
        )
    for hidden in plan["hidden"]:
        if os.path.commonpath([image, os.path.realpath(hidden)]) == image:
            what = f"holds {hidden}, which machines must not see"
            raise ValueError(f"root_image {image} {what}; bubblewrap takes / and hides that")
    if ":" in plan["workdir"] or "," in plan["workdir"]:
        raise ValueError(f"{plan['workdir']}: singularity needs a state_dir without : and ,")
    mounts = [f"--mount={mount(*bind)}" for bind in plan["binds"]]
    isolation = ("--contain", "--pid", "--ipc", "--uts", "--hostname", plan["hostname"])
    places = ("--workdir", plan["workdir"], "--pwd", "/tmp", *mounts)
    return [plan["program"], "--silent", "exec", *isolation, *places, image, plan["command"]]


def mount(mode: str, source: str, destination: str) -> str:
    """Return a bind in the form of --mount: fields of a line of CSV (RFC 4180)."""
    fields = ["type=bind", f"source={source}", f"destination={destination}", mode]
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields if field != "rw")


def _is_init(command_line: bytes) -> bool:
    return command_line.split(b"\0")[0] in _INIT


def _is_own(command_line: bytes) -> bool:
    return command_line.startswith(_OWN) or command_line.split(b"\0")[0].rpartition(b"/")[2] in _HELPERS
