"""Files of the site that contexts are made from: read whole, but never more than makes sense."""

from __future__ import annotations

from pathlib import Path


def read_limited(path: Path, most_bytes: int) -> bytes:
    """All of a file of at most so many bytes; ValueError with a reason, for people, if that can't be."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise ValueError(f"{path} is larger than {most_bytes} bytes")
    return content
