"""Places of the host that tests have to share with each other, with other runs, and with whatever the host has."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

CVMFS = Path("/cvmfs")
FUSE = Path("/dev/fuse")


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[int]:
    """Hold a lock on a directory or device that every run on this host sees."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def cvmfs_mount_point() -> Iterator[None]:
    """There is a /cvmfs, to mount something at in a mount namespace of one's own; in the end as it was before."""
    with locked(CVMFS.parent, fcntl.LOCK_SH) as lock:
        made = not CVMFS.exists()
        CVMFS.mkdir(exist_ok=True)
        try:
            yield
        finally:
            if made:
                fcntl.flock(lock, fcntl.LOCK_EX)  # others may use it as well
                with contextlib.suppress(FileNotFoundError):  # another that had found no directory either
                    CVMFS.rmdir()


@contextlib.contextmanager
def fuse_for_all() -> Iterator[None]:
    """/dev/fuse is readable and writable for all, as usual where udev runs; nobody else changes that meanwhile."""
    with locked(FUSE, fcntl.LOCK_EX):
        mode = stat.S_IMODE(FUSE.stat().st_mode)
        FUSE.chmod(0o666)
        try:
            yield
        finally:
            FUSE.chmod(mode)
