"""Domains of VMs and their disks. VAC_REGENERATE=1 writes the golden files anew."""

from __future__ import annotations

import os
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineUnavailable, MachineSpec
from vac.drivers.libvirt.libvirt_domain import (
    Disk,
    Hypervisor,
    Image,
    domain_facts,
    domain_xml,
    hypervisor,
    mac_address,
    make_sparse,
    open_image,
    overlay_command,
    remove_names,
)

GOLDEN = Path(__file__).parents[2] / "data" / "libvirt"
KVM = Hypervisor("kvm", "x86_64", "pc", "ide", filtering=True, owner=(64055, 64055))
QEMU = Hypervisor("qemu", "x86_64", None, "sata")
DIRECTORY = Path("/var/lib/vac/machines/1800000000_t_factory1-02.example.com")
ISO = Image(Path("/var/lib/vac/imagecache/http%3A%2F%2Fexample.com%2Fcernvm.iso"))
FILE = Disk(DIRECTORY / "root.img", "vda")
CACHED = Image(Path("/var/lib/vac/imagecache/cloud.qcow2"), "qcow2")
OVERLAY = Disk(DIRECTORY / "root.qcow2", "vda", "qcow2", backing=CACHED)


def machine_spec(model: str, **options: Any) -> MachineSpec:
    return MachineSpec(
        name="factory1-02.example.com",
        uuid="5b4e6c1a-9d0f-4a37-8a5e-0c5d3c1d7f00",
        machinetype=Machinetype(
            "t", machine_model=model, **{"root_image": "http://user:secret@example.com/cernvm.iso", **options}
        ),
        settings=Settings(vac_space="vac.example.com", factory_name="factory1.example.com"),
        processors=4,
        memory_bytes=4 * 2048 * 1024 * 1024,
        directory=DIRECTORY,
        files=Path("/var/lib/vac/machinetypes/t/files"),
        address="169.254.169.2",
    )


def volume(device: str) -> Disk:
    return Disk(Path("/dev/vac_volume_group/factory1-02.example.com"), device, block=True)


CASES = {
    "cernvm3-kvm": domain_xml(machine_spec("cernvm3"), KVM, [FILE], ISO),
    "cernvm4-lvm-ide": domain_xml(machine_spec("cernvm4"), KVM, [volume("hdc")], ISO),
    "vm-raw-scratch": domain_xml(machine_spec("vm-raw"), KVM, [OVERLAY, volume("vdb")]),
    "vm-raw-qemu": domain_xml(machine_spec("vm-raw"), QEMU, [OVERLAY]),
    "cernvm3-qemu": domain_xml(machine_spec("cernvm3"), QEMU, [FILE], ISO),
}


@pytest.mark.parametrize("name", CASES)
def test_a_machines_domain(name: str) -> None:
    path = GOLDEN / f"{name}.xml"
    if "VAC_REGENERATE" in os.environ:
        path.write_text(CASES[name])
    assert CASES[name] == path.read_text()


def test_what_is_needed_again_is_read_back() -> None:
    facts = domain_facts(CASES["cernvm3-kvm"])
    assert (facts.factory, facts.domain_type, facts.address) == (
        "factory1.example.com",
        "kvm",
        "169.254.169.2",
    )
    assert facts.own_files == (FILE.path,), "the image is shared and no disk of the machine's own"
    assert facts.display == "", "libvirt chooses its socket's path when the machine is made"
    assert facts.filtered
    assert not domain_facts(CASES["cernvm3-qemu"]).filtered
    assert facts.root_image == "http://***@example.com/cernvm.iso"


def test_all_names_in_its_own_directory_go_when_it_runs() -> None:
    image = Image(DIRECTORY / "root.image", "qcow2")
    overlay = Disk(DIRECTORY / "root.qcow2", "vda", "qcow2", backing=image)
    facts = domain_facts(domain_xml(machine_spec("vm-raw"), KVM, [overlay]))
    assert facts.own_files == (overlay.path, image.path)


def test_a_strangers_domain_is_not_taken_for_ours() -> None:
    facts = domain_facts("<domain type='kvm'><devices><disk><source file='/x'/></disk></devices></domain>")
    assert facts.factory is None
    assert facts.own_files == ()
    assert facts.filtered, "its cards, if any, are in no network of ours"


def test_passwords_stay_out() -> None:
    assert not [name for name, xml in CASES.items() if "secret" in xml]


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        ("169.254.169.0", "56:4D:A9:FE:A9:00"),
        ("169.254.169.252", "56:4D:A9:FE:A9:FC"),
        ("169.254.170.0", "56:4D:A9:FE:AA:00"),
    ],
)
def test_mac_follows_from_the_address(address: str, mac: str) -> None:
    assert mac_address(address) == mac


@pytest.mark.parametrize(
    ("graphics", "display"),
    [
        (
            "type='vnc' socket='/var/lib/libvirt/qemu/domain-1-x/vnc.sock'",
            "/var/lib/libvirt/qemu/domain-1-x/vnc.sock",
        ),
        ("type='vnc' port='5902' listen='127.0.0.1'", "127.0.0.1:5902"),
    ],
)
def test_a_screen_is_where_the_domain_says(graphics: str, display: str) -> None:
    assert domain_facts(f"<domain><devices><graphics {graphics}/></devices></domain>").display == display


@pytest.mark.parametrize("name", CASES)
def test_no_screen_has_a_tcp_port(name: str) -> None:
    graphics = ET.fromstring(CASES[name]).findall("devices/graphics")
    assert [[one.get("type") for one in each] for each in graphics] in ([], [["socket"]])
    assert not [each for each in graphics if each.get("port") or each.get("listen")]


def capabilities(*domain_types: str, machines: str = "<machine>pc</machine>", arch: str = "x86_64") -> str:
    domains = "".join(f"<domain type='{one}'/>" for one in domain_types)
    return (
        f"<capabilities><host><cpu><arch>x86_64</arch></cpu><secmodel><model>none</model></secmodel>"
        f"<secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel></secmodel></host>"
        f"<guest><os_type>hvm</os_type><arch name='i686'/></guest>"
        f"<guest><os_type>hvm</os_type><arch name='{arch}'>{machines}{domains}</arch></guest></capabilities>"
    )


@pytest.mark.parametrize(
    ("offered", "wanted", "expected"),
    [
        (
            capabilities("qemu", "kvm"),
            "auto",
            Hypervisor("kvm", "x86_64", "pc", "ide", owner=(64055, 109)),
        ),
        (capabilities("qemu"), "auto", Hypervisor("qemu", "x86_64", "pc", "ide")),
        (capabilities("qemu", "kvm"), "qemu", Hypervisor("qemu", "x86_64", "pc", "ide")),
        (
            capabilities("qemu", machines="<machine>q35</machine>"),
            "auto",
            Hypervisor("qemu", "x86_64", None, "sata"),
        ),
    ],
)
def test_what_the_hypervisor_offers_decides(offered: str, wanted: str, expected: Hypervisor) -> None:
    assert hypervisor(offered, wanted) == expected


@pytest.mark.parametrize(
    ("told", "wanted", "reason"),
    [
        (capabilities("qemu"), "kvm", "offers qemu machines for x86_64, and vm_domain_type is kvm"),
        (capabilities(), "auto", "offers no machines for x86_64, and vm_domain_type is auto"),
        (
            "<capabilities><host><cpu><arch>x86_64</arch></cpu></host></capabilities>",
            "qemu",
            "offers no machines for x86_64, and vm_domain_type is qemu",
        ),
    ],
    ids=["no kvm", "no emulator", "no guests at all"],
)
def test_what_the_hypervisor_does_not_offer_is_told(told: str, wanted: str, reason: str) -> None:
    with pytest.raises(EngineUnavailable, match=reason):
        hypervisor(told, wanted)


def test_devices_have_the_bus_of_their_name() -> None:
    buses = {name: Disk(Path("/x"), name).bus for name in ("vda", "hdb", "sda")}
    assert buses == {"vda": "virtio", "hdb": "ide", "sda": "sata"}


def test_the_cd_drive_leaves_the_root_device_its_name() -> None:
    targets = [target.get("dev") for target in ET.fromstring(CASES["cernvm4-lvm-ide"]).iter("target")]
    assert targets[:2] == ["hdd", "hdc"]


def test_a_sparse_file_takes_no_room(tmp_path: Path) -> None:
    path = make_sparse(tmp_path / "root.img", 10**12)
    assert (path.stat().st_size, path.stat().st_blocks) == (10**12, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    remove_names([path, path])
    assert not path.exists()


def qcow2(backing_offset: int = 0, incompatible: int = 0, version: int = 3) -> bytes:
    header = struct.pack(">4sIQI", b"QFI\xfb", version, backing_offset, 0)
    return header.ljust(72, b"\0") + incompatible.to_bytes(8, "big") + bytes(100)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "raw"), (b"\x33\xed" * 100, "raw"), (qcow2(), "qcow2"), (qcow2(version=2), "qcow2")],
)
def test_an_images_format(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    path.chmod(0o600)
    assert open_image(path) == Image(path, expected, readable=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (qcow2(backing_offset=104), "refers to another file"),
        (qcow2(incompatible=4), "refers to another file"),
        (qcow2()[:40], "cut off"),
    ],
)
def test_an_image_that_refers_to_the_hosts_files_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(content)
    with pytest.raises(CreationFailed, match=reason):
        open_image(path)


def test_only_a_regular_file_is_an_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(CreationFailed, match="is no regular file"):
            open_image(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_image(tmp_path / "directory")


def test_a_link_out_of_cvmfs_is_no_image(tmp_path: Path) -> None:
    repository = tmp_path / "cvmfs/a.example.com"
    repository.mkdir(parents=True)
    (tmp_path / "shadow").write_text("secret")
    (repository / "image").write_text("")
    (repository / "inner").symlink_to("image")
    (repository / "outer").symlink_to("../../shadow")
    cvmfs = str(tmp_path / "cvmfs")
    assert open_image(repository / "inner", cvmfs).path == repository / "image"
    with pytest.raises(CreationFailed, match=r"is a link to .*/shadow; one below .* must not leave it"):
        open_image(repository / "outer", cvmfs)


def test_an_overlay_names_the_format_of_what_is_below_it() -> None:
    command = overlay_command(Image(Path("/i"), "qcow2"), Path("/o"))
    assert command == ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "/i", "/o"]
