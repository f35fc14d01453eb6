"""The HTTP server: waitress, with a limit on the connections of each client, and on what is kept for it.

Waitress reads requests and writes answers in one thread that never blocks; its other threads work on complete
requests only, so a slow client costs no more than its connections, the bodies that it has begun to send and the
answers that it doesn't read. Those of one client are limited here, or one VM could use up what there is for all;
so could a process of this host, which has all of 127.0.0.0/8 to connect from, if others than VMs were listened to.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
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
LONGEST_REQUEST_SECONDS = 900.0
"""A request that hasn't come whole after this time ends with its connection, however lively that is."""
MOST_BODIES = 2
"""What one client may have under way, in bodies of the largest size."""
MOST_UNREAD_BYTES = 64 * 1024 * 1024
"""Of answers that one client hasn't read yet."""
THREADS = 4

_NOTHING_HERE = b"""HTTP/1.0 404 Not Found\r
Content-Type: text/plain; charset=utf-8\r
Content-Length: 10\r
Connection: close\r
\r
Not Found
"""
_ONE_REQUEST_BYTES = 64 * 1024


class TooLarge(Error):
    """A PUT that is refused gets 403 here, whatever the reason."""

    code = 403
    reason = "Forbidden"


class Parser(HTTPRequestParser):
    """Takes one request at a time; tells in our words that one is too large, and not to continue with it.

    crowded: tells whether its client has more bodies under way, this one included, than it may have.
    """

    def __init__(self, crowded: Callable[[Parser], bool], adj: Adjustments) -> None:
        super().__init__(adj)
        self.begun_time = time.monotonic()
        self._crowded = crowded

    def under_way_bytes(self) -> int:
        """How much of a body is announced, or has come without."""
        if self.chunked or self.error is not None:
            return int(self.body_bytes_received)
        return int(self.content_length)

    def received(self, data: bytes) -> int:
        """Take what has come of a request; how much of it is not to be looked at again.

        What follows a request before its answer is dropped, and the answer is the connection's last (RFC 9112,
        9.3.2): answers that pile up unread would make threads wait for their client, without end.
        """
        consumed = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge):
            self._refuse(f"at most {self.adj.max_request_body_size - 1} bytes are taken")
        elif self.error is None and self._grows() and self._crowded(self):
            self._refuse("other requests of this machine have not come whole yet; try again later")
        if self.completed and not self.empty and data[consumed:].strip():
            self.headers = {**self.headers, "CONNECTION": "close"}
            return len(data)
        return consumed

    def _grows(self) -> bool:
        """Has this request just announced a body, or got more of one that wasn't announced?"""
        return self.chunked or (self.content_length > 0 and not self.body_bytes_received)

    def _refuse(self, reason: str) -> None:
        self.error = TooLarge(reason)
        self.completed = True
        self.expect_continue = False


class Channel(HTTPChannel):
    """One connection."""

    parser_class: Any
    request: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser_class = partial(Parser, self._is_crowded)

    def _of_this_client(self) -> list[Channel]:
        server: Any = self.server
        channels: list[Channel] = server.channels_of(self.addr[0])
        return channels

    def _is_crowded(self, parsed: Parser) -> bool:
        requests: set[Any] = {
            parsed
        }  # which waitress 1.4 makes the channel's request only when it has read on
        requests.update(request for one in self._of_this_client() for request in (*one.requests, one.request))
        under_way = sum(request.under_way_bytes() for request in requests if request is not None)
        return bool(under_way > MOST_BODIES * (self.adj.max_request_body_size - 1))

    def is_late(self) -> bool:
        """Is a request under way for longer than any may be?"""
        request = self.request
        return bool(request and time.monotonic() > request.begun_time + LONGEST_REQUEST_SECONDS)

    def write_soon(self, data: Any) -> int:
        """Keep this for the client, unless it leaves too much unread already: then the connection ends."""
        unread = sum(channel.total_outbufs_len for channel in self._of_this_client())
        if unread + len(data) > MOST_UNREAD_BYTES:
            self.will_close = True
            raise ClientDisconnected
        return int(super().write_soon(data))

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
    """Answers at one bound socket; strangers get 404, and connections beyond a client's share are closed, at once."""

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
            _turn_away(connection)
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

    def channels_of(self, address: str) -> list[Channel]:
        """All connections of the client with this address."""
        client = self._client_of(address)
        return [one for one in list(self._channels.values()) if self._client_of(one.addr[0]) == client]

    def maintenance(self, now: Any) -> None:
        """Close connections that are idle, and those whose request takes too long; called every few seconds."""
        super().maintenance(now)
        for channel in self._channels.values():
            if channel.is_late():
                channel.will_close = True

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


def _turn_away(connection: socket.socket) -> None:
    """Say that there is nothing, whatever is asked, as far as that goes without waiting, and close."""
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(_NOTHING_HERE)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(_ONE_REQUEST_BYTES)  # what is left unread would take the answer back


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
