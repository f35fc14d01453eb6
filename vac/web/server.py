"""The HTTP server: waitress, with a limit on the connections of each client.

Waitress reads requests and writes answers in one thread that never blocks; its other threads work on complete
requests only, so a slow client costs no more than its connections. Those of one client are limited here, or
one VM could use up what there is for all; so could a process of this host, which has all of 127.0.0.0/8 to
connect from, if others than VMs were listened to.
"""

from __future__ import annotations

import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.utilities import Error, RequestEntityTooLarge

from vac.logs import OnChange
from vac.machines.layout import address_slot

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 4096
MOST_OF_ONE_CLIENT = 16
SPARE_FILES = 256
HEADER_LIMIT_BYTES = 16 * 1024
IDLE_SECONDS = 30
THREADS = 4


class TooLarge(Error):
    """A PUT that is refused gets 403 here, whatever the reason."""

    code = 403
    reason = "Forbidden"


class Parser(HTTPRequestParser):
    """Takes one request at a time; tells in our words that one is too large, and not to continue with it."""

    def received(self, data: bytes) -> int:
        """Take what has come of a request; how much of it is not to be looked at again.

        What follows a request before its answer is dropped, and the answer is the connection's last (RFC 9112,
        9.3.2): answers that pile up unread would make threads wait for their client, without end.
        """
        consumed = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge):
            self.error = TooLarge(f"at most {self.adj.max_request_body_size - 1} bytes are taken")
            self.expect_continue = False
        if self.completed and not self.empty and data[consumed:].strip():
            self.headers = {**self.headers, "CONNECTION": "close"}
            return len(data)
        return consumed


class Channel(HTTPChannel):
    """One connection."""

    parser_class = Parser

    def handle_close(self) -> None:
        """Close it, and the temporary file of a request that has not come whole."""
        super().handle_close()
        if self.request is not None:
            self.request.close()


def is_slot(address: str) -> bool:
    """Can a VM have this address?"""
    return address_slot(address) is not None


def network_of(address: str) -> str:
    """Where a client has more than this address to connect from: this host, or an IPv6 network of 64 bits."""
    found = ip_address(address.partition("%")[0])
    found = (found.version == 6 and found.ipv4_mapped) or found
    if found.is_loopback:
        return "this host"
    return str(found if found.version == 4 else ip_network((found.packed, 64), strict=False))


class Server(TcpWSGIServer):
    """Answers at one bound socket; connections beyond a client's share, and strangers', are closed at once."""

    channel_class = Channel

    def __init__(
        self,
        app: WSGIApplication,
        bound: socket.socket,
        adjustments: Adjustments,
        admits: Callable[[str], bool] = is_slot,
        client_of: Callable[[str], str] = str,
    ) -> None:
        """admits: tells whether a client with this address is listened to. client_of: who that is, for its share."""
        self._sockets: dict[int, Any] = {}
        sockinfo = (bound.family, bound.type, bound.proto, bound.getsockname())
        super().__init__(app, self._sockets, True, bound, None, adjustments, sockinfo, bind_socket=False)
        self._channels: Any = self.active_channels
        self._admits = admits
        self._client_of = client_of
        self._changes = OnChange(log)

    def handle_accept(self) -> None:
        """Take a connection, unless its client is a stranger or has enough of them."""
        try:
            accepted = self.accept()
        except OSError:
            return
        if accepted is None:
            return
        connection, address = accepted
        host = address[0]
        if not self._admits(host):
            connection.close()
            log.debug("%s is no VM's address", host)
            return
        client = self._client_of(host)
        clients = Counter(self._client_of(channel.addr[0]) for channel in self._channels.values())
        if clients[client] >= MOST_OF_ONE_CLIENT:
            connection.close()
            text = f"{client} has {clients[client]} connections, which is all that it may have"
            self._changes.say(client, text)
            return
        Channel(self, connection, address, self.adj, map=self._sockets)

    def stop(self) -> None:
        """End run(). To be called from another thread."""
        trigger: Any = self.trigger
        trigger.pull_trigger(self._close_all)

    def _close_all(self) -> None:
        for channel in list(self._channels.values()):
            channel.handle_close()
        wasyncore.close_all(self._sockets)

    def serve(self) -> None:
        """Answer until stop() is called; requests that are being worked on then are completed."""
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self.run()
        self.task_dispatcher.shutdown()


def adjustments(body_limit_bytes: int) -> Adjustments:
    """Waitress's settings. To be made while the process may still read Python's own files."""
    options: dict[str, Any] = {
        "threads": THREADS,
        "connection_limit": MOST_CONNECTIONS,
        "channel_timeout": IDLE_SECONDS,
        "cleanup_interval": IDLE_SECONDS // 3,
        "max_request_header_size": HEADER_LIMIT_BYTES,
        "max_request_body_size": body_limit_bytes + 1,
        "outbuf_high_watermark": 64 * 1024 * 1024,  # one answer never waits for its client in a thread
        "asyncore_use_poll": True,
        "clear_untrusted_proxy_headers": True,
        "log_socket_errors": False,
        "ident": "Vac",
    }
    return Adjustments(**options)


def allow_connections() -> None:
    """Let this process have as many open files as its connections may need, if the system does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * MOST_CONNECTIONS + SPARE_FILES
    granted = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, most))
