"""Domain XML of machines, what is read back of it, and disks that are files. Needs no libvirt.

The form is https://libvirt.org/formatdomain.html; the content is what CernVM and cloud images expect.

The hypervisor opens a file when the machine is made; then its name is removed. So it vanishes with the machine, whoever
crashes, and a host that comes back after a power failure has nothing left to find.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.host.child_processes import run
from vac.host.filesystems import real_image
from vac.host.probes import CVMFS
from vac.text import without_url_secrets

NETWORK = "vac_169.254.0.0"
SERVER = "169.254.169.253"
"""Gateway, DHCP and name server, Machine/Job Features."""
METADATA = "169.254.169.254"
FILTER = "clean-traffic"
"""Keeps a guest from using another's MAC or IP address; comes with libvirt."""
PRODUCT = "OpenStack Nova"
"""Tells cloud-init that there is a metadata service."""
NAMESPACE = "urn:vac-factory:machine:1"
"""Of our own element in a domain's metadata."""
DEFAULT_GB_PER_PROCESSOR = 40
"""Of file-backed disks, if nothing is configured."""
QEMU_IMG_SECONDS = 60.0
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQ56xQ")
"""magic, version, backing_file_offset, incompatible features of version 3"""
_EXTERNAL_DATA_FILE = 1 << 2

ET.register_namespace("vac", NAMESPACE)


@dataclass(frozen=True)
class Hypervisor:
    """Properties of the hypervisor that machines depend on."""

    domain_type: str
    """kvm or qemu; libvirt's mock calls itself test."""
    arch: str
    machine: str | None = None
    """The board; None: the hypervisor's default."""
    cd_bus: str = "sata"
    """Bus of a CD-ROM drive."""
    filtering: bool = False
    """True if it has the filter FILTER."""
    owner: tuple[int, int] | None = None
    """uid and gid of machines' processes; None: they are root's, or it doesn't tell."""


@dataclass(frozen=True)
class Image:
    """A root_image on this host. Machines share it, none may write it."""

    path: Path
    image_format: str = "raw"
    readable: bool = True
    """True if everybody can read it: then it stays root's; else libvirt gives it to machines' processes."""


@dataclass(frozen=True)
class Disk:
    """A disk of a machine: a file, or a block device of the host."""

    path: Path
    device: str
    """Its name inside, such as vda; vd* are virtio, hd* IDE, others SATA."""
    image_format: str = "raw"
    block: bool = False
    backing: Image | None = None

    @property
    def bus(self) -> str:
        """Bus that its name stands for."""
        return {"vd": "virtio", "hd": "ide"}.get(self.device[:2], "sata")


@dataclass(frozen=True)
class DomainFacts:
    """The parts of a domain's XML that Vac needs again."""

    factory: str | None
    """Factory that made it; None: none of version 4 did."""
    domain_type: str
    root_image: str
    own_files: tuple[Path, ...]
    """Files of its image and disks in its own directory: they go with it."""
    address: str
    display: str
    filtered: bool
    """True if no card of it is in our network without the filter FILTER."""


def domain_xml(
    spec: MachineSpec, hypervisor: Hypervisor, disks: Sequence[Disk], cd_image: Image | None = None
) -> str:
    """Return the XML of this machine's domain. It boots from cd_image, or from the first disk if there is none."""
    own = {
        "factory": spec.settings.factory_name,
        "space": spec.settings.vac_space,
        "machinetype": spec.machinetype.name,
        "directory": str(spec.directory),
        "root_image": without_url_secrets(spec.machinetype.root_image or ""),
        "address": spec.address or "",
    }
    board = {"machine": hypervisor.machine} if hypervisor.machine is not None else {}
    cpu = {"kvm": "host-passthrough", "qemu": "maximum"}.get(hypervisor.domain_type)
    domain = _element(
        "domain",
        _element("name", spec.name),
        _element("uuid", spec.uuid),
        _element("metadata", _element(f"{{{NAMESPACE}}}machine", **own)),
        _element("memory", str(spec.memory_bytes // 1024), unit="KiB"),
        _element("vcpu", str(spec.processors)),
        _element(
            "os",
            _element("type", "hvm", arch=hypervisor.arch, **board),
            _element("boot", dev="hd" if cd_image is None else "cdrom"),
            _element("smbios", mode="sysinfo"),
        ),
        _element("sysinfo", _element("system", _element("entry", PRODUCT, name="product")), type="smbios"),
        _element("features", _element("acpi"), _element("apic")),
        *([_element("cpu", mode=cpu)] if cpu is not None else []),
        _element("clock", offset="utc"),
        *(_element(event, "destroy") for event in ("on_poweroff", "on_reboot", "on_crash")),
        _element(
            "devices",
            *([] if cd_image is None else [_cd(cd_image, hypervisor, {disk.device for disk in disks})]),
            *(_disk(disk, hypervisor) for disk in disks),
            *_devices(spec, hypervisor),
        ),
        type=hypervisor.domain_type,
    )
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def mac_address(address: str) -> str:
    """Return the MAC of the machine with this IPv4 address: 56:4D and its four bytes."""
    return ":".join(["56", "4D", *(f"{byte:02X}" for byte in IPv4Address(address).packed)])


def domain_facts(xml: str) -> DomainFacts:
    """Return the facts of a domain's XML, be it ours or not."""
    domain = ET.fromstring(xml)
    own = domain.find(f"metadata/{{{NAMESPACE}}}machine")
    told = own.attrib if own is not None else {}
    directory = told.get("directory", "")
    files = [Path(source.get("file", "")) for source in domain.iterfind("devices/disk//source")]
    return DomainFacts(
        factory=told.get("factory"),
        domain_type=domain.get("type", ""),
        root_image=told.get("root_image", ""),
        own_files=tuple(path for path in files if directory and str(path.parent) == directory),
        address=told.get("address", ""),
        display=_display(domain.find("devices/graphics")),
        filtered=all(
            card.find(f"filterref[@filter='{FILTER}']") is not None
            for card in domain.iterfind(f"devices/interface/source[@network='{NETWORK}']/..")
        ),
    )


def _display(graphics: ET.Element | None) -> str:
    """Return the path of a screen's socket, or the address and port that a classic Vac gave it."""
    if graphics is None:
        return ""
    address = f"{graphics.get('listen', '')}:{graphics.get('port', '')}"
    return graphics.get("socket") or (address if graphics.get("port") else "")


def hypervisor(capabilities: str, wanted: str) -> Hypervisor:
    """Return the hypervisor that virConnectGetCapabilities' XML describes; it tells nothing of filters.

    wanted is vm_domain_type. Raises EngineUnavailable if the hypervisor doesn't offer that.
    """
    root = ET.fromstring(capabilities)
    host = root.findtext("host/cpu/arch", "")
    guests = [guest for guest in root.iterfind("guest") if guest.findtext("os_type") == "hvm"]
    arches = {arch.get("name", ""): arch for guest in guests for arch in guest.iterfind("arch")}
    name, arch = (host, arches[host]) if host in arches else next(iter(arches.items()), ("", None))
    offered = [] if arch is None else [one.get("type", "") for one in arch.iterfind("domain")]
    chosen = wanted if wanted != "auto" else "kvm" if "kvm" in offered else next(iter(offered), "")
    if arch is None or chosen not in offered:
        kinds = " and ".join(offered) or "no"
        raise EngineUnavailable(
            f"the hypervisor offers {kinds} machines for {host}, and vm_domain_type is {wanted}"
        )
    machines = {one.text for place in (arch, *arch.iterfind("domain")) for one in place.iterfind("machine")}
    board = "pc" if "pc" in machines else None
    return Hypervisor(chosen, name, board, "ide" if board else "sata", owner=_owner(root, chosen))


def _owner(capabilities: ET.Element, domain_type: str) -> tuple[int, int] | None:
    """Return uid and gid of machines' processes: the label +UID:+GID of security model dac."""
    for model in capabilities.iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            labels = {one.get("type"): one.text or "" for one in model.iterfind("baselabel")}
            found = re.fullmatch(r"\+(\d+):\+(\d+)", labels.get(domain_type, ""))
            return (int(found[1]), int(found[2])) if found else None
    return None


def _element(tag: str, *content: ET.Element | str, **attributes: str) -> ET.Element:
    element = ET.Element(tag, attributes)
    for each in content:
        if isinstance(each, str):
            element.text = each
        else:
            element.append(each)
    return element


def _cd(image: Image, hypervisor: Hypervisor, taken: set[str]) -> ET.Element:
    prefix = "hd" if hypervisor.cd_bus == "ide" else "sd"
    device = next(name for letter in "cdab" if (name := prefix + letter) not in taken)
    return _element(
        "disk",
        _element("driver", name="qemu", type=image.image_format),
        _file(image.path, kept=image.readable and hypervisor.owner is not None),
        _element("target", dev=device, bus=hypervisor.cd_bus),
        _element("readonly"),
        type="file",
        device="cdrom",
    )


def _disk(disk: Disk, hypervisor: Hypervisor) -> ET.Element:
    """Return a disk. Nothing of it is needed after the machine's end, so a file needs no flushing ("unsafe").

    Failed writes are the guest's errors: else a full file system of the host would pause it.
    """
    how = {"cache": "none", "io": "native"} if disk.block else {"cache": "unsafe"}
    owned, below = hypervisor.owner is not None, []
    if disk.backing is not None:
        below = [
            _element(
                "backingStore",
                _element("format", type=disk.backing.image_format),
                _file(disk.backing.path, kept=owned and disk.backing.readable),
                _element("backingStore"),
                type="file",
            )
        ]
    return _element(
        "disk",
        _element(
            "driver", name="qemu", type=disk.image_format, **how, error_policy="report", discard="unmap"
        ),
        _element("source", dev=str(disk.path)) if disk.block else _file(disk.path, kept=owned),
        *below,
        _element("target", dev=disk.device, bus=disk.bus),
        type="block" if disk.block else "file",
        device="disk",
    )


def _file(path: Path, *, kept: bool) -> ET.Element:
    """Return the source of a disk; kept: libvirt leaves the file's owner as it is."""
    label = [_element("seclabel", model="dac", relabel="no")] if kept else []
    return _element("source", *label, file=str(path))


def _devices(spec: MachineSpec, hypervisor: Hypervisor) -> Iterator[ET.Element]:
    if spec.address is not None:
        parameter = _element("parameter", name="IP", value=spec.address)
        yield _element(
            "interface",
            _element("mac", address=mac_address(spec.address)),
            _element("source", network=NETWORK),
            _element("model", type="virtio"),
            *([_element("filterref", parameter, filter=FILTER)] if hypervisor.filtering else []),
            type="network",
        )
        # in a directory of libvirt's that only root and its QEMU can enter; a TCP port is everybody's on this host
        yield _element("graphics", _element("listen", type="socket"), type="vnc")
    log = str(spec.directory / "console.log")
    yield _element("serial", _element("source", path=log), _element("target", port="0"), type="file")
    yield _element("rng", _element("backend", "/dev/urandom", model="random"), model="virtio")
    yield _element("memballoon", model="none")
    if hypervisor.domain_type != "test":
        yield _element("panic", model="isa")


def make_sparse(path: Path, size_bytes: int) -> Path:
    """Make a file of this size without using any block. Raises OSError."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.truncate(size_bytes)
    return path


def overlay_command(image: Image, overlay: Path) -> list[str]:
    """Return the command that makes a qcow2 overlay of the image's size."""
    options = ["-q", "-f", "qcow2", "-F", image.image_format, "-b", str(image.path)]
    return ["qemu-img", "create", *options, str(overlay)]


def make_overlay(image: Image, overlay: Path) -> Path:
    """Make a qcow2 file that reads as the image and takes what is written. Raises CreationFailed, OSError."""
    done = run(overlay_command(image, overlay), time_limit_seconds=QEMU_IMG_SECONDS)
    if done.failure:
        raise CreationFailed(done.failure + (": install qemu-utils (EL9: qemu-img)" if done.missing else ""))
    return overlay


def open_image(path: Path, cvmfs: str = str(CVMFS)) -> Image:
    """Return the image with its format and the real path of its file.

    Raises OSError, and CreationFailed if it is no regular file or would have the hypervisor open other files of this
    host: its author may be anybody.

    The header is that of QEMU's docs/interop/qcow2.txt.
    """
    try:
        path = Path(real_image(str(path), cvmfs))
    except ValueError as error:
        raise CreationFailed(str(error)) from error
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise CreationFailed(f"root_image {path} is no regular file; a disk image would be right")
        header = file.read(_QCOW2_HEADER.size)
    readable = bool(mode & stat.S_IROTH)
    if not header.startswith(_QCOW2_MAGIC):
        return Image(path, "raw", readable)
    if len(header) < _QCOW2_HEADER.size:
        raise CreationFailed(f"{path.name}: a qcow2 image that is cut off")
    _, version, backing_file_offset, incompatible = _QCOW2_HEADER.unpack(header)
    if backing_file_offset or (version >= 3 and incompatible & _EXTERNAL_DATA_FILE):
        raise CreationFailed(
            f"{path.name}: a qcow2 image that refers to another file; `qemu-img convert` makes a whole one"
        )
    return Image(path, "qcow2", readable)


def remove_names(paths: Iterable[Path]) -> None:
    """Remove the names of files that a hypervisor has open, or won't open any more."""
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
