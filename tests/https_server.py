"""A web server of the test's own, in a thread, with certificates of the test's own CA: good ones and bad ones.

`with Web(tmp_path) as web:` then `site = web.serve({"/a": Page(b"…")})`, and `site.url("/a")`. What is to trust
the server is told web.ca_file (or has SSL_CERT_FILE=web.ca_file in its environment). Pages may be changed meanwhile.
"""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from tests.certificates import DAY, Certified, certify, key

PATIENCE_SECONDS = 60.0
HTML = b"<!DOCTYPE html>\n<html><head><title>Please log in</title></head></html>\n"


@dataclass
class Page:
    """Answer at one path."""

    content: bytes = b""
    status: int = 200
    kind: str = "application/octet-stream"
    location: str | None = None
    """Redirects there; a path or a URL."""
    modified_time: int | None = None
    """Unix seconds, sent as Last-Modified; asked for If-Modified-Since it, the answer is 304."""
    gate: threading.Event | None = None
    """After the first byte of the content nothing comes until this is set."""
    cut_off: bool = False
    """More is promised than is sent."""


def circle() -> Mapping[str, Page]:
    """Pages /circle/0 and /circle/1, which redirect to each other."""
    return {f"/circle/{number}": Page(status=302, location=f"/circle/{1 - number}") for number in (0, 1)}


@dataclass(frozen=True)
class Asked:
    """A request that has come."""

    path: str
    headers: Mapping[str, str]


class Site(ThreadingHTTPServer):
    """One server. asked holds all requests; asked_for is set with each."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, pages: Mapping[str, Page], host: str, port: int, context: ssl.SSLContext | None
    ) -> None:
        super().__init__((host, port), _Handler)
        self.context = context
        self.pages = dict(pages)
        self.asked: list[Asked] = []
        self.asked_for = threading.Event()
        self.closing = threading.Event()
        self._scheme = "http" if context is None else "https"
        self._host = host
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def url(self, path: str, host: str | None = None) -> str:
        """The URL of a page; host is by what name it is asked for, the server's address if None."""
        return f"{self._scheme}://{host or self._host}:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up or refuse the certificate are what some tests are about."""

    def close(self) -> None:
        """Answer no more. What waits at a gate is let go."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join(PATIENCE_SECONDS)


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def setup(self) -> None:
        """The TLS handshake is done here, in the connection's own thread: no client holds up another."""
        if self.server.context is not None:
            self.request.settimeout(PATIENCE_SECONDS)
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        with contextlib.suppress(OSError):
            self.request.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at `asked`."""

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(Asked(self.path, dict(self.headers.items())))
        page = server.pages.get(self.path.partition("?")[0], Page(b"no such page\n", 404))
        server.asked_for.set()
        date = None if page.modified_time is None else email.utils.formatdate(page.modified_time, usegmt=True)
        same = date is not None and self.headers.get("If-Modified-Since") == date
        self.send_response(304 if same else page.status)
        for name, value in (("Last-Modified", date), ("Location", page.location)):
            if value is not None:
                self.send_header(name, value)
        if same:
            self.end_headers()
            return
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.content) + (1000 if page.cut_off else 0)))
        self.end_headers()
        self.wfile.write(page.content[:1])
        self.wfile.flush()
        if page.gate is not None:
            self._wait_for(page.gate)
        self.wfile.write(page.content[1:])

    def _wait_for(self, gate: threading.Event) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not gate.wait(0.01) and not self.server.closing.is_set() and time.monotonic() < deadline:
            pass


@dataclass
class Web:
    """A CA, certificates of several kinds for 127.0.0.1 and localhost, and servers that are closed at the end."""

    directory: Path
    ca: Certified = field(init=False)
    ca_file: Path = field(init=False)
    sites: list[Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ca = certify("/O=Vac tests/CN=Vac test CA", ca=True, own_key=key(11))
        self.ca_file = self.directory / "web-ca.pem"
        self.ca_file.write_bytes(self.ca.certificate_pem)

    def __enter__(self) -> Web:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for site in self.sites:
            if not site.closing.is_set():
                site.close()

    def serve(
        self,
        pages: Mapping[str, Page],
        certificate: str | None = "good",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> Site:
        """Start a server at this address of this host.

        certificate: good, wrong name, expired, not yet valid or stranger (of a CA that nobody trusts); None: http.
        """
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                *self._certified(certificate, host).write(self.directory, f"{certificate} {host} ")
            )
        site = Site(pages, host, port, context)
        self.sites.append(site)
        return site

    def _certified(self, kind: str, host: str) -> Certified:
        now = time.time()
        stranger = certify("/O=Vac tests/CN=Vac test stranger", ca=True, own_key=key(12))
        hosts = ["elsewhere.example.org"] if kind == "wrong name" else [host, "127.0.0.1", "localhost"]
        return certify(
            "/O=Vac tests/CN=server",
            stranger if kind == "stranger" else self.ca,
            own_key=key(13),
            start=now + DAY if kind == "not yet valid" else None,
            end=now - 60 if kind == "expired" else None,
            hosts=list(dict.fromkeys(hosts)),
        )


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 at which nobody listens, kept free from others meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
