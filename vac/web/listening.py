"""Sockets to serve at: the machines' addresses may come later, people's are there or wrong."""

from __future__ import annotations

import errno
import os
import socket

IP_FREEBIND = 15
"""linux/in.h: an address may be listened at before this host has it, and when it has it again."""


def listen(address: str, port: int) -> socket.socket:
    """A socket bound to an address that this host may not have yet. Raises OSError if the port is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def listen_anywhere(host: str, port: int) -> socket.socket:
    """A socket bound to an address that this host has; of a name's addresses it is the first that can be had.

    `::` takes IPv4, too. Raises OSError with a reason.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    problem = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, address in found:
        try:
            bound = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            problem = error
            continue
        try:
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            return bound
        except OSError as error:
            bound.close()
            problem = error
    raise problem
