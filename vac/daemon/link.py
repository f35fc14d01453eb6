"""The socket between the supervisor and a role: short messages either way, and its end is the other's death.

The number of the role's end is in its environment. With a message to it may come a log file to go on with.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import MutableMapping

VARIABLE = "VAC_SUPERVISOR_FD"

READY = b"ready"
ALIVE = b"alive"
NEED = b"need"
"""Followed by a role's name and what that is needed for, see `need`."""
RELOAD = b"reload"
WAKE = b"wake"
LONGEST = 8192
GONE = b""
"""What is received when nothing more will come."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end, which never blocks, and the role's. Message boundaries are kept."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def inherited(environ: MutableMapping[str, str]) -> socket.socket | None:
    """This process's end if it has been given one; no process that it starts will have it."""
    number = environ.pop(VARIABLE, None)
    if number is None:
        return None
    link = socket.socket(fileno=int(number))
    link.set_inheritable(False)
    return link


def need(role: str, purpose: str) -> bytes:
    """The message that says for what this role is needed; empty: for nothing."""
    return b" ".join((NEED, os.fsencode(role), os.fsencode(purpose)))


def needed(message: bytes) -> tuple[str, str] | None:
    """Role and purpose if this is such a message."""
    kind, _, rest = message.partition(b" ")
    role, _, purpose = rest.partition(b" ")
    return (os.fsdecode(role), os.fsdecode(purpose)) if kind == NEED else None


def send(link: socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """Send without waiting. The other side may be gone, or behind with reading: then the message is lost."""
    ancillary = []
    if descriptor is not None:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor)))
    try:
        link.sendmsg([message], ancillary, socket.MSG_DONTWAIT)
    except (BlockingIOError, ConnectionError):
        return


def receive(link: socket.socket) -> tuple[bytes, int | None]:
    """The next message and the descriptor that came along. GONE at the end, or if a read would block."""
    room = socket.CMSG_SPACE(struct.calcsize("i"))
    try:
        message, ancillary, _, _ = link.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    except (BlockingIOError, ConnectionError):
        return GONE, None
    if not ancillary:
        return message, None
    (descriptor,) = struct.unpack("i", ancillary[0][2])
    return message, descriptor
