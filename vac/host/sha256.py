"""A small program that reads an image file through and prints what it is, as JSON: `python -I -S sha256.py PATH`.

A program of its own because the file may be on a file system that hangs, and takes long in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

PIECE_BYTES = 1024 * 1024


def main(path: str) -> None:
    """Print stamp (of the file that was read, null if it changed meanwhile) and SHA-256 in hex."""
    os.nice(19)
    digest = hashlib.sha256()
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        before = stamp(os.fstat(file.fileno()))
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
        after = stamp(os.fstat(file.fileno()))
    found = {"stamp": before if before == after else None, "sha256": digest.hexdigest()}
    sys.stdout.write(json.dumps(found) + "\n")


def stamp(status: os.stat_result) -> list[int]:
    """What tells one version of a file from another; as launch.py tells it of the image that a machine runs."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


if __name__ == "__main__":
    main(sys.argv[1])
