"""Disks of virtual machines that are files: sparse ones, and overlays over an image that is never written.

The hypervisor opens a file when the machine is made; then its name is removed. So it vanishes with the machine,
whoever crashes, and a host that comes back after a power failure has nothing left to find.
"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vac.drivers.base import CreationFailed
from vac.drivers.libvirt.domain_xml import Image
from vac.host.probes import CVMFS, real_image

DEFAULT_GB_PER_PROCESSOR = 40
"""Of file-backed disks, if nothing is configured."""
QEMU_IMG_SECONDS = 60.0
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQ")
"""magic, version, backing_file_offset"""
_QCOW2_INCOMPATIBLE = slice(72, 80)
_EXTERNAL_DATA_FILE = 1 << 2


def make_sparse(path: Path, size_bytes: int) -> Path:
    """A new file of this size, of which no block is in use. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    return path


def overlay_command(image: Image, overlay: Path) -> list[str]:
    """What makes a qcow2 overlay, of the image's size."""
    options = ["-q", "-f", "qcow2", "-F", image.image_format, "-b", str(image.path)]
    return ["qemu-img", "create", *options, str(overlay)]


def make_overlay(image: Image, overlay: Path) -> Path:
    """A qcow2 file that reads as the image and takes what is written. Raises CreationFailed, OSError."""
    command = overlay_command(image, overlay)
    try:
        done = subprocess.run(command, capture_output=True, timeout=QEMU_IMG_SECONDS, check=False)
    except FileNotFoundError as error:
        raise CreationFailed("qemu-img isn't there: install qemu-utils (EL9: qemu-img)") from error
    except subprocess.TimeoutExpired as error:
        raise CreationFailed(f"qemu-img hasn't made {overlay} within {QEMU_IMG_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise CreationFailed(f"qemu-img: {done.stderr.decode(errors='replace').strip()}")
    return overlay


def open_image(path: Path, cvmfs: str = str(CVMFS)) -> Image:
    """What the image is: qcow2 or raw, and where its file really is. Raises OSError, and CreationFailed for one that
    is no regular file or would have the hypervisor open other files of this host: its author may be a stranger.

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
        header = file.read(_QCOW2_INCOMPATIBLE.stop)
    readable = bool(mode & stat.S_IROTH)
    if not header.startswith(_QCOW2_MAGIC):
        return Image(path, "raw", readable)
    if len(header) < _QCOW2_INCOMPATIBLE.stop:
        raise CreationFailed(f"{path.name}: a qcow2 image that is cut off")
    _, version, backing_file_offset = _QCOW2_HEADER.unpack_from(header)
    incompatible = int.from_bytes(header[_QCOW2_INCOMPATIBLE], "big") if version >= 3 else 0
    if backing_file_offset or incompatible & _EXTERNAL_DATA_FILE:
        raise CreationFailed(
            f"{path.name}: a qcow2 image that refers to another file; `qemu-img convert` makes a whole one"
        )
    return Image(path, "qcow2", readable)


def remove_names(paths: Iterable[Path]) -> None:
    """Remove the names of files that a hypervisor has open, or that it won't open any more."""
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
