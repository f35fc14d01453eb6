"""What a machine looks like to Docker: its container's configuration, and the reasons why one can't be made.

The paths inside are those of Vac 3's containers; the form is the body of the Docker Engine API's
POST /containers/create. Mounts are given as such, never as "binds": the engine would create a missing source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vac.drivers.base import MachineSpec
from vac.drivers.docker.nested import nested_profile
from vac.text import without_password

LABEL_SPACE = "vac.space"
LABEL_FACTORY = "vac.factory"
LABEL_MACHINETYPE = "vac.machinetype"
LABEL_UUID = "vac.uuid"
LABEL_NAME = "vac.machine"
LABEL_DIRECTORY = "vac.directory"
LABEL_IMAGE = "vac.image"
LABEL_DIGEST = "vac.digest"

USER_DATA = "/user_data"
MACHINEFEATURES = "/etc/machinefeatures"
JOBFEATURES = "/etc/jobfeatures"
JOBOUTPUTS = "/var/spool/joboutputs"
CVMFS = "/cvmfs"
TOKENS = "/etc/vac-tokens"

FUSE = Path("/dev/fuse")
"""With which unprivileged programs mount image files: the kernel asks for no more than a user name space."""
LONGEST_HOST_NAME = 64
"""Of the kernel, bytes."""
MOST_CPU_SHARES = 262144
"""Of the kernel and of Docker."""
LOG_OPTIONS = {"max-size": "1m", "max-file": "2"}


@dataclass(frozen=True)
class Image:
    """An image that the engine holds."""

    id: str
    digest: str
    """NAME@sha256:… as the registry knows it; "" for an image that comes from none."""
    user: str
    """Its USER, "" if it sets none."""
    entrypoint: bool
    """Has it an ENTRYPOINT, to which the command is an argument?"""


@dataclass(frozen=True)
class EngineKind:
    """What has to be known of the engine before it is asked for a container."""

    podman: bool = False
    systemd: bool = False
    """It leaves cgroups to systemd."""


def container_config(spec: MachineSpec, image: Image, engine: EngineKind = EngineKind()) -> dict[str, object]:
    """The container of this machine, in vac.slice where systemd is, else where the engine puts them."""
    machinetype = spec.machinetype
    fits = len(spec.name.encode()) <= LONGEST_HOST_NAME
    short, _, domain = spec.name.partition(".")
    return {
        "Hostname": spec.name if fits else short,
        "Domainname": "" if fits else domain,
        "Image": image.id,
        "Cmd": [machinetype.container_command],
        "User": machinetype.container_user or "",
        "Env": [
            f"MACHINEFEATURES={MACHINEFEATURES}",
            f"JOBFEATURES={JOBFEATURES}",
            f"JOBOUTPUTS={JOBOUTPUTS}",
        ],
        "Labels": {
            LABEL_SPACE: spec.settings.vac_space,
            LABEL_FACTORY: spec.settings.factory_name,
            LABEL_MACHINETYPE: machinetype.name,
            LABEL_UUID: spec.uuid,
            LABEL_NAME: spec.name,
            LABEL_DIRECTORY: str(spec.directory),
            LABEL_IMAGE: without_password(machinetype.root_image or ""),
            LABEL_DIGEST: image.digest,
        },
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": LOG_OPTIONS},
            "NetworkMode": machinetype.container_network,
            "Dns": list(machinetype.container_dns),
            "Mounts": _mounts(spec),
            **_limits(spec),
            **({"CgroupParent": "vac.slice"} if engine.systemd else {}),
            **_privileges(spec, engine),
        },
    }


def mount_targets(spec: MachineSpec) -> list[str]:
    """The paths inside at which something of the host's is mounted."""
    return [str(mount["Target"]) for mount in _mounts(spec)]


def tmp_bind_directory(spec: MachineSpec, path: str) -> Path:
    """Where on the host the directory is that the machine sees at this path of tmp_binds."""
    return spec.directory / "mnt" / quote(path.strip("/"), safe="")


def make_tmp_binds(spec: MachineSpec) -> None:
    """Make the directories of tmp_binds: new, and for all users of the container, as /tmp is."""
    for path in spec.machinetype.tmp_binds:
        directory = tmp_bind_directory(spec, path)
        directory.mkdir(parents=True)
        directory.chmod(0o1777)


def missing_source(spec: MachineSpec) -> str | None:
    """Why the machine's mounts can't be made, None if they can: Podman would make a missing directory."""
    tokens = spec.machinetype.token_dir
    if tokens is not None and not tokens.is_dir():
        return f"{tokens}, the token_dir, is no directory of this host"
    if (
        spec.machinetype.cvmfs_repositories and Path(CVMFS) not in Path("/").iterdir()
    ):  # it isn't touched here
        return f"{CVMFS} doesn't exist on this host, and the machinetype has cvmfs_repositories"
    return None


def profile_path(spec: MachineSpec) -> Path:
    """Where the profile of system calls is for Podman, which takes the path of a file, to be written before."""
    return spec.directory / "seccomp.json"


def opens_proc(spec: MachineSpec) -> bool:
    """May the machine see all of /proc, which is what the kernel asks for before it lets a nested one mount its own?

    Its files keep to owners: whoever is root there, or could become it, would write the host's settings in it.
    """
    machinetype = spec.machinetype
    user = (machinetype.container_user or "0").partition(":")[0]
    root = user == "root" or (user.isdigit() and int(user) == 0)
    return machinetype.container_nested and not root and not machinetype.container_capabilities


def hand_over(spec: MachineSpec, uid: int) -> None:
    """Give the container's user what it must execute and write: user_data is for that user alone."""
    user_data = spec.directory / "user_data"
    os.chown(user_data, uid, -1)
    user_data.chmod(0o500)
    os.chown(spec.directory / "joboutputs", uid, -1)


def creation_failure(text: str, spec: MachineSpec) -> str:
    """The reason in words of somebody who configures Vac, from what the engine says."""
    command = spec.machinetype.container_command
    if found := re.search(r"bind source path does not exist: (\S+)", text):
        return f"{found[1]} doesn't exist on this host, and the machinetype needs it bound into the container"
    if found := re.search(r"path (\S+) is mounted on (\S+) but it is not a shared or slave mount", text):
        return (
            f"{found[1]} can't follow later mounts: make {found[2]} shared (mount --make-rshared {found[2]})"
        )
    for init, package in (("docker-init", "tini"), ("container-init", "catatonit")):
        if init in text and "not found" in text:
            return f"the engine lacks its {init}, which reaps zombies in containers: install {package}"
    if re.search(r"unable to find user|unknown user|no matching entries in passwd", text):
        return f"the image has no user {spec.machinetype.container_user or 'as its USER says'}: {text}"
    if found := re.search(r'exec: "([^"]*)"', text):
        return f"{found[1] or command} can't be run in the image: {text}"
    return text


def _mounts(spec: MachineSpec) -> list[dict[str, object]]:
    machinetype = spec.machinetype
    mounts = [
        _bind(spec.directory / "user_data", USER_DATA, read_only=True),
        _bind(spec.directory / "machinefeatures", MACHINEFEATURES, read_only=True),
        _bind(spec.directory / "jobfeatures", JOBFEATURES, read_only=True),
        _bind(spec.directory / "joboutputs", JOBOUTPUTS, read_only=False),
    ]
    mounts += [_bind(tmp_bind_directory(spec, path), path, read_only=False) for path in machinetype.tmp_binds]
    if machinetype.cvmfs_repositories:
        mounts.append(_bind(Path(CVMFS), CVMFS, read_only=True, propagation="rslave"))
    if machinetype.token_dir is not None:
        mounts.append(_bind(machinetype.token_dir, TOKENS, read_only=True))
    return mounts


def _bind(source: Path, target: str, *, read_only: bool, propagation: str = "rprivate") -> dict[str, object]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": propagation},
    }


def _limits(spec: MachineSpec) -> Mapping[str, object]:
    """Memory reserved and, times memory_limit_factor, at most; no swap beyond it."""
    limits: dict[str, object] = {
        "CpuShares": min(1024 * spec.processors, MOST_CPU_SHARES),
        "MemoryReservation": spec.memory_bytes,
        "PidsLimit": spec.settings.pids_per_processor * spec.processors,
    }
    if spec.settings.memory_limit_factor > 0:
        most_bytes = int(spec.memory_bytes * spec.settings.memory_limit_factor)
        limits["Memory"] = limits["MemorySwap"] = most_bytes
        limits["MemoryReservation"] = min(spec.memory_bytes, most_bytes)
    return limits


def _privileges(spec: MachineSpec, engine: EngineKind) -> Mapping[str, object]:
    capabilities = spec.machinetype.container_capabilities
    options = [] if capabilities else ["no-new-privileges:true"]
    privileges: dict[str, object] = {"CapDrop": ["ALL"], "CapAdd": list(capabilities), "SecurityOpt": options}
    if not spec.machinetype.container_nested:
        return privileges
    profile = str(profile_path(spec)) if engine.podman else nested_profile()
    options += [f"seccomp={profile}", "apparmor=unconfined"]
    if FUSE.exists():
        privileges["Devices"] = [
            {"PathOnHost": str(FUSE), "PathInContainer": str(FUSE), "CgroupPermissions": "rw"}
        ]
    if opens_proc(spec) and engine.podman:
        options.append("unmask=/proc/*")
    elif opens_proc(spec):
        privileges |= {"MaskedPaths": ["/sys/firmware"], "ReadonlyPaths": []}
    return privileges
