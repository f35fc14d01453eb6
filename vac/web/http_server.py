"""HTTP service by waitress in a process of its own: requests and answers as values, limits for each client's address.

Waitress reads requests and writes answers in one thread that never blocks; its other threads work on complete
requests only. A slow client costs its connections, the bodies it has begun to send and the answers it doesn't read:
these are limited, or one machine could use up the resources of all. A process of this host may connect from all of
127.0.0.0/8, so loopback counts as one client.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.utilities import Error, RequestEntityTooLarge

from vac.config.load import ConfigurationError, load
from vac.config.machinetype import VM_MODELS
from vac.config.settings import Settings
from vac.host import facts
from vac.host.privileges import drop_privileges, unprivileged_user
from vac.machines import files
from vac.machines.layout import StateDir, address_slot, slot_name
from vac.machines.outputs import FILE_LIMIT_BYTES
from vac.machines.slots import read_slot
from vac.machines.status import prepare_role
from vac.roles import RoleOptions, bind

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
BYTES = "application/octet-stream"
HTML = "text/html; charset=utf-8"
READING = ("GET", "HEAD")

MOST_CONNECTIONS = 4096
MOST_OF_ONE_CLIENT = 16
SPARE_FILES = 256
HEADER_LIMIT_BYTES = 16 * 1024
IDLE_SECONDS = 30
LONGEST_REQUEST_SECONDS = 900.0
"""Time for a request to arrive completely, after which its connection is closed."""
MOST_BODIES = 2
"""Bodies in transit from one client, in units of the largest body."""
MOST_UNREAD_BYTES = 64 * 1024 * 1024
"""Answers that one client hasn't read yet."""
THREADS = 4
MOST_LOGGED = 1000
"""Clients remembered as having too many connections."""

_NOTHING_HERE = b"""HTTP/1.0 404 Not Found\r
Content-Type: text/plain; charset=utf-8\r
Content-Length: 10\r
Connection: close\r
\r
Not Found
"""
_ONE_REQUEST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Guest:
    """A VM that hasn't ended."""

    name: str
    """Host name."""
    address: str
    machinetype: str
    model: str
    factory_name: str
    directory: Path

    def read(self, name: str, below: str = "") -> bytes | None:
        """Return the content of a file in the machine's directory or a sub-directory; None if there is none."""
        try:
            return files.read_untrusted(self.directory / below, name, FILE_LIMIT_BYTES)
        except (FileNotFoundError, files.Unreadable):
            return None

    def names(self, below: str) -> list[str]:
        """Return the names of the files in a sub-directory."""
        try:
            return [path.name for path in (self.directory / below).iterdir()]
        except OSError:
            return []


def find_guest(state: StateDir, factory_name: str, address: str) -> Guest | None:
    """Return the VM with this address, which is its slot's; None if there is none or it has ended."""
    number = address_slot(address)
    if number is None:
        return None
    name = slot_name(factory_name, number)
    slot = read_slot(state.slot(name))
    if slot is None or slot.model not in VM_MODELS:
        return None
    directory = state.machine(slot.directory)
    if not directory.is_dir() or (directory / "finished").exists():
        return None
    return Guest(name, address, slot.directory.machinetype, slot.model, factory_name, directory)


@dataclass(frozen=True)
class Request:
    """One request of one client."""

    method: str
    parts: tuple[str, ...]
    """Non-empty parts of the path; they may be anything, `..` included."""
    guest: Guest | None
    body: Callable[[], bytes] = bytes
    accept: str = ""
    """The Accept header field."""


@dataclass(frozen=True)
class Answer:
    """An answer to a request."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


def text(content: str | bytes) -> Answer:
    """Return an answer of plain text."""
    return Answer(HTTPStatus.OK, content.encode() if isinstance(content, str) else content)


def refusal(status: HTTPStatus, reason: str = "") -> Answer:
    """Return an error with its reason as text."""
    return Answer(status, f"{reason or status.phrase}\n".encode("utf-8", "replace"))


NOT_FOUND = refusal(HTTPStatus.NOT_FOUND)
READ_ONLY = Answer(
    HTTPStatus.METHOD_NOT_ALLOWED, b"Method Not Allowed\n", headers=(("Allow", ", ".join(READING)),)
)


def path_parts(path_info: str) -> tuple[str, ...] | None:
    """Return the parts of WSGI's PATH_INFO (already unquoted); None if it isn't printable UTF-8."""
    try:
        path = path_info.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None
    return tuple(part for part in path.split("/") if part) if path.isprintable() else None


def application(
    respond: Callable[[Request], Answer], guest_at: Callable[[str], Guest | None]
) -> WSGIApplication:
    """Return a WSGI application around respond. guest_at: returns the VM that is a client, by its address."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, address = environ["REQUEST_METHOD"], environ["REMOTE_ADDR"]
        parts = path_parts(environ["PATH_INFO"])
        if parts is None:
            answer = refusal(HTTPStatus.FORBIDDEN) if method == "PUT" else NOT_FOUND
        else:
            body = cast(BinaryIO, environ["wsgi.input"]).read
            answer = respond(Request(method, parts, guest_at(address), body, environ.get("HTTP_ACCEPT", "")))
        log.debug("%s: %s %s: %d", address, method, environ["PATH_INFO"], answer.status)
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status:d} {answer.status.phrase}", [*headers, *answer.headers])
        return [b"" if method == "HEAD" else answer.body]

    return app


class TooLarge(Error):
    """A refused body: 403, as for every refused PUT."""

    code = 403
    reason = "Forbidden"


class Parser(HTTPRequestParser):
    """Parser of one request at a time that refuses too large bodies, without `100 Continue`.

    crowded: tells whether the client has too many bodies in transit, this one included.
    """

    def __init__(self, crowded: Callable[[Parser], bool], adj: Adjustments) -> None:
        super().__init__(adj)
        self.begun_time = time.monotonic()
        self._crowded = crowded

    def in_transit_bytes(self) -> int:
        """Return the announced size of the body, or what has arrived without announcement."""
        if self.chunked or self.error is not None:
            return int(self.body_bytes_received)
        return int(self.content_length)

    def received(self, data: bytes) -> int:
        """Take data of a request and return how much of it is consumed.

        Requests sent ahead of an answer are dropped, and that answer is the connection's last (RFC 9112, 9.3.2):
        unread answers would otherwise pile up and make threads wait for their client.
        """
        consumed = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge):
            self._refuse(f"a body has at most {self.adj.max_request_body_size - 1} bytes")
        elif self.error is None and self._grows() and self._crowded(self):
            self._refuse("too many unfinished requests of this machine; try again later")
        if self.completed and not self.empty and data[consumed:].strip():
            self.headers = {**self.headers, "CONNECTION": "close"}
            return len(data)
        return consumed

    def _grows(self) -> bool:
        """Return True if a body has just been announced, or more of an unannounced one has arrived."""
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
        requests: set[Any] = {parsed}  # waitress 1.4 makes it the channel's request only after this call
        requests.update(request for one in self._of_this_client() for request in (*one.requests, one.request))
        in_transit = sum(request.in_transit_bytes() for request in requests if request is not None)
        return bool(in_transit > MOST_BODIES * (self.adj.max_request_body_size - 1))

    def write_soon(self, data: Any) -> int:
        """Queue data for the client; close the connection if too much is unread already."""
        unread = sum(channel.total_outbufs_len for channel in self._of_this_client())
        if unread + len(data) > MOST_UNREAD_BYTES:
            self.will_close = True
            raise ClientDisconnected
        return int(super().write_soon(data))

    def handle_close(self) -> None:
        """Close the connection, and the temporary file of an incomplete request."""
        super().handle_close()
        if self.request is not None:
            self.request.close()


def is_slot(address: str) -> bool:
    """Return True if a VM can have this address."""
    return address_slot(address) is not None


def is_person(address: str) -> bool:
    """Return True if the client isn't a VM: pages for people show other machines."""
    return not is_slot(network_of(address))


def network_of(address: str) -> str:
    """Return the addresses one client may have: loopback, an IPv6 network of 64 bits, or a single address."""
    found = ip_address(address.partition("%")[0])
    found = (found.version == 6 and found.ipv4_mapped) or found
    if found.is_loopback:
        return "this host"
    return str(found if found.version == 4 else ip_network((found.packed, 64), strict=False))


class Server(TcpWSGIServer):
    """Server at one bound socket. Other clients get 404; connections beyond a client's share are closed at once."""

    channel_class = Channel

    def __init__(
        self,
        app: WSGIApplication,
        bound: socket.socket,
        adjustments: Adjustments,
        admits: Callable[[str], bool] = is_slot,
        client_of: Callable[[str], str] = str,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """admits: tells if an address is served. client_of: the client whose share an address uses. alive: called every
        few seconds while it serves."""
        self._sockets: dict[int, Any] = {}
        sockinfo = (bound.family, bound.type, bound.proto, bound.getsockname())
        super().__init__(app, self._sockets, True, bound, None, adjustments, sockinfo, bind_socket=False)
        self._channels: Any = self.active_channels
        self._admits = admits
        self._client_of = client_of
        self._alive = alive
        self._crowded: set[str] = set()

    def handle_accept(self) -> None:
        """Accept a connection unless its client isn't served or has too many."""
        try:
            accepted = self.accept()
            if accepted is None:
                return
            connection, address = accepted
            self.set_socket_options(connection)
        except OSError:
            return
        host = address[0]
        if not self._admits(host):
            _reject(connection)
            log.debug("%s isn't a VM's address", host)
            return
        client = self._client_of(host)
        clients = Counter(self._client_of(channel.addr[0]) for channel in self._channels.values())
        if clients[client] >= MOST_OF_ONE_CLIENT:
            connection.close()
            if client not in self._crowded:
                self._crowded = {*self._crowded, client} if len(self._crowded) < MOST_LOGGED else {client}
                log.info("%s has %d connections, the most it may have", client, clients[client])
            return
        self._crowded.discard(client)
        Channel(self, connection, address, self.adj, map=self._sockets)

    def channels_of(self, address: str) -> list[Channel]:
        """Return all connections of the client with this address."""
        client = self._client_of(address)
        return [one for one in list(self._channels.values()) if self._client_of(one.addr[0]) == client]

    def maintenance(self, now: Any) -> None:
        """Close idle connections, and those whose request takes too long; called every few seconds."""
        super().maintenance(now)
        self._alive()
        begun_before = time.monotonic() - LONGEST_REQUEST_SECONDS
        for channel in self._channels.values():
            if channel.request is not None and channel.request.begun_time < begun_before:
                channel.will_close = True

    def stop(self) -> None:
        """End serve(), from another thread."""
        trigger: Any = self.trigger
        with contextlib.suppress(
            OSError
        ):  # serve() was awake, and has closed the trigger before it was pulled
            trigger.pull_trigger(self._close_all)

    def _close_all(self) -> None:
        for channel in list(self._channels.values()):
            channel.handle_close()
        wasyncore.close_all(self._sockets)

    def serve(self) -> None:
        """Answer until stop() is called, then complete the requests in work."""
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self.run()
        self.task_dispatcher.shutdown()


def _reject(connection: socket.socket) -> None:
    """Answer 404 as far as that works without waiting, and close."""
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(_NOTHING_HERE)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(_ONE_REQUEST_BYTES)  # unread data would reset the connection and lose the answer


def adjustments(body_limit_bytes: int) -> Adjustments:
    """Return waitress's settings. To be called while the process may still read Python's own files."""
    options: dict[str, Any] = {
        "threads": THREADS,
        "connection_limit": MOST_CONNECTIONS,
        "channel_timeout": IDLE_SECONDS,
        "cleanup_interval": IDLE_SECONDS // 3,
        "max_request_header_size": HEADER_LIMIT_BYTES,
        "max_request_body_size": body_limit_bytes + 1,
        "outbuf_high_watermark": 64 * 1024 * 1024,  # no thread waits for a client to read one answer
        "asyncore_use_poll": True,
        "clear_untrusted_proxy_headers": True,
        "log_socket_errors": False,
        "ident": "Vac",
    }
    return Adjustments(**options)


def allow_connections() -> None:
    """Raise this process's limit of open files for its connections, as far as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * MOST_CONNECTIONS + SPARE_FILES
    granted = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, most))


@dataclass(frozen=True)
class Service:
    """A service of one of the processes."""

    role: str
    address: str
    open: Callable[[StateDir], Callable[[Request], Answer]]
    """Prepares the service while the process is still root; returns what answers requests."""
    body_limit_bytes: int
    port: int = 80
    option: str = ""
    """For people: the option with its address, as it is configured. Empty: for VMs only."""


def run(
    service_for: Callable[[Settings], Service | None], options: RoleOptions, keep: tuple[int, ...] = ()
) -> int:
    """Serve as an unprivileged process until told to end. Return the exit status.

    service_for: returns the service that [settings] ask for, None (here an error) for none. keep: capabilities, as
    for drop_privileges().
    """
    settings = _settings(options)
    if settings is None:
        log.error("no usable configuration: state_dir is unknown")
        return 1
    service = service_for(settings)
    if service is None:
        log.error("the present configuration asks for no such service")
        return 1
    for_people = bool(service.option)
    bound = options.listening if for_people else None
    try:
        bound = bound or bind(service.address, service.port, future=not for_people)
    except OSError as error:
        where = service.option or f"{service.address}:{service.port}"
        advice = "if another service listens at all addresses, configure its address"
        log.error("can't listen at %s: %s; %s", where, error.strerror, advice)
        return 1
    options.uses(settings.state_dir)
    state, user = StateDir(settings.state_dir), unprivileged_user()
    prepare_role(state, service.role, user)
    respond = service.open(state)
    allow_connections()
    adjusted = adjustments(service.body_limit_bytes)
    drop_privileges(user, keep)

    def alive() -> None:
        with contextlib.suppress(OSError):
            os.utime(state.heartbeat(service.role))

    guest_at = partial(find_guest, state, settings.factory_name)
    app = application(respond, (lambda _: None) if for_people else guest_at)
    admits, client_of = (is_person, network_of) if for_people else (is_slot, str)
    server = Server(app, bound, adjusted, admits, client_of, alive)
    options.listen(server.stop, lambda: None)
    log.info("serving at %s", service.option or service.address)
    options.ready()
    server.serve()
    return 0


def _settings(options: RoleOptions) -> Settings | None:
    """Return [settings], of a broken configuration as far as they can be understood."""
    try:
        return load(options.configs or None, facts.read()).settings
    except ConfigurationError as error:
        return error.settings
