"""Tiny guests for virtual machines, built from Debian packages: a kernel, busybox and an init script.

Packages are downloaded and unpacked, not installed. What is built is kept in CACHE under a name that depends
on everything that went into it, so that a second run of the tests takes no time. A guest needs 96 MiB.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Union

from tests.conftest import require_tool

CACHE = Path(os.environ.get("VAC_TEST_IMAGES", "/var/tmp/vac-test-images"))
KERNEL = "linux-image-cloud-amd64"
PACKAGES = ("isolinux", "syslinux-common", "busybox-static")
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "virtio-rng", "button", "evdev")
"""Modules that a guest needs beside what is built in: serial console, ext4."""
COMMAND_LINE = "console=ttyS0 quiet panic=1 random.trust_cpu=on no_timer_check"
"""On a busy host the kernel would take the emulated timer for a broken one."""
Content = Union[str, bytes, Path]

PREAMBLE = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for m in $(cat /modules); do modprobe $m 2>/dev/null; done
say() { echo "VM[$(cut -d' ' -f1 /proc/uptime)] $*" >/dev/ttyS0; }
say started
"""
ACPI = """
mkdir -p /etc/acpi/PWRF /var/log /var/run
printf '#!/bin/sh\\npoweroff -f\\n' >/etc/acpi/PWRF/00000080; chmod +x /etc/acpi/PWRF/00000080
acpid -l /dev/null -p /tmp/acpid.pid
"""
"""A power button that works."""
NETWORK = """
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -q -n -t 20 -T 1 -s /etc/udhcpc.sh >/dev/null 2>&1
say "dhcp $(ip -4 -o addr show eth0 | awk '{print $4}') host=$(hostname)"
"""
CONTEXTUALIZED = (
    PREAMBLE
    + ACPI
    + NETWORK
    + """
U=http://169.254.169.254
for i in 1 2 3 4 5 6 7 8 9 10; do wget -q -O /tmp/user-data $U/latest/user-data && break; sleep 1; done
say "user-data $(wc -c </tmp/user-data)"
/bin/sh /tmp/user-data >/dev/ttyS0 2>&1
say "user-data rc=$?"
poweroff -f
"""
)
"""Runs what the metadata service gives as user_data, then powers off."""
IDLE = PREAMBLE + ACPI + "say ready\nwhile :; do sleep 3600; done\n"
"""A guest that idles until the power button is pressed."""
_SECTOR = bytes.fromhex(
    "FA 31C0 8ED8 FC"  # cli; xor ax, ax; mov ds, ax; cld
    "BE177C BAF803"  # mov si, 0x7C17 (the text); mov dx, 0x3F8 (the serial port)
    "AC 84C0 7403 EE EBF8"  # next: lodsb; test al, al; jz halt; out dx, al; jmp next
    "F4 EBFD"  # halt: hlt; jmp halt
)
_UDHCPC = """#!/bin/sh
case $1 in bound|renew)
 ifconfig $interface $ip netmask ${subnet:-255.255.0.0}
 [ -n "$router" ] && route add default gw $router dev $interface
 [ -n "$hostname" ] && hostname $hostname
 for d in $dns; do echo nameserver $d; done > /etc/resolv.conf;; esac
"""
_PUT = """#!/bin/sh
# put NAME TEXT: store it in joboutputs of this machine; prints the first line of the answer
{ printf 'PUT /joboutputs/%s HTTP/1.1\\r\\nHost: 169.254.169.253\\r\\nConnection: close\\r\\n' "$1"
  printf 'Content-Length: %d\\r\\n\\r\\n%s' "${#2}" "$2"; } | nc 169.254.169.253 80 | head -n 1
"""
_ISOLINUX = f"""SERIAL 0 115200
DEFAULT vm
PROMPT 0
TIMEOUT 0
LABEL vm
 KERNEL vmlinuz
 INITRD initrd.gz
 APPEND {COMMAND_LINE}
"""


@dataclass(frozen=True)
class Guest:
    """A guest's init script and contents. files: further ones by their path inside; all can be executed."""

    init: str
    modules: Sequence[str] = MODULES
    files: Mapping[str, Content] = field(default_factory=dict)


def kernel() -> Path:
    """The kernel of all guests."""
    packages = _unpacked()
    return packages / "boot" / f"vmlinuz-{_version(packages)}"


def initramfs(guest: Guest) -> Path:
    """Its root, for booting with kernel() and COMMAND_LINE."""
    packages = _unpacked()
    modules = _module_files(packages, guest.modules)
    files: dict[str, Content] = {
        "bin/busybox": packages / "bin/busybox",
        "bin/put": _PUT,
        "etc/udhcpc.sh": _UDHCPC,
        "init": guest.init,
        "modules": "\n".join(guest.modules),
        **{str(path.relative_to(packages)).removesuffix(".xz"): path for path in modules},
        **guest.files,
    }
    return built("initrd.gz", files, lambda target: _make_initramfs(files, _version(packages), target))


def boot_iso(guest: Guest, partition: Path | None = None) -> Path:
    """A CD image that boots it, also as a disk; 16 MiB. partition: the image of a second one on it."""
    packages = _unpacked()
    files: dict[str, Content] = {
        "isolinux/vmlinuz": kernel(),
        "isolinux/initrd.gz": initramfs(guest),
        "isolinux/isolinux.bin": packages / "usr/lib/ISOLINUX/isolinux.bin",
        "isolinux/ldlinux.c32": packages / "usr/lib/syslinux/modules/bios/ldlinux.c32",
        "isolinux/isolinux.cfg": _ISOLINUX,
    }
    hybrid = packages / "usr/lib/ISOLINUX/isohdpfx.bin"
    options = ["-b", "isolinux/isolinux.bin", "-boot-info-table", "-isohybrid-mbr", str(hybrid)]
    if partition is not None:
        options += ["-append_partition", "2", "0x83", str(partition)]
    parts = {**files, **({} if partition is None else {"": partition})}
    return built("iso", parts, lambda target: _make_iso(files, options, target))


def halting_iso() -> Path:
    """A CD image, also as a disk, of a guest that says that it has started and halts, which takes no CPU time."""
    sector = (_SECTOR + b"VM[0] started\n\0").ljust(510, b"\0") + b"\x55\xaa"
    files: dict[str, Content] = {"boot.bin": sector}

    def make(target: Path) -> None:
        _make_iso(files, ["-b", "boot.bin"], target)
        with target.open("r+b") as disk:
            disk.write(sector)
            disk.truncate(2**20)  # a BIOS boots from no disk that is smaller than one of its cylinders

    return built("halting.iso", files, make)


def disk_qcow2(guest: Guest, partition: Path | None = None) -> Path:
    """The same as a disk image."""
    iso = boot_iso(guest, partition)
    command = [require_tool("qemu-img"), "convert", "-q", "-f", "raw", "-O", "qcow2", str(iso)]
    return built("qcow2", {"iso": iso}, lambda target: run(*command, str(target)))


def built(kind: str, parts: Mapping[str, Content], make: Callable[[Path], object]) -> Path:
    """Return the file that make() makes of these parts, once. Files among them are known by path and mtime."""
    digest = hashlib.sha256()
    for name, content in sorted(parts.items()):
        stamp = content.stat().st_mtime_ns if isinstance(content, Path) else 0
        digest.update(repr((name, content, stamp)).encode())
    target = CACHE / f"{digest.hexdigest()[:24]}.{kind}"
    with _locked():
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                made = Path(scratch, target.name)
                make(made)
                made.rename(target)
    return target


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Two test runs may build at the same time. What somebody else has put there isn't used."""
    CACHE.mkdir(mode=0o755, exist_ok=True)
    assert CACHE.stat().st_uid == os.geteuid(), f"{CACHE} is somebody else's; set VAC_TEST_IMAGES"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpacked() -> Path:
    """A directory with the packages' files."""
    CACHE.mkdir(mode=0o755, exist_ok=True)
    found = sorted(CACHE.glob("packages-*"))
    if found:
        return found[-1]
    with _locked(), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        ready = sorted(CACHE.glob("packages-*"))
        if ready:
            return ready[-1]
        debs, tree = Path(scratch, "debs"), Path(scratch, "tree")
        debs.mkdir()
        _download(debs)
        for deb in debs.iterdir():
            run("dpkg", "-x", str(deb), str(tree))
        for name in ("bin", "lib"):  # since Debian 13 packages have them below /usr alone
            if not (tree / name).exists():
                (tree / name).symlink_to(f"usr/{name}")
        version = _version(tree)
        run("depmod", "-b", str(tree), version)
        shutil.rmtree(tree / "usr/share", ignore_errors=True)
        tree.rename(CACHE / f"packages-{version}")
    return CACHE / f"packages-{version}"


def _download(directory: Path) -> None:
    """The packages. A fresh host may not know yet which there are."""
    for prepare in ([], ["apt-get", "-q", "update"]):
        if prepare:
            run(*prepare)
        depends = subprocess.run(
            ["apt-cache", "depends", KERNEL], capture_output=True, text=True, check=False
        ).stdout
        image = re.search(r"Depends: (linux-image-\S+)", depends)
        command = ["apt-get", "-q", "download", *PACKAGES, image[1] if image else KERNEL]
        if image and subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0:
            return
    raise AssertionError(f"apt-get can't download {KERNEL} and {' '.join(PACKAGES)}")


def _version(packages: Path) -> str:
    return next((packages / "lib/modules").iterdir()).name


def _module_files(packages: Path, modules: Sequence[str]) -> list[Path]:
    """These modules and those they need."""
    found = []
    for module in modules:
        command = ["modprobe", "-d", str(packages), "-S", _version(packages), "--show-depends", module]
        for line in run(*command).splitlines():
            kind, _, path = line.partition(" ")
            if kind == "insmod":
                found.append(Path(path.strip()))
    index = packages / "lib/modules" / _version(packages)
    return [*found, *(index / f"modules.{name}" for name in ("order", "builtin", "builtin.modinfo"))]


def _make_initramfs(files: Mapping[str, Content], version: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        root = Path(scratch)
        for name in ("proc", "sys", "dev", "tmp", "etc", "mnt"):
            (root / name).mkdir(exist_ok=True)
        _fill(root, files)
        run("depmod", "-b", str(root), version)
        names = b"\0".join(os.fsencode(path.relative_to(root)) for path in sorted(root.rglob("*")))
        command = [require_tool("cpio"), "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        done = subprocess.run(command, cwd=root, input=names, capture_output=True, check=True)
        target.write_bytes(gzip.compress(done.stdout, 6, mtime=0))


def _make_iso(files: Mapping[str, Content], options: Sequence[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        _fill(Path(scratch), files)
        words = [require_tool("xorriso"), "-as", "mkisofs", "-quiet", "-V", "VAC", "-o", str(target)]
        run(*words, *options, "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", scratch)


def _fill(root: Path, files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path) and content.suffix == ".xz" != path.suffix:
            path.write_bytes(lzma.decompress(content.read_bytes()))
        elif isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o755)


def run(*command: str) -> str:
    """Return the command's output; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
