"""UDP sockets with room for bursts, without a change of the host's settings."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Protocol

from vac.vacquery.messages import ANSWER_READ

_SO_RCVBUFFORCE = 33
"""From asm-generic/socket.h; Python has no name for it."""
BUFFER_BYTES = 8 * 1024 * 1024
DATAGRAM_BYTES = 2304
"""What the kernel takes from a receive buffer for a datagram of our size."""
MOST_AT_ONCE = 4096
MOST_BYTES_AT_ONCE = 4 * 1024 * 1024


def enlarge_buffer(receiver: socket.socket, wanted_bytes: int = BUFFER_BYTES) -> int:
    """Ask for a receive buffer of this size, past rmem_max where we may (root). Returns what there is now."""
    try:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted_bytes)
    except OSError:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted_bytes)
    return receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class Transport(Protocol):
    """How queries go out and answers come in."""

    @property
    def capacity(self) -> int:
        """How many answers may arrive while nobody looks."""

    def send(self, datagram: bytes, address: str, port: int) -> None:
        """Send it, or not: datagrams get lost anyway."""

    def receive(self, seconds: float) -> list[bytes]:
        """What has arrived; waits for it for that long at most."""

    def close(self) -> None:
        """Have done."""


class UdpTransport:
    """A socket for IPv4, and one for IPv6 once it is needed."""

    def __init__(self) -> None:
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._poll = select.poll()
        self.capacity = MOST_AT_ONCE
        self._socket(socket.AF_INET)

    def send(self, datagram: bytes, address: str, port: int) -> None:
        """See Transport. No route, no IPv6 here, a firewall that refuses: then it's lost."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError):
            self._socket(family).sendto(datagram, (address, port))

    def receive(self, seconds: float) -> list[bytes]:
        """See Transport."""
        self._poll.poll(max(0.0, seconds) * 1000)
        found: list[bytes] = []
        room = MOST_BYTES_AT_ONCE
        for each in self._sockets.values():
            with contextlib.suppress(OSError):
                while len(found) < MOST_AT_ONCE and room > 0:
                    found.append(each.recv(ANSWER_READ + 1, socket.MSG_DONTWAIT))
                    room -= len(found[-1])
        return found

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        known = self._sockets.get(family)
        if known is None:
            known = self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self.capacity = min(self.capacity, enlarge_buffer(known) // DATAGRAM_BYTES)
            self._poll.register(known, select.POLLIN)
        return known
