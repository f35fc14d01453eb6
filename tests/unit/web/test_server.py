"""The HTTP server on real sockets: clients that are slow, greedy or polite."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vac.machines.layout import slot_address
from vac.roles import bind
from vac.web import http_server as server
from vac.web.http_server import MOST_OF_ONE_CLIENT, Server, adjustments, is_slot

PATIENCE = 60
BODY_LIMIT = 100_000
LARGE = b"x" * 8_000_000  # more than the kernel takes for a client that reads nothing
QUICK = "127.0.0.1"


@contextlib.contextmanager
def serving(
    admits: Callable[[str], bool] = lambda _: True, alive: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """A server of these clients that answers /large with much and a PUT with the number of bytes; its port."""

    def app(environ, start_response):  # type: ignore[no-untyped-def]
        body = environ["wsgi.input"].read()
        answer = LARGE if environ["PATH_INFO"] == "/large" else b"%d" % len(body)
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]

    bound = bind(QUICK, 0)
    one = Server(app, bound, adjustments(BODY_LIMIT), admits, alive=alive)
    thread = threading.Thread(target=one.serve)
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        one.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def port() -> Iterator[int]:
    with serving() as port:
        yield port


def client(port: int, host: str, sent: bytes) -> socket.socket:
    """A connection from this address on which this has been sent."""
    connection = socket.create_connection((QUICK, port), PATIENCE, source_address=(host, 0))
    connection.sendall(sent)
    return connection


def ask(port: int, method: str = "GET", path: str = "/", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(QUICK, port, PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()


def is_closed(connection: socket.socket) -> bool:
    """Return True if the server has closed it without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def everything(connection: socket.socket) -> bytes:
    """Return all that arrives until the server closes it."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1_000_000):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nA: b\r\n",
        b"PUT /x HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + 20_000 * b"x",
        b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["silent", "half a line", "half a header", "half a body", "half a chunk", "reads no answer"],
)
def test_a_hundred_slow_clients_keep_nobody_waiting(port: int, sent: bytes) -> None:
    slow = [client(port, f"127.0.1.{number}", sent) for number in range(1, 101)]
    try:
        for size in (0, 10, BODY_LIMIT):
            assert ask(port, "PUT", body=b"x" * size) == (200, b"%d" % size)
    finally:
        for each in slow:
            each.close()


def test_a_client_has_few_connections_and_others_have_theirs(port: int) -> None:
    own = [client(port, "127.0.0.2", b"") for _ in range(MOST_OF_ONE_CLIENT)]
    for _ in range(5):
        with client(port, "127.0.0.2", b"") as beyond:
            assert is_closed(beyond)
    assert ask(port)[0] == 200
    for each in own:
        each.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert each.recv(12) == b"HTTP/1.0 200"
        each.close()


def test_strangers_take_nothing_from_those_who_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 20)
    with serving(lambda host: host == QUICK) as port, contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(client(port, f"127.0.1.{number}", b"")) for number in range(1, 101)]
        assert ask(port)[0] == 200
        assert all(everything(each).startswith(b"HTTP/1.0 404 ") for each in strangers)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_stranger_is_told_that_there_is_nothing(method: str) -> None:
    with serving(lambda _: False) as port:
        for _ in range(20):
            assert ask(port, method) == (404, b"" if method == "HEAD" else b"Not Found\n")


@pytest.mark.parametrize("number", [0, 252, 253, 1000])
def test_a_slot_is_served(number: int) -> None:
    assert is_slot(slot_address(number))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.169.5", "10.0.0.5", "169.254.169.253", "169.254.169.254", "169.254.168.1"]
)
def test_any_other_address_is_a_strangers(address: str) -> None:
    assert not is_slot(address)


@pytest.mark.parametrize(
    "first",
    [b"GET /large HTTP/1.1\r\n\r\n", b"GET /large HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"],
    ids=["1.1", "1.0"],
)
def test_requests_sent_ahead_of_an_answer_get_none(port: int, first: bytes) -> None:
    with client(port, QUICK, first + 3 * first) as ahead, ahead.makefile("rb") as stream:
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert body == LARGE


def test_requests_one_after_the_other_share_a_connection(port: int) -> None:
    with contextlib.closing(http.client.HTTPConnection(QUICK, port, PATIENCE)) as connection:
        connection.connect()
        own = connection.sock
        for end in (b"", b"\r\n", b"\r\n"):  # some send an empty line after a body
            connection.request("PUT", "/x", b"hello" + end, {"Content-Length": "5"})
            assert connection.getresponse().read() == b"5"
            assert connection.sock is own


def test_no_answer_waits_for_the_acknowledgement_of_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    without_delay = []

    class Noted(server.Channel):
        def __init__(
            self, one: Server, connection: socket.socket, *arguments: object, **options: object
        ) -> None:
            without_delay.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().__init__(one, connection, *arguments, **options)

    monkeypatch.setattr(server, "Channel", Noted)
    with serving() as port:
        assert ask(port) == (200, b"0")
    assert without_delay == [1]


def test_clients_that_read_nothing_keep_nobody_waiting(port: int) -> None:
    sent = 40 * b"GET /large HTTP/1.1\r\n\r\n"
    greedy = [client(port, f"127.0.1.{number}", sent) for number in range(1, server.THREADS + 3)]
    try:
        for _ in range(300):
            assert ask(port)[0] == 200
    finally:
        for each in greedy:
            each.close()


def test_a_server_shows_again_and_again_that_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 3)
    shown = threading.Semaphore(0)
    with serving(alive=shown.release):
        for _ in range(3):
            assert shown.acquire(timeout=PATIENCE)


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    with serving() as port, client(port, QUICK, b"GET / HTTP/1.1\r\n") as idle:
        assert is_closed(idle)


@pytest.mark.parametrize("size", [BODY_LIMIT + 1, 10**15])
def test_what_is_too_large_is_refused_before_it_is_sent(port: int, size: int) -> None:
    head = f"PUT /x HTTP/1.1\r\nContent-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
    with client(port, QUICK, head.encode()) as sender:
        assert sender.recv(12) == b"HTTP/1.1 403"


@pytest.mark.parametrize(
    "sent",
    [
        b"PUT /x HTTP/1.1\r\nContent-Length: 70000\r\n\r\nhalf",
        b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (80_000, 70_000 * b"x"),
    ],
    ids=["announced", "chunked"],
)
def test_bodies_under_way_of_one_client_have_a_limit_together(port: int, sent: bytes) -> None:
    own = [client(port, "127.0.0.2", sent) for _ in range(server.MOST_BODIES + 1)]
    (refused,), _, _ = select.select(own, (), (), PATIENCE)
    assert refused.recv(12) == b"HTTP/1.1 403"
    assert b"\r\nConnection: close\r\n" in everything(refused)
    assert ask(port, "PUT", body=b"x" * BODY_LIMIT) == (200, b"%d" % BODY_LIMIT), "another client"
    for each in own:
        each.close()
    end = time.monotonic() + PATIENCE
    while True:  # until the server has seen that they are closed
        with client(port, "127.0.0.2", b"PUT /x HTTP/1.0\r\nContent-Length: 90000\r\n\r\n") as again:
            with contextlib.suppress(ConnectionError):
                again.sendall(90_000 * b"x")
            if again.recv(12) == b"HTTP/1.0 200":
                return
        assert time.monotonic() < end


def test_a_request_that_trickles_for_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 3)
    monkeypatch.setattr(server, "LONGEST_REQUEST_SECONDS", 0.5)
    end = time.monotonic() + PATIENCE
    with serving() as port, client(port, QUICK, b"PUT /x HTTP/1.1\r\nContent-Length: 90000\r\n\r\n") as slow:
        slow.settimeout(0.1)
        with contextlib.suppress(ConnectionError):
            while True:
                assert time.monotonic() < end
                slow.sendall(b"x")
                with contextlib.suppress(socket.timeout):
                    assert slow.recv(1) == b""
                    break


def test_only_so_much_is_kept_for_a_client_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_UNREAD_BYTES", len(LARGE) + 200_000)
    sent = b"GET /large HTTP/1.0\r\n\r\n"
    with serving() as port, contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(client(port, "127.0.0.2", sent)) for _ in range(MOST_OF_ONE_CLIENT)]
        assert ask(port, path="/large") == (200, LARGE)
        for each in greedy:  # nothing is read before all are answered with more than a header, or turned away
            each.settimeout(None)
            with contextlib.suppress(ConnectionError):
                each.recv(10_000, socket.MSG_PEEK | socket.MSG_WAITALL)
        assert min(len(everything(each)) for each in greedy) < len(LARGE)


def test_a_chunked_body_ends_at_the_limit_too(port: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (50_000, 50_000 * b"x")
    with client(port, QUICK, b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + 2 * chunk) as sender:
        sender.sendall(chunk)
        assert sender.recv(12) == b"HTTP/1.1 403"


def test_a_client_that_waits_for_it_is_told_to_continue(port: int) -> None:
    head = b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with client(port, QUICK, head) as sender:
        assert sender.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sender.sendall(b"hello")
        assert sender.recv(12) == b"HTTP/1.1 200"


def test_endless_headers_are_refused(port: int) -> None:
    with client(port, QUICK, b"GET / HTTP/1.1\r\n" + 2000 * b"Name: value\r\n") as sender:
        assert sender.recv(12) in (b"HTTP/1.0 431", b"HTTP/1.1 431")


def test_an_address_can_be_listened_at_before_this_host_has_it() -> None:
    with bind("169.254.169.254", 0, future=True) as bound:
        bound.listen()
        assert bound.getsockname()[0] == "169.254.169.254"


def test_a_server_that_stops_at_once_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Server(lambda *_: [], bind(QUICK, 0), adjustments(BODY_LIMIT), is_slot)
    thread = threading.Thread(target=one.serve)
    thread.start()
    write = os.write

    def late_write(descriptor: int, data: bytes) -> int:
        """Write what wakes the server up twice: only then has it closed everything for certain."""
        write(descriptor, data)
        thread.join(PATIENCE)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", late_write)
    one.stop()
    assert not thread.is_alive()


def test_a_taken_port_is_an_error() -> None:
    with bind(QUICK, 0) as bound:
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            bind(QUICK, bound.getsockname()[1])
