"""`vac doctor` for process machines: their programs are tried as the account that machines run as."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from vac.config.settings import Settings
from vac.drivers.base import CreationFailed
from vac.drivers.processes.launch_plan import PATH, account, find_program
from vac.host.child_processes import run
from vac.host.syscall_filter import compiled

TRY_SECONDS = 20.0
FUSE = Path("/dev/fuse")
FUSE_HINT = f"modprobe fuse, chmod 666 {FUSE}"
_HINT = "; see sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns"


def bubblewrap_problem(settings: Settings) -> str | None:
    """Return the reason why bubblewrap can't make a machine here, such as user namespaces that are switched off."""
    options = ["--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc"]
    try:
        compiled(nested=False)
        return _try([find_program("bubblewrap", settings), *options, "true"], settings)
    except CreationFailed as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} {error.strerror}"


def apptainer_problem(settings: Settings) -> str | None:
    """Return the same of Apptainer or Singularity, with a directory tree that has this host's /usr."""
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
    """Return the reason why image files can't be mounted, None if the installation is setuid and mounts them itself."""
    try:
        program = find_program("singularity", settings)
    except CreationFailed:
        return None
    told = run([program, "buildcfg"], time_limit_seconds=TRY_SECONDS)
    if b"_SUID_INSTALL=1" in told.output:
        return None
    if not any(shutil.which(each, path=PATH) for each in ("squashfuse_ll", "squashfuse")):
        return "squashfuse is not installed: install the package squashfuse"
    return None if open_to_all(FUSE) else f"{FUSE} must be there, readable and writable for all: {FUSE_HINT}"


def open_to_all(device: Path) -> bool:
    """Return True if the device is there and everybody may use it."""
    everybody = stat.S_IROTH | stat.S_IWOTH
    return device.exists() and device.stat().st_mode & everybody == everybody


def _try(command: list[str], settings: Settings) -> str | None:
    """Return the error of the command run by the machines' account. Raises CreationFailed if there is no account."""
    identity = None
    if os.geteuid() == 0:
        user = account(settings)
        identity = (user.pw_uid, user.pw_gid)
    environment = {"PATH": PATH, "HOME": "/nonexistent"}
    done = run(command, time_limit_seconds=TRY_SECONDS, environment=environment, identity=identity)
    if done.exit_code is None:
        return done.failure
    return " ".join(done.errors.decode(errors="replace").split()) + _HINT if done.failure else None
