"""What `vac doctor` looks at on a host for virtual machines. It changes nothing."""

from __future__ import annotations

import errno
import importlib.util
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from vac.cli.doctor_web import serves
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import EngineUnavailable
from vac.drivers.libvirt.libvirt_domain import FILTER, METADATA, SERVER
from vac.drivers.volumes import Run, group_in_use, run_lvm
from vac.host.nat import BRIDGE, NatHost, NatProblem
from vac.machines.layout import StateDir

Row = tuple[str, Optional[str], bool]
"""As doctor.Finding: what, the problem, whether it is serious."""
_IP_FREEBIND = 15
_PROGRAMS = (
    (("dnsmasq",), "dnsmasq-base (EL9: dnsmasq)"),
    (("qemu-img",), "qemu-utils (EL9: qemu-img)"),
    (("ip",), "iproute2 (EL9: iproute)"),
    (("iptables-save", "nft"), "iptables or nftables"),
)


def rows(settings: Settings, host: NatHost | None = None) -> Iterator[Row]:
    """Everything that is looked at for VMs but the hypervisor itself."""
    for names, packages in _PROGRAMS:
        there = any(shutil.which(name) for name in names)
        yield " or ".join(names), None if there else f"install {packages}", True
    there = importlib.util.find_spec("waitress") is not None
    yield "web server for VMs", None if there else "install python3-waitress", True
    yield from (_port(settings, role, address) for role, address in (("metadata", METADATA), ("mjf", SERVER)))
    yield from _network(host or NatHost())
    key = settings.root_public_key
    no_key = "isn't there, so nobody can log in to VMs as root; make one, or leave it so"
    yield f"root_public_key {key}", None if key.is_file() else no_key, False
    if settings.vm_domain_type != "qemu":
        slow = (
            "isn't there: VMs are emulated, which is slow; load the module kvm, or allow it in the firmware"
        )
        yield "/dev/kvm", None if Path("/dev/kvm").exists() else slow, settings.vm_domain_type == "kvm"


def hypervisor_rows(settings: Settings) -> Iterator[Row]:
    """What the hypervisor offers, once it has been seen to answer."""
    from vac.drivers.libvirt.libvirt_api import Connection  # only here is libvirt needed

    connection = Connection(settings.libvirt_uri, settings.vm_domain_type)
    try:
        with connection.use("doctor") as libvirt:
            found = connection.hypervisor(libvirt)
        yield f"VMs are of type {found.domain_type}", None, True
        lacking = f"libvirt lacks the filter {FILTER}: install its default network filters"
        yield "VMs can't take each other's addresses", None if found.filtering else lacking, False
    except EngineUnavailable as error:
        yield "what VMs are made of", str(error), True
    finally:
        connection.close()
    yield from lvm_rows(settings)


def lvm_rows(settings: Settings, run: Run = run_lvm) -> Iterator[Row]:
    """What is needed for disks in a volume group, if one is used."""
    if group_in_use(settings, run) is not None:
        missing = [name for name in ("vgs", "lvs", "lvcreate", "lvremove") if shutil.which(name) is None]
        yield "LVM's programs", f"{' '.join(missing)} not there: install lvm2" if missing else None, True


def image_problems(one: Machinetype, files: Path, certificates: Path | None = None) -> Iterator[str]:
    """What VMs of this type lack for their image; relative paths are in files, CAs in certificates."""
    from vac.context.downloads import GRID_CERTIFICATES  # only here is curl's library needed

    certificates = certificates or GRID_CERTIFICATES
    if one.image_signing_dn and not (certificates.is_dir() and any(certificates.iterdir())):
        yield f"image_signing_dn needs the signers' CAs in {certificates}: there are none; install them"
    image = one.root_image or ""
    if "://" not in image and not (files / image).is_file():
        yield f"root_image {files / image} isn't there, or is no file: put a disk image there, or name a URL"


def _network(host: NatHost) -> Iterator[Row]:
    what = f"network of VMs on {BRIDGE}"
    try:
        addresses = host.addresses()
    except NatProblem as error:
        yield what, str(error), True
        return
    if addresses is None:
        yield what, "isn't there yet: vacd makes it when a VM is due", False
        return
    missing = [address for address in (SERVER, METADATA) if address not in addresses]
    problem = f"has not {' and '.join(missing)}: vacd repairs it with fix_networking" if missing else None
    yield what, problem, False
    for found in host.missing():
        yield "packet filter", found, True


def _port(settings: Settings, role: str, address: str) -> Row:
    """Could our process listen there, or does it already?"""
    what = f"TCP port 80 of {address}"
    taken = "is taken by another service: let that listen at its own addresses only"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            trial.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, 80))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return what, f"can't be tried: {error.strerror}", False
            return what, None if serves(StateDir(settings.state_dir), role) else taken, True
    return what, None, True
