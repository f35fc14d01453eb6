"""`vac doctor` on what starts containers that are processes: tried as the account that machines run as."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from vac.config.settings import Settings
from vac.drivers.base import CreationFailed
from vac.drivers.processes.launch_plan import PATH, account, find_program
from vac.host.syscall_filter import compiled

TRY_SECONDS = 20.0
FUSE = Path("/dev/fuse")
FUSE_HINT = f"modprobe fuse, chmod 666 {FUSE}"
_HINT = "; see sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns"


def bubblewrap_problem(settings: Settings) -> str | None:
    """Why bubblewrap can't make a machine here: user namespaces may be switched off. None: it can."""
    options = ["--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc"]
    try:
        compiled(nested=False)
        return _try([find_program("bubblewrap", settings), *options, "true"], settings)
    except CreationFailed as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} {error.strerror}"


def apptainer_problem(settings: Settings) -> str | None:
    """The same of Apptainer or Singularity, with a directory tree that has this host's /usr."""
    with tempfile.TemporaryDirectory(prefix="vac-doctor-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        for each in ("dev", "etc", "proc", "sys", "tmp", "usr", "var/tmp"):
            (tree / each).mkdir(parents=True)
        for link in ("bin", "lib", "lib64"):
            (tree / link).symlink_to(f"usr/{link}")
        options = ["--silent", "exec", "--contain", "--pid", "--uts", "--hostname", "test", "--bind", "/usr"]
        try:
            program = find_program("singularity", settings)
            return _try([program, *options, str(tree), "/usr/bin/true"], settings)
        except CreationFailed as error:
            return str(error)


def image_file_problem(settings: Settings) -> str | None:
    """Why image files can't be mounted; None: they can, or the installation is setuid and mounts them itself."""
    try:
        program = find_program("singularity", settings)
    except CreationFailed:
        return None
    told = subprocess.run([program, "buildcfg"], capture_output=True, timeout=TRY_SECONDS, check=False).stdout
    if b"_SUID_INSTALL=1" in told:
        return None
    if not any(shutil.which(each, path=PATH) for each in ("squashfuse_ll", "squashfuse")):
        return "squashfuse is not installed: install the package squashfuse"
    return None if open_to_all(FUSE) else f"{FUSE} must be there, readable and writable for all: {FUSE_HINT}"


def open_to_all(device: Path) -> bool:
    """Is it there, and may everybody use it?"""
    everybody = stat.S_IROTH | stat.S_IWOTH
    return device.exists() and device.stat().st_mode & everybody == everybody


def _try(command: list[str], settings: Settings) -> str | None:
    """What is wrong with the command if the machines' account runs it. Raises CreationFailed if there is no account."""
    environment = {"PATH": PATH, "HOME": "/nonexistent"}
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = account(settings)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd="/",
            capture_output=True,
            timeout=TRY_SECONDS,
            check=False,
            **identity,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if done.returncode == 0 else " ".join(done.stderr.decode(errors="replace").split()) + _HINT
