"""Domain XML: what a machine looks like to libvirt, and what of it is read back.

The form is https://libvirt.org/formatdomain.html; the content is what CernVM and cloud images expect. Needs no libvirt.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from vac.drivers.base import EngineUnavailable, MachineSpec
from vac.text import without_password

NETWORK = "vac_169.254.0.0"
FILTER = "clean-traffic"
"""Keeps a guest from using another's MAC or IP address; libvirt brings it along."""
PRODUCT = "OpenStack Nova"
"""By which cloud-init finds the metadata service."""
NAMESPACE = "urn:vac-factory:machine:1"
"""Of our own element in a domain's metadata."""
FIRST_DISPLAY_PORT = 5900
_FIRST_ADDRESS = IPv4Address("169.254.169.0")
_BUSES = {"vd": "virtio", "hd": "ide"}
_OTHER_BUS = "sata"

ET.register_namespace("vac", NAMESPACE)


@dataclass(frozen=True)
class Hypervisor:
    """What the hypervisor makes machines of."""

    domain_type: str
    """kvm or qemu; libvirt's mock calls itself test."""
    arch: str
    machine: str | None = None
    """The board; None: the hypervisor's default."""
    cd_bus: str = "sata"
    """How a CD-ROM drive is attached to it."""
    filtering: bool = False
    """Has it the filter FILTER?"""
    owner: tuple[int, int] | None = None
    """uid and gid that machines' processes have; None: they are root's, or it doesn't tell."""


@dataclass(frozen=True)
class Image:
    """A root_image on this host. Machines share it, none may write it."""

    path: Path
    image_format: str = "raw"
    readable: bool = True
    """Can everybody read it? Then it stays root's; else libvirt gives it to machines' processes."""


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
        """How it is attached."""
        return _BUSES.get(self.device[:2], _OTHER_BUS)


@dataclass(frozen=True)
class DomainFacts:
    """What a domain's XML says that Vac needs to know again."""

    factory: str | None
    """The factory that made it; None: none of version 4 did."""
    domain_type: str
    root_image: str
    own_files: tuple[Path, ...]
    """Files of its image and disks in its own directory: they go with it."""
    address: str
    display: str
    filtered: bool
    """Is no card of it in our network without the filter FILTER?"""


def domain_xml(
    spec: MachineSpec, hypervisor: Hypervisor, disks: Sequence[Disk], cd_image: Image | None = None
) -> str:
    """The domain of this machine. It boots from cd_image, or from the first disk if there is none."""
    domain = ET.Element("domain", type=hypervisor.domain_type)
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    _metadata(domain, spec)
    _text(domain, "memory", str(spec.memory_bytes // 1024), unit="KiB")
    _text(domain, "vcpu", str(spec.processors))
    _firmware(domain, hypervisor, boot="hd" if cd_image is None else "cdrom")
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    cpu = {"kvm": "host-passthrough", "qemu": "maximum"}.get(hypervisor.domain_type)
    if cpu is not None:
        ET.SubElement(domain, "cpu", mode=cpu)
    ET.SubElement(domain, "clock", offset="utc")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    devices = ET.SubElement(domain, "devices")
    if cd_image is not None:
        _cd(devices, cd_image, hypervisor, {disk.device for disk in disks})
    for disk in disks:
        _disk(devices, disk, hypervisor)
    _devices(devices, spec, hypervisor)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def mac_address(address: str) -> str:
    """The MAC of the machine with this IPv4 address: 56:4D and its four bytes."""
    return ":".join(["56", "4D", *(f"{byte:02X}" for byte in IPv4Address(address).packed)])


def display_port(address: str) -> int:
    """The TCP port of 127.0.0.1 with the screen of 169.254.169.N: 5900 + N."""
    return FIRST_DISPLAY_PORT + int(IPv4Address(address)) - int(_FIRST_ADDRESS)


def domain_facts(xml: str) -> DomainFacts:
    """What the XML of a domain says, be it ours or not."""
    domain = ET.fromstring(xml)
    own = domain.find(f"metadata/{{{NAMESPACE}}}machine")
    directory = own.get("directory", "") if own is not None else ""
    files = [Path(source.get("file", "")) for source in domain.iterfind("devices/disk//source")]
    graphics = domain.find("devices/graphics")
    return DomainFacts(
        factory=own.get("factory") if own is not None else None,
        domain_type=domain.get("type", ""),
        root_image=own.get("root_image", "") if own is not None else "",
        own_files=tuple(path for path in files if directory and str(path.parent) == directory),
        address=own.get("address", "") if own is not None else "",
        display="" if graphics is None else f"{graphics.get('listen', '')}:{graphics.get('port', '')}",
        filtered=all(
            card.find(f"filterref[@filter='{FILTER}']") is not None
            for card in domain.iterfind(f"devices/interface/source[@network='{NETWORK}']/..")
        ),
    )


def hypervisor(capabilities: str, wanted: str) -> Hypervisor:
    """What there is to make machines of, from virConnectGetCapabilities' XML, which tells nothing of filters.

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
    """Of machines' processes: the label +UID:+GID of security model dac."""
    for model in capabilities.iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            labels = {one.get("type"): one.text or "" for one in model.iterfind("baselabel")}
            found = re.fullmatch(r"\+(\d+):\+(\d+)", labels.get(domain_type, ""))
            return (int(found[1]), int(found[2])) if found else None
    return None


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _metadata(domain: ET.Element, spec: MachineSpec) -> None:
    attributes = {
        "factory": spec.settings.factory_name,
        "space": spec.settings.vac_space,
        "machinetype": spec.machinetype.name,
        "directory": str(spec.directory),
        "root_image": without_password(spec.machinetype.root_image or ""),
        "address": spec.address or "",
    }
    ET.SubElement(ET.SubElement(domain, "metadata"), f"{{{NAMESPACE}}}machine", attributes)


def _firmware(domain: ET.Element, hypervisor: Hypervisor, boot: str) -> None:
    firmware = ET.SubElement(domain, "os")
    board = {"machine": hypervisor.machine} if hypervisor.machine is not None else {}
    _text(firmware, "type", "hvm", arch=hypervisor.arch, **board)
    ET.SubElement(firmware, "boot", dev=boot)
    ET.SubElement(firmware, "smbios", mode="sysinfo")
    system = ET.SubElement(ET.SubElement(domain, "sysinfo", type="smbios"), "system")
    _text(system, "entry", PRODUCT, name="product")


def _cd(devices: ET.Element, image: Image, hypervisor: Hypervisor, taken: set[str]) -> None:
    prefix = "hd" if hypervisor.cd_bus == "ide" else "sd"
    device = next(name for letter in "cdab" if (name := prefix + letter) not in taken)
    cd = ET.SubElement(devices, "disk", type="file", device="cdrom")
    ET.SubElement(cd, "driver", name="qemu", type=image.image_format)
    _file(cd, image.path, kept=image.readable and hypervisor.owner is not None)
    ET.SubElement(cd, "target", dev=device, bus=hypervisor.cd_bus)
    ET.SubElement(cd, "readonly")


def _disk(devices: ET.Element, disk: Disk, hypervisor: Hypervisor) -> None:
    """Nothing of it is needed after the machine's end, so a file may do without flushing ("unsafe").

    What can't be written is the guest's error: else a full file system of the host would pause it.
    """
    element = ET.SubElement(devices, "disk", type="block" if disk.block else "file", device="disk")
    driver = {"cache": "none", "io": "native"} if disk.block else {"cache": "unsafe"}
    ET.SubElement(
        element,
        "driver",
        {"name": "qemu", "type": disk.image_format, **driver, "error_policy": "report", "discard": "unmap"},
    )
    owned = hypervisor.owner is not None
    if disk.block:
        ET.SubElement(element, "source", dev=str(disk.path))
    else:
        _file(element, disk.path, kept=owned)
    if disk.backing is not None:
        backing = ET.SubElement(element, "backingStore", type="file")
        ET.SubElement(backing, "format", type=disk.backing.image_format)
        _file(backing, disk.backing.path, kept=owned and disk.backing.readable)
        ET.SubElement(backing, "backingStore")
    ET.SubElement(element, "target", dev=disk.device, bus=disk.bus)


def _file(parent: ET.Element, path: Path, *, kept: bool) -> None:
    """kept: libvirt leaves its owner as it is."""
    source = ET.SubElement(parent, "source", file=str(path))
    if kept:
        ET.SubElement(source, "seclabel", model="dac", relabel="no")


def _devices(devices: ET.Element, spec: MachineSpec, hypervisor: Hypervisor) -> None:
    if spec.address is not None:
        card = ET.SubElement(devices, "interface", type="network")
        ET.SubElement(card, "mac", address=mac_address(spec.address))
        ET.SubElement(card, "source", network=NETWORK)
        ET.SubElement(card, "model", type="virtio")
        if hypervisor.filtering:
            reference = ET.SubElement(card, "filterref", filter=FILTER)
            ET.SubElement(reference, "parameter", name="IP", value=spec.address)
        port = str(display_port(spec.address))
        ET.SubElement(devices, "graphics", type="vnc", listen="127.0.0.1", port=port, autoport="no")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(spec.directory / "console.log"))
    ET.SubElement(serial, "target", port="0")
    random = ET.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", model="none")
    if hypervisor.domain_type != "test":
        ET.SubElement(devices, "panic", model="isa")
