"""Versions of files, links and mounts. The launcher of process machines imports this module, which imports little."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")
CVMFS = "/cvmfs"
_SPECIAL = re.compile(r"\\([0-7]{3})")


class FileStamp(NamedTuple):
    """Tells one version of a file from another: the key of caches."""

    device: int
    inode: int
    size: int
    mtime_ns: int


def stamp_of(file: str | os.PathLike[str] | int) -> FileStamp:
    """Return the stamp of the file with this path, links followed, or descriptor. Raises OSError."""
    return stamp_from(os.stat(file))  # noqa: PTH116  descriptors, too


def stamp_if_there(path: Path) -> FileStamp | None:
    """Return the stamp of the file with this path, a link's own, or None if it can't be looked at."""
    try:
        return stamp_from(path.lstat())
    except OSError:
        return None


def stamp_from(status: os.stat_result) -> FileStamp:
    """Return the stamp that a file had when it was looked at."""
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def real_image(path: str, cvmfs: str = CVMFS) -> str:
    """Return the path of an image with all symbolic links followed, to be used instead of it.

    Raises ValueError with a reason if the image is named below /cvmfs and is in fact elsewhere: who publishes
    in a repository, or writes a Vacuum Pipe, names no other files of this host. It may wait for a file system
    that hangs: don't call it in a factory's loop.
    """
    real = os.path.realpath(path)
    inside = _below(os.path.normpath(path), cvmfs) is not None
    if inside and _below(real, os.path.realpath(cvmfs)) is None:
        raise ValueError(f"root_image {path} is a link to {real}; one below {cvmfs} must not leave it")
    return real


class Mount(NamedTuple):
    """One line of mountinfo, in the words of proc_pid_mountinfo(5)."""

    device: str
    """MAJOR:MINOR."""
    root: str
    """The directory of the file system that is mounted."""
    point: str
    options: frozenset[str]
    propagation: frozenset[str]
    """Such as shared:12 and master:1."""
    kind: str
    source: str
    super_options: frozenset[str]


def mounts(mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """Return what is mounted in this process's name space, in the kernel's order: a later one hides an earlier one.

    Raises OSError.
    """
    return list(parse_mounts(os.fsdecode(mountinfo.read_bytes())))


def parse_mounts(text: str) -> Iterator[Mount]:
    """Parse the text of a mountinfo file."""
    for line in filter(
        None, text.split("\n")
    ):  # of all characters that end lines, the kernel escapes this one only
        fields, _, rest = line.partition(" - ")
        _, _, device, root, point, options, *propagation = fields.split(" ")
        kind, source, super_options = rest.split(" ", 2)
        yield Mount(
            device,
            _plain(root),
            _plain(point),
            frozenset(options.split(",")),
            frozenset(propagation),
            kind,
            _plain(source),
            frozenset(super_options.split(",")),
        )


def mount_of(path: str | os.PathLike[str], found: list[Mount]) -> Mount | None:
    """Return the mount that holds this absolute path without links; None if there is none, as in a chroot."""
    best = None
    for mount in found:
        if _below(os.fspath(path), mount.point) is not None and (
            best is None or len(mount.point) >= len(best.point)
        ):
            best = mount
    return best


def other_paths(path: str, found: list[Mount]) -> list[str]:
    """Return all other paths at which mounts show the directory at this real path, or parts of it.

    Bind mounts do, and OSTree's /sysroot. What is mounted below the directory counts as part of it.
    """
    holder = mount_of(path, found)
    if holder is None:
        return []
    secrets = {(holder.device, _join(holder.root, _below(path, holder.point) or ""))}
    secrets |= {(mount.device, mount.root) for mount in found if _below(mount.point, path) is not None}
    places: dict[str, None] = {}
    for mount in found:
        for device, root in secrets:
            inside, above = _below(root, mount.root), _below(mount.root, root)
            if mount.device == device and (inside is not None or above is not None):
                places[_join(mount.point, inside or "")] = None
    return [place for place in places if _below(place, path) is None]


def with_other_paths(paths: Sequence[str]) -> list[str]:
    """Return these absolute paths of this host, as they are and real, with their other_paths(). Raises OSError."""
    found = mounts()
    real = [os.path.realpath(path) for path in paths]
    others = [place for path in real for place in other_paths(path, found)]
    return list(dict.fromkeys([*paths, *real, *others]))


def _below(path: str, directory: str) -> str | None:
    """Return the path relative to the directory, "" if it is the same; None if it isn't below."""
    path, directory = f"{path.rstrip('/')}/", f"{directory.rstrip('/')}/"
    return path[len(directory) :].rstrip("/") if path.startswith(directory) else None


def _join(directory: str, below: str) -> str:
    return f"{directory.rstrip('/')}/{below}".rstrip("/") or "/"


def _plain(text: str) -> str:
    return _SPECIAL.sub(lambda octal: chr(int(octal[1], 8)), text)
