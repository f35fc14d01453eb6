"""The options of [machinetype NAME] and [vacuum_pipe PREFIX], and what follows from the machine model alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vac.config.options import WEB_URL, Kind, matching, option

WEB = ("http://", "https://")
DOCKER = "docker://"


@dataclass(frozen=True)
class Model:
    """Facts that follow from the machine model alone."""

    engine: str
    """The engine that makes its machines; see drivers/engine.py."""
    code: str
    """Its code in the table of `vac machines`."""
    places: tuple[str, ...]
    """Places of machinefeatures, jobfeatures and joboutputs inside a machine: URLs or paths."""
    image_urls: tuple[str, ...] = WEB
    """Beginnings of URLs that root_image may have besides paths."""
    reserved: tuple[str, ...] = ()
    """Paths in a container that its program or engine refuses, and those of the machine's own files."""


_NAMES = ("machinefeatures", "jobfeatures", "joboutputs")
_URL, _TMP = (tuple(f"{place}/{name}" for name in _NAMES) for place in ("http://169.254.169.253", "/tmp"))
_DOCKER = ("/etc/machinefeatures", "/etc/jobfeatures", "/var/spool/joboutputs")
_ROOT = ("/", "/proc", "/user_data")
_VM = Model("libvirt", "VM", _URL)
MODELS = {
    "cernvm3": _VM,
    "cernvm4": _VM,
    "vm-raw": _VM,
    "docker": Model("docker", "DC", _DOCKER, (DOCKER, *WEB), (*_ROOT, *_DOCKER)),
    "singularity": Model("processes", "SC", _TMP, reserved=(*_ROOT, "/dev", "/sys", "/tmp", "/var/tmp")),
    "bubblewrap": Model("processes", "SC", _TMP, (), (*_ROOT, "/dev")),
}
VM_MODELS = tuple(name for name, model in MODELS.items() if model is _VM)
CONTAINER_MODELS = tuple(name for name, model in MODELS.items() if model is not _VM)
_DEVICE = matching(r"[a-z0-9]+", "a name of a-z and 0-9")
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "SYS_CHROOT",
)


@dataclass(frozen=True)
class Machinetype:
    """[machinetype NAME], with every default worked out. Units as the names say."""

    name: str
    target_share: float = option(
        Kind.NUMBER, 0.0, "wanted share of the space; 0: none are created", least=0, pipe=True, sample="1"
    )
    machine_model: str = option(
        Kind.CHOICE,
        "cernvm3",
        "machine model",
        choices=tuple(MODELS),
        old=("vm_model",),
        pipe=True,
        retained=True,
        sample="docker",
    )
    root_image: str | None = option(
        Kind.TEXT,
        None,
        "boot image or container image: path, URL, docker://…, /cvmfs/…",
        pipe=True,
        sample="docker://example/pilot:el9",
    )
    user_data: str | None = option(
        Kind.TEXT, None, "path or URL of the contextualization template", pipe=True, sample="user_data"
    )
    backoff_seconds: int = option(Kind.INTEGER, 10, "pause after an abort", least=0, pipe=True)
    fizzle_seconds: int = option(
        Kind.INTEGER,
        600,
        "a machine that ends before this, in seconds, without a shutdown message has aborted",
        least=0,
        pipe=True,
        retained=True,
    )
    max_wallclock_seconds: int = option(
        Kind.INTEGER, 86400, "longest life of a machine", least=1, pipe=True, retained=True
    )
    min_wallclock_seconds: int = option(
        Kind.INTEGER,
        0,
        "no machine is created if less time than this remains",
        least=0,
        pipe=True,
        default_doc="max_wallclock_seconds",
        sample="43200",
    )
    min_processors: int = option(Kind.INTEGER, 1, "fewest processors of a machine", least=1, pipe=True)
    max_processors: int = option(Kind.INTEGER, 1, "most processors of a machine", least=1, pipe=True)
    machines_dir_days: float = option(
        Kind.NUMBER,
        3.0,
        "days for which directories of finished machines are kept; 0: for ever",
        least=0,
        old=("machineoutputs_days",),
    )
    accounting_fqan: str | None = option(
        Kind.TEXT,
        None,
        "FQAN in accounting records",
        pipe=True,
        retained=True,
        sample="/vo.example.org/Role=NULL/Capability=NULL",
    )
    machinegroup: str = option(
        Kind.TEXT,
        "",
        "shares are compared by group first",
        default_doc="accounting_fqan, else NAME",
        sample="vo.example.org",
    )
    heartbeat_file: str | None = option(
        matching(r"(?!\.{1,2}$)[^\s/]+", "a file's name without directory"),
        None,
        "file that a machine must make in its joboutputs within fizzle_seconds",
        pipe=True,
        retained=True,
        sample="vm-heartbeat",
    )
    heartbeat_seconds: int = option(
        Kind.INTEGER, 0, "longest age of heartbeat_file; 0: any", least=0, pipe=True, retained=True
    )
    idle_cpu_percent: float | None = option(
        Kind.NUMBER,
        None,
        "a machine whose CPU use stays below this for idle_seconds is destroyed",
        least=0,
        retained=True,
        sample="2",
    )
    idle_seconds: int = option(Kind.INTEGER, 3600, "period of idle_cpu_percent", least=1, retained=True)
    cvmfs_repositories: tuple[str, ...] = option(
        matching(
            r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*",
            "a repository's name, such as grid.cern.ch",
            many=True,
        ),
        (),
        "CernVM-FS repositories that containers need; they get /cvmfs",
        pipe=True,
        sample="grid.cern.ch vo.example.org",
    )
    tmp_binds: tuple[str, ...] = option(
        Kind.PATHS,
        (),
        "empty, writable directories in a container",
        pipe=True,
        sample="/scratch /var/spool/pilot",
    )
    container_command: str = option(
        Kind.INNER_PATH, "/user_data", "program that a container runs, without arguments", pipe=True
    )
    container_user: str | None = option(
        matching(
            r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(:[A-Za-z0-9_.][A-Za-z0-9_.-]*)?",
            "a user or uid, perhaps with ':' and a group",
        ),
        None,
        "user or uid inside Docker containers",
        default_doc="the image's",
        sample="1000",
    )
    container_capabilities: tuple[str, ...] = option(
        Kind.CAPABILITIES,
        CAPABILITIES,
        "capabilities that a Docker container keeps; none: it can't gain privileges either",
        sample="none",
    )
    container_network: str = option(
        Kind.CHOICE, "bridge", "network of Docker containers", choices=("bridge", "host", "none")
    )
    container_dns: tuple[str, ...] = option(
        Kind.ADDRESSES, (), "resolvers of Docker containers", sample="192.0.2.53"
    )
    container_nested: bool = option(
        Kind.BOOLEAN, False, "allow unprivileged containers inside a Docker or bubblewrap machine"
    )
    token_dir: Path | None = option(
        Kind.PATH,
        None,
        "directory bound read-only at /etc/vac-tokens in containers",
        sample="/var/lib/vac-tokens",
    )
    image_signing_dn: str | None = option(
        Kind.REGEX,
        None,
        "DN that must have signed a VM's root image",
        old=("cernvm_signing_dn",),
        pipe=True,
        sample="/CN=cvm-sign01\\.cern\\.ch$",
    )
    root_device: str = option(_DEVICE, "vda", "name of a VM's root disk", pipe=True)
    scratch_device: str = option(_DEVICE, "vdb", "name of a VM's scratch disk", pipe=True)
    disk_gb_per_processor: int | None = option(
        Kind.INTEGER,
        None,
        "disk of a machine per processor, GB; not above the value of [settings]",
        least=0,
        pipe=True,
        retained=True,
        default_doc="that of [settings]",
        sample="10",
    )
    user_data_proxy: bool = option(
        Kind.BOOLEAN, False, "make a limited X.509 proxy for each machine", pipe=True
    )
    legacy_proxy: bool = option(Kind.BOOLEAN, False, "Globus legacy proxy instead of RFC 3820", pipe=True)
    user_data_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """user_data_option_XXX by XXX, those of [settings] included."""
    user_data_files: Mapping[str, str] = field(default_factory=dict)
    """user_data_file_XXX by XXX: paths, those of [settings] included."""
    pipe: str | None = None
    """Prefix of the Vacuum Pipe that it comes from; its files are in that prefix's directory."""


@dataclass(frozen=True)
class VacuumPipe:
    """One Vacuum Pipe as the site's files declare it; its document is fetched elsewhere."""

    name: str
    """PREFIX: its machinetypes are called PREFIX-suffix."""
    vacuum_pipe_url: str = option(
        WEB_URL,
        "",
        "URL of the pipe's document",
        required=True,
        sample="https://vo.example.org/vacuum.pipe",
    )
    target_share: float = option(
        Kind.NUMBER, 0.0, "share of the space that the pipe's machinetypes divide", least=0, sample="1"
    )
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Parsed options of [machinetype NAME] that replace the pipe's, by name; only those that are set."""
    user_data_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """user_data_option_XXX by XXX, without those of [settings]."""
    user_data_files: Mapping[str, str] = field(default_factory=dict)
    """user_data_file_XXX by XXX, without those of [settings]."""


def reserved_paths(machine_model: str, paths: tuple[str, ...]) -> list[str]:
    """Return those of the absolute paths of tmp_binds that can't be fresh directories, in their plain form."""
    plain = [os.path.normpath(f"/{path.lstrip('/')}") for path in paths]
    return [path for path in plain if path in MODELS[machine_model].reserved]
