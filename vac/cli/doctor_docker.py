"""What `vac doctor` looks at for Docker and Podman, once the engine has answered. It changes nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from vac.cli.doctor_processes import FUSE, FUSE_HINT, open_to_all
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import EngineUnavailable

Row = tuple[str, Optional[str], bool]
"""As doctor.Finding: what, the problem, whether it is serious."""
SYSCTLS = {"user/max_user_namespaces": "1000000", "kernel/unprivileged_userns_clone": "1"}
"""Below /proc/sys: what switches user namespaces off if it is 0 (the latter only in Debian), and what is right."""
PLACES = tuple(
    f"{place}/docker" for place in ("/usr/local/libexec", "/usr/libexec", "/usr/local/lib", "/usr/lib")
)
"""Where Docker looks for its init besides PATH. It comes with one but in distributions' packages."""


def rows(settings: Settings, machinetypes: Sequence[Machinetype]) -> Iterator[Row]:
    """Everything but whether the engine answers; machinetypes are those that it is to make."""
    from vac.drivers.docker.docker_api import Connection  # only here is the SDK needed

    connection = Connection(settings.docker_host)
    try:
        with connection.client() as client:
            told = client.info()
            podman = "podman" in str(client.version(api_version=False).get("Components")).lower()
    except EngineUnavailable as error:
        yield "what the container engine offers", str(error), True
        return
    finally:
        connection.forget()
    yield from engine_rows(told, settings.docker_host, podman=podman)
    if any(one.disk_gb_per_processor for one in machinetypes):
        yield disk_row(told)
    if any(one.container_nested for one in machinetypes) and settings.docker_host.startswith("unix:"):
        yield from nested_rows()


def engine_rows(told: Mapping[str, Any], url: str, *, podman: bool) -> Iterator[Row]:
    """By what Docker tells of itself, and, if it is on this host, by its init; of Podman there is nothing to say."""
    if podman:
        return
    if url.startswith("unix:"):
        program = str(told.get("InitBinary") or "docker-init")
        where = os.pathsep.join([os.environ.get("PATH", os.defpath), *PLACES])
        missing = "isn't there, and no machine can be made: install tini"
        yield f"{program} of Docker", None if shutil.which(program, path=where) else missing, True
    off = 'is off: machines end with dockerd; set "live-restore": true in /etc/docker/daemon.json'
    yield "live-restore of Docker", None if told.get("LiveRestoreEnabled") else off, False


def disk_row(told: Mapping[str, Any]) -> Row:
    """Can it be measured what machines write to their own layer? The image store of containerd doesn't tell where."""
    driver = str(told.get("Driver"))
    own = "io.containerd" not in str(told.get("DriverStatus"))
    problem = (
        f"storage driver {driver} doesn't tell where containers write: only their directories are measured"
    )
    known = own and driver in ("overlay2", "overlay", "fuse-overlayfs")
    return "disk_gb_per_processor of containers", None if known else problem, False


def nested_rows(sysctls: Path = Path("/proc/sys"), fuse: Path = FUSE) -> Iterator[Row]:
    """What container_nested needs of the kernel."""
    for name, right in SYSCTLS.items():
        file = sysctls / name
        if file.exists() and file.read_text().strip() == "0":
            option = name.replace("/", ".")
            problem = f"{option} is 0, which switches user namespaces off: sysctl {option}={right}"
            yield "user namespaces for container_nested", problem, True
    missing = f"not there, readable and writable for all: payloads can use directories only: {FUSE_HINT}"
    yield f"{fuse} for container_nested", None if open_to_all(fuse) else missing, False


def propagates(path: str, mountinfo: str) -> bool:
    """Is the mount that holds this path shared, or a slave? The format is proc(5)'s of /proc/PID/mountinfo."""
    most, optional = "", ""
    for line in mountinfo.splitlines():
        found = re.match(r"(?:\S+ ){4}(\S+) \S+ (.*?)- ", line)
        if found and f"{path}/".startswith(found[1].rstrip("/") + "/") and len(found[1]) >= len(most):
            most, optional = found.groups()
    return "shared:" in optional or "master:" in optional
