"""Paths below /cvmfs, whose files are written by strangers: a symbolic link there may lead anywhere on the host.

This module is also imported by vac.drivers.processes.launch, which is why it imports so little.
"""

# ruff: noqa: PTH118

from __future__ import annotations

import os

CVMFS = "/cvmfs"


def real_image(path: str, cvmfs: str = CVMFS) -> str:
    """The path of an image with all symbolic links followed, to be used instead of it.

    Raises ValueError with a reason if the image is named below /cvmfs and is in fact elsewhere: who publishes
    in a repository, or writes a Vacuum Pipe, names no other files of this host. It may wait for a file system
    that hangs: not for a factory's loop.
    """
    real = os.path.realpath(path)
    if _below(os.path.normpath(path), cvmfs) and not _below(real, os.path.realpath(cvmfs)):
        raise ValueError(f"root_image {path} is a link to {real}; one below {cvmfs} must not leave it")
    return real


def _below(path: str, directory: str) -> bool:
    return os.path.join(path, "").startswith(os.path.join(directory, ""))
