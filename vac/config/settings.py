"""The options of [settings]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Union

from vac.config.options import WEB_URL, Kind, matching, option

Network = Union[IPv4Network, IPv6Network]
_FIRST_SERVICE_ADDRESS = 253
"""169.254.169.253 and .254 are the factory's own."""


@dataclass(frozen=True)
class Settings:
    """[settings], with every default worked out. Units as the names say; GB are 1000³ bytes, MB are MiB."""

    vac_space: str = option(
        matching(
            r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?",
            "a name of letters, digits, '.', '-' and '_', such as vac01.example.org",
        ),
        "",
        "name of the space, like a host name; also the virtual CE's name",
        required=True,
        sample="vac01.example.org",
        retained=True,
    )
    description: str = option(
        Kind.TEXT,
        "",
        "short description for monitoring",
        sample="Worker nodes in the basement",
        no_effect=True,
    )
    factories: tuple[str, ...] = option(
        Kind.HOSTS,
        (),
        "all factories of the space; '.' is this host, a bare name gets this host's domain",
        default_doc="this factory",
        sample="vac-01.example.org vac-02.example.org",
    )
    factory_name: str = option(
        matching(r"[A-Za-z0-9._-]+", "a fully qualified host name such as vac-01.example.org"),
        "",
        "name of this factory, fully qualified; lets several share one host",
        default_doc="the kernel's host name",
        sample="vac-01.example.org",
        retained=True,
    )
    state_dir: Path = option(Kind.PATH, Path("/var/lib/vac"), "directory of everything that Vac writes")
    udp_timeout_seconds: float = option(
        Kind.NUMBER, 10.0, "time limit of a poll of all factories, seconds", least=0.1, most=3600
    )
    vacquery_port: int = option(Kind.INTEGER, 995, "UDP port of VacQuery", least=1, most=65535)
    vacquery_allow: tuple[Network, ...] = option(
        Kind.NETWORKS,
        (),
        "networks that may query besides the factories and this host",
        default_doc="directly connected networks",
        sample="192.0.2.0/24",
    )
    vacquery_key_file: Path | None = option(
        Kind.PATH,
        None,
        "file with the secret of the space: messages are signed, unsigned ones refused",
        sample="/etc/vac-space.key",
    )
    mb_per_processor: int = option(
        Kind.INTEGER,
        2048,
        "memory of a machine per processor, MiB",
        least=1,
        old=("mb_per_cpu",),
        retained=True,
    )
    hs06_per_processor: float | None = option(
        Kind.NUMBER,
        None,
        "HS06 of one processor",
        least=0.001,
        old=("hs06_per_cpu",),
        sample="10.5",
        retained=True,
    )
    hepscore23_per_processor: float | None = option(
        Kind.NUMBER,
        None,
        "HEPscore23 of one processor; then used for accounting",
        least=0.001,
        sample="10.5",
        retained=True,
    )
    processors_per_superslot: int = option(
        Kind.INTEGER,
        1,
        "processors of a superslot; 1 makes single-processor machines only",
        least=1,
        old=("cpu_per_machine", "vcpu_per_machine"),
    )
    superslot_keep_seconds: int = option(
        Kind.INTEGER,
        86400,
        "seconds before a superslot's end in which its free processors are kept for types that need several",
        least=0,
    )
    total_processors: int = option(
        Kind.INTEGER,
        0,
        "number of processors that Vac may allocate",
        least=1,
        old=("cpu_total",),
        sample="16",
        default_doc="all logical processors",
    )
    overload_per_processor: float = option(
        Kind.NUMBER,
        1.25,
        "nothing is created while the load is above this × processors",
        least=0,
        old=("overload_per_cpu",),
    )
    disk_gb_per_processor: int | None = option(
        Kind.INTEGER,
        None,
        "disk of a machine per processor, GB; 0 means not set",
        least=0,
        old=("disk_gb_per_cpu", "scratch_gb"),
        sample="20",
    )
    pipe_images_gb: int | None = option(
        Kind.INTEGER,
        None,
        "most space for images that Vacuum Pipes name by URL, GB; those of one pipe take at most half of it",
        default_doc="half of its file system",
        least=1,
        sample="200",
    )
    memory_limit_factor: float = option(
        Kind.NUMBER,
        2.0,
        "hard memory limit of containers as a multiple of their memory; 0 is no limit",
        least=0,
    )
    cpu_limit_factor: float = option(
        Kind.NUMBER,
        1.0,
        "hard limit of a container's processor time as a multiple of its processors; 0 is no limit, only its share",
        least=0,
        most=1000,
    )
    pids_per_processor: int = option(
        Kind.INTEGER, 4096, "limit of tasks of a container per processor", least=16
    )
    volume_group: str | None = option(
        matching(
            r"(?!\.{1,2}$)[A-Za-z0-9+_.][A-Za-z0-9+_.-]*", "a name of letters, digits, '+', '_', '.' and '-'"
        ),
        None,
        "LVM volume group for machines' disks",
        default_doc="vac_volume_group if there is one",
        sample="vac_volume_group",
    )
    shutdown_time: int | None = option(
        Kind.TIME, None, "no machine may run after it; 0: not set", least=0, sample="1924988400"
    )
    grace_secs: int = option(
        Kind.INTEGER, 0, "a machine's end is never moved closer than this, seconds", least=0
    )
    draining: bool = option(Kind.BOOLEAN, False, "create nothing, let the rest finish")
    machines_per_cycle: int = option(
        Kind.INTEGER, 0, "machines created per minute; 0: doubling, in steps of 15 s", least=0
    )
    share_policy: str = option(
        Kind.CHOICE, "deficit", "how the next machinetype is chosen", choices=("deficit", "classic")
    )
    health_command: Path | None = option(
        Kind.PATH,
        None,
        "program that runs every five minutes; nothing is created if it fails",
        sample="/usr/local/sbin/node-health",
    )
    singularity_user: str | None = option(
        matching(r"[^\s:/-][^\s:/]*", "a user's name"),
        None,
        "unprivileged account that Singularity machines run as, and bubblewrap's instead of nobody",
        sample="vacuser",
    )
    slot_uids: str | None = option(
        matching(
            r"[1-9][0-9]{3,9}-[1-9][0-9]{3,9}",
            "the first and the last uid, from 1000 on, with a hyphen between them",
        ),
        None,
        "uids of bubblewrap and Singularity machines, one for each slot, instead of singularity_user's",
        default_doc="for bubblewrap those of account vac in /etc/subuid",
        sample="200000-200255",
    )
    singularity_path: Path | None = option(
        Kind.PATH,
        None,
        "the program to run",
        default_doc="apptainer or singularity, as found",
        sample="/usr/bin/apptainer",
    )
    docker_host: str = option(Kind.URL, "unix:///run/docker.sock", "URL of the Docker or Podman API socket")
    libvirt_uri: str = option(Kind.URL, "qemu:///system", "URI of the hypervisor")
    vm_domain_type: str = option(
        Kind.CHOICE, "auto", "VMs' type; auto: kvm if the host has it", choices=("auto", "kvm", "qemu")
    )
    fix_networking: bool = option(Kind.BOOLEAN, True, "repair the VMs' NAT network when it can't be created")
    forward_dev: str | None = option(
        matching(r"[^\s/]{1,15}", "a network interface's name"),
        None,
        "outgoing interface of the VMs' NAT network",
        sample="eth0",
    )
    root_public_key: Path = option(Kind.PATH, Path("/root/.ssh/id_rsa.pub"), "ssh key offered to VMs")
    gocdb_sitename: str | None = option(
        Kind.NAME, None, "site's name in GOCDB, for accounting", sample="EXAMPLE-SITE", retained=True
    )
    apel_record_version: str = option(
        Kind.CHOICE,
        "0.3",
        "version of APEL job records; 0.4 has HS06 and HEPscore23, if both are configured",
        choices=("0.3", "0.4"),
        retained=True,
    )
    gocdb_cert_file: Path | None = option(
        Kind.PATH,
        None,
        "certificate for publishing capacity to GOCDB",
        sample="/etc/grid-security/hostcert.pem",
    )
    gocdb_key_file: Path | None = option(Kind.PATH, None, "its key", sample="/etc/grid-security/hostkey.pem")
    gocdb_url: str = option(
        WEB_URL,
        "https://goc.egi.eu",
        "base of the GOCDB API",
    )
    version_logger: int = option(
        Kind.COUNT_OR_BOOLEAN, 0, "factory messages a day to version_logger_hostport", no_effect=True
    )
    version_logger_hostport: str | None = option(
        Kind.HOST_PORT, None, "where these go", sample="versions.example.org:8884", no_effect=True
    )
    vacmon_hostport: tuple[str, ...] = option(
        Kind.HOST_PORTS, (), "VacMon services that get status messages", sample="vacmon.example.org:8884"
    )
    metrics_listen: str | None = option(
        Kind.HOST_PORT,
        None,
        "address of Prometheus metrics and of the status page",
        sample="0.0.0.0:9995",
    )
    machinefeatures_options: Mapping[str, str] = field(default_factory=dict)
    """machinefeatures_option_XXX by XXX: extra keys of $MACHINEFEATURES."""
    user_data_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """user_data_option_XXX by XXX."""
    user_data_files: Mapping[str, str] = field(default_factory=dict)
    """user_data_file_XXX by XXX: paths."""
    host_processors: int = 1
    """Logical processors of this host (or VAC_ASSUME_PROCESSORS): the number of slots."""

    @property
    def hs06(self) -> float:
        """Return HS06 of one processor for shares and VacQuery: HEPscore23 stands in for it, then 1.0."""
        return self.hs06_per_processor or self.hepscore23_per_processor or 1.0

    @property
    def site(self) -> str:
        """Return the site's name: gocdb_sitename, else the domain of the space's name."""
        return self.gocdb_sitename or self.vac_space.partition(".")[2] or self.vac_space


def slot_name(factory_name: str, number: int) -> str:
    """Return the host name of a slot's machines: slot 0 of factory1.example.com has factory1-00.example.com."""
    host, dot, domain = factory_name.partition(".")
    return f"{host}-{number:02d}{dot}{domain}"


def slot_number(factory_name: str, name: str) -> int | None:
    """Return the number of the slot whose machines have this name; None if it is no slot of this factory."""
    digits = name.partition(".")[0].rpartition("-")[2]
    if not (digits.isascii() and digits.isdigit()):
        return None
    number = int(digits)
    return number if slot_name(factory_name, number) == name else None


def slot_uid(settings: Settings, name: str) -> int | None:
    """Return the uid of this slot's machine; None if slot_uids isn't set. Raises ValueError if it has too few."""
    if settings.slot_uids is None:
        return None
    first, last = map(int, settings.slot_uids.split("-"))
    number = slot_number(settings.factory_name, name)
    if number is None or first + number > last:
        raise ValueError(f"slot_uids {settings.slot_uids} has no uid for {name}")
    return first + number


def slot_address(number: int) -> str:
    """Return the address of a slot's VM: 169.254.169.N up to 252, then 169.254.170.0 onwards."""
    if number < _FIRST_SERVICE_ADDRESS:
        return f"169.254.169.{number}"
    third, fourth = divmod(number - _FIRST_SERVICE_ADDRESS, 256)
    return f"169.254.{170 + third}.{fourth}"


def address_slot(address: str) -> int | None:
    """Return the number of the slot whose VM has this address; None if it is no slot's."""
    words = address.split(".")
    if len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) <= 3 for word in words):
        return None
    third, fourth = int(words[2]), int(words[3])
    number = fourth if third == 169 else _FIRST_SERVICE_ADDRESS + 256 * (third - 170) + fourth
    return number if number >= 0 and slot_address(number) == address else None
