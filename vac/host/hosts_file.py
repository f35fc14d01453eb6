"""Lines of ours in /etc/hosts, from which a host and the VMs' name server know the machines' names."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

MARK = "# added by Vac"
FULL_HOSTS = Path("/etc/hosts")
_IN_PLACE = frozenset([errno.EBUSY, errno.EXDEV])
"""A file that is mounted, as in containers, can't be replaced, but written."""


def line(address: str, name: str) -> str:
    """The line of one machine; name is its full host name."""
    short = name.partition(".")[0]
    return f"{address} {short} {name} {MARK}" if short != name else f"{address} {name} {MARK}"


def merged(content: bytes, lines: Iterable[str]) -> bytes:
    """The file's content with exactly these lines of ours, at its end; strangers' lines stay as they are."""
    kept = [one for one in content.splitlines(keepends=True) if not one.rstrip().endswith(MARK.encode())]
    if kept and not kept[-1].endswith(b"\n"):
        kept[-1] += b"\n"
    return b"".join(kept) + "".join(f"{one}\n" for one in lines).encode("utf-8", "surrogateescape")


def update(lines: Iterable[str], path: Path = FULL_HOSTS) -> bool:
    """See to it that the file has these lines of ours and no others; has it been changed? Raises OSError.

    It is replaced as a whole, keeping its mode and owner.
    """
    path = path.resolve()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    wanted = merged(content, lines)
    if wanted == content:
        return False
    fresh = path.with_name(f".{path.name}.vac-{os.getpid()}")
    try:
        fresh.write_bytes(wanted)
        _copy_rights(path, fresh)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if error.errno not in _IN_PLACE:
            raise
        path.write_bytes(wanted)
    return True


def _copy_rights(source: Path, target: Path) -> None:
    try:
        found = source.stat()
    except FileNotFoundError:
        target.chmod(0o644)
        return
    os.chown(target, found.st_uid, found.st_gid)
    target.chmod(found.st_mode & 0o7777)
