"""Downloads of documents and images, from servers in threads of the test."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

import vac
from tests.https_server import HTML, Page, Web, circle, closed_port
from vac.context import downloads
from vac.context.downloads import (
    DownloadFailed,
    ImageCache,
    Limits,
    Local,
    document,
    fetch_pipe,
    is_html,
    is_local,
)

OLD, NEW = 1_600_000_000, 1_600_086_400
QUICK = Limits(largest_bytes=100, slow_seconds=1, redirects=3)
CONTENT = bytes(range(100))
CACHED, CHANGED = b"the cached image", b"another image"
DAY = 86400.0


class ImageServer(ThreadingHTTPServer):
    """Serves one image at /image.tar, and misbehaves at other paths."""

    daemon_threads = True

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "http" if context is None else "https"
        self.content = CACHED
        self.modified_time: int | None = OLD
        self.status = 200
        self.cut_off = False
        self.location = ""
        self.encoding = ""
        self.length = True
        self.dated_304 = True
        self.heads = True
        self.asked: list[dict[str, str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked_for = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/image.tar"

    def close(self) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    server: ImageServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at `asked`."""

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(dict(self.headers.items()))
        server.asked_for.set()
        if server.location and self.path == "/image.tar":
            self.send_response(302)
            self.send_header("Last-Modified", email.utils.formatdate(OLD, usegmt=True))
            self.send_header("Location", server.location)
            self.end_headers()
            return
        date = (
            None
            if server.modified_time is None
            else email.utils.formatdate(server.modified_time, usegmt=True)
        )
        since = self.headers.get("If-Modified-Since")
        same = None not in (since, date) and _seconds(since) >= _seconds(date)
        self.send_response(304 if same else server.status)
        if date is not None and (server.dated_304 or not same):
            self.send_header("Last-Modified", date)
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        if server.length:
            self.send_header("Content-Length", str(len(server.content) + (1000 if server.cut_off else 0)))
        self.end_headers()
        if not same and self.command == "GET":
            self.wfile.write(server.content[:1])
            self.wfile.flush()
            server.gate.wait(60)
            self.wfile.write(server.content[1:])

    def do_HEAD(self) -> None:
        if self.server.heads:
            self.do_GET()
        else:
            self.send_error(405)


def _seconds(date: str | None) -> float:
    return email.utils.parsedate_to_datetime(date or "").timestamp()


@dataclass
class Place:
    """Directories of a cache, and caches in them."""

    root: Path
    directory: Path = field(init=False)
    unfinished: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory = self.root / "imagecache"
        self.unfinished = self.root / "tmp"
        self.directory.mkdir()
        self.unfinished.mkdir()

    def cache(self, **limits: int) -> ImageCache:
        return ImageCache(self.directory, self.unfinished, Limits(**limits))

    def leftovers(self) -> list[Path]:
        return list(self.unfinished.iterdir())


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with contextlib.closing(ImageServer()) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_image_is_kept_under_its_url_with_the_servers_date(server: ImageServer, place: Place) -> None:
    path = place.cache().fetch(server.url)
    assert path == place.directory / quote(server.url, safe="")
    assert path.read_bytes() == CACHED
    assert path.stat().st_mtime == OLD
    assert server.asked[0]["User-Agent"] == f"Vac {vac.__version__}"
    assert place.leftovers() == []


def test_an_image_is_downloaded_again_only_if_it_has_changed(server: ImageServer, place: Place) -> None:
    cache = place.cache()
    cache.fetch(server.url)
    server.content = b"served with the same date"
    assert cache.fetch(server.url).read_bytes() == CACHED
    server.content, server.modified_time = CHANGED, NEW
    path = cache.fetch(server.url)
    assert (path.read_bytes(), path.stat().st_mtime) == (CHANGED, NEW)
    since = [asked.get("If-Modified-Since") for asked in server.asked]
    assert since == [None, *[email.utils.formatdate(OLD, usegmt=True)] * 2]


@pytest.mark.parametrize("dated", [True, False], ids=["dated 304", "304 without date"])
def test_an_image_rolled_back_to_an_older_date_is_fetched(
    server: ImageServer, place: Place, dated: bool
) -> None:
    cache = place.cache()
    server.modified_time = NEW
    cache.fetch(server.url)
    server.content, server.modified_time, server.dated_304 = CHANGED, OLD, dated
    path = cache.fetch(server.url)
    assert (path.read_bytes(), path.stat().st_mtime) == (CHANGED, OLD)


def test_without_dates_and_head_unchanged_means_unchanged(server: ImageServer, place: Place) -> None:
    cache = place.cache()
    cache.fetch(server.url)
    server.content, server.dated_304, server.heads = CHANGED, False, False
    assert cache.fetch(server.url).read_bytes() == CACHED


def test_an_encoding_that_was_not_requested_is_undone(server: ImageServer, place: Place) -> None:
    server.content, server.encoding = gzip.compress(CACHED), "gzip"
    assert document(server.url, QUICK) == CACHED
    assert place.cache().fetch(server.url).read_bytes() == CACHED
    server.content = gzip.compress(b"x" * 101)
    with pytest.raises(DownloadFailed, match="larger than 100 bytes"):
        document(server.url, QUICK)
    server.encoding = "secret"
    with pytest.raises(DownloadFailed, match="Content-Encoding that wasn't requested"):
        document(server.url, QUICK)


def test_a_url_too_long_for_a_file_name_is_kept_too(server: ImageServer, place: Place) -> None:
    long = f"{server.url}?{'x' * 300}"
    cache = place.cache()
    assert cache.fetch(long) != cache.fetch(f"{long}y")


@pytest.mark.parametrize(("status", "copy_serves"), [(404, False), (403, False), (500, True), (503, True)])
def test_what_a_status_means(server: ImageServer, place: Place, status: int, copy_serves: bool) -> None:
    cache = place.cache()
    server.status = status
    reason = f"^the server answers with status {status}$"
    with pytest.raises(DownloadFailed, match=reason):
        cache.fetch(server.url)
    server.status = 200
    cache.fetch(server.url)
    server.status, server.modified_time = status, NEW
    if copy_serves:
        assert cache.fetch(server.url).read_bytes() == CACHED
    else:
        with pytest.raises(DownloadFailed, match=reason):
            cache.fetch(server.url)


def test_another_success_than_200_is_no_image(server: ImageServer, place: Place) -> None:
    server.status = 203
    with pytest.raises(DownloadFailed, match="status 203 instead of 200"):
        place.cache().fetch(server.url)


def test_a_server_without_last_modified_is_refused(server: ImageServer, place: Place) -> None:
    server.modified_time = None
    with pytest.raises(DownloadFailed, match="no Last-Modified"):
        place.cache().fetch(server.url)
    assert [*place.directory.iterdir(), *place.leftovers()] == []


def test_a_redirect_is_followed_and_its_own_date_does_not_count(server: ImageServer, place: Place) -> None:
    server.location, server.modified_time = "/elsewhere", NEW
    path = place.cache().fetch(server.url)
    assert (path.read_bytes(), path.stat().st_mtime) == (CACHED, NEW)
    server.modified_time = None
    with pytest.raises(DownloadFailed, match="no Last-Modified"):
        place.cache().fetch(f"{server.url}")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/image.tar", "redirected more than 3 times"),
        ("file:///etc/passwd", "neither http nor https"),
        ("ftp://127.0.0.1/image.tar", "neither http nor https"),
    ],
)
def test_redirects_that_are_not_followed(
    server: ImageServer, place: Place, location: str, reason: str
) -> None:
    server.location = location
    with pytest.raises(DownloadFailed, match=reason):
        place.cache(redirects=3).fetch(server.url)


def test_a_body_that_is_cut_off_leaves_the_old_copy(server: ImageServer, place: Place) -> None:
    cache = place.cache()
    cache.fetch(server.url)
    server.content, server.modified_time, server.cut_off = CHANGED, NEW, True
    path = cache.fetch(server.url)
    assert (path.read_bytes(), path.stat().st_mtime) == (CACHED, OLD)
    assert place.leftovers() == []
    path.unlink()
    with pytest.raises(DownloadFailed, match="ended the transfer early"):
        cache.fetch(server.url)
    assert [*place.directory.iterdir(), *place.leftovers()] == []


def test_an_image_that_is_too_large_is_refused(server: ImageServer, place: Place) -> None:
    with pytest.raises(DownloadFailed, match="larger than 5 bytes"):
        place.cache(largest_bytes=5).fetch(server.url)
    assert [*place.directory.iterdir(), *place.leftovers()] == []


def test_a_download_that_gets_nowhere_is_given_up(server: ImageServer, place: Place) -> None:
    server.gate.clear()
    with pytest.raises(DownloadFailed, match="too slow: 1 s at less than 1000 bytes/s"):
        place.cache(slow_seconds=1).fetch(server.url)
    assert place.leftovers() == []


def test_the_copy_serves_while_the_server_is_down(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = place.cache()
    with contextlib.closing(ImageServer()) as server:
        url, port = server.url, server.server_port
        path = cache.fetch(url)
    for _ in range(3):
        assert cache.fetch(url).read_bytes() == CACHED
    text = f"image {url}: using the cached copy: connection refused or host unreachable"
    assert caplog.messages == [text]
    assert path.stat().st_mtime == OLD
    with contextlib.closing(ImageServer(port)):
        cache.fetch(url)
    assert caplog.messages == [text, f"no longer: {text}"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/image.tar", "connection refused"),
        ("http://host.invalid/image.tar", "unknown host"),
        ("http://not a host/", "not a URL"),
        ("file:///etc/passwd", "neither http nor https"),
    ],
)
def test_why_there_is_no_image(place: Place, url: str, reason: str) -> None:
    with pytest.raises(DownloadFailed, match=reason):
        place.cache().fetch(url)


def test_threads_share_one_download(server: ImageServer, place: Place) -> None:
    cache = place.cache()
    server.gate.clear()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.fetch(server.url).read_bytes())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert server.asked_for.wait(60)
    server.gate.set()
    for thread in threads:
        thread.join(60)
    assert found == [CACHED, CACHED]
    assert ["If-Modified-Since" in asked for asked in server.asked] == [False, True]


def test_a_query_string_is_sent_and_never_told(
    server: ImageServer, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cache = place.cache()
    url = f"{server.url}?sig=secret"
    path = cache.fetch(url)
    assert cache.path(f"{server.url}?sig=other") != path != cache.path(server.url)
    server.status, server.modified_time = 500, NEW
    cache.fetch(url)
    assert len(caplog.messages) == 1
    assert "secret" not in f"{path}{caplog.text}"


def test_a_password_is_sent_and_never_told(
    server: ImageServer, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cache = place.cache()
    url = server.url.replace("http://", "http://user:secret@")
    path = cache.fetch(url)
    assert server.asked[0]["Authorization"].startswith("Basic ")
    server.status, server.modified_time = 500, NEW
    cache.fetch(url)
    assert len(caplog.messages) == 1
    path.unlink()
    with pytest.raises(DownloadFailed) as failed:
        cache.fetch(url)
    assert "secret" not in f"{path}{failed.value}{caplog.text}"


def test_images_that_nobody_uses_expire(server: ImageServer, place: Place) -> None:
    cache = place.cache()
    urls = {age: f"{server.url}?{age}" for age in (1, 9)}
    used = cache.fetch(server.url)
    paths = {age: cache.fetch(url) for age, url in urls.items()}
    now = paths[9].stat().st_atime
    for age, path in paths.items():
        os.utime(path, (now - age * DAY, OLD))
    os.utime(used, (now - 9 * DAY, OLD))
    cache.expire([server.url], now, 5)
    assert set(place.directory.iterdir()) == {used, paths[1]}


def test_what_cant_be_removed_holds_up_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (place.directory / "0").mkdir()
    (place.directory / "1").touch()
    cache, later = place.cache(), (place.directory / "0").stat().st_atime + 9 * DAY
    cache.expire([], later, 5)
    cache.expire([], later, 5)
    assert [path.name for path in place.directory.iterdir()] == ["0"]
    assert [text for text in caplog.messages if "can't be removed" in text] == caplog.messages[:1]


@pytest.mark.allow_subprocess
def test_a_certificate_counts_if_its_ca_is_trusted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    assert openssl, "openssl has to be installed for this test"
    key, certificate = place.root / "key.pem", place.root / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([openssl, *new, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with contextlib.closing(ImageServer(context=context)) as server:
        with pytest.raises(DownloadFailed, match="certificate isn't trusted"):
            place.cache().fetch(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert place.cache().fetch(server.url).read_bytes() == CACHED
        with pytest.raises(DownloadFailed, match="certificate isn't trusted"):
            place.cache().fetch(server.url.replace("127.0.0.1", "localhost"))


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    with Web(tmp_path) as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.ca_file))
        yield web


def reason(web: Web, url: str, limits: Limits = QUICK) -> str:
    """Return the reason why there is no document."""
    with pytest.raises(DownloadFailed) as failed:
        document(url, limits)
    return str(failed.value)


def test_a_document_comes_byte_for_byte_and_anew_each_time(web: Web) -> None:
    site = web.serve({"/a": Page(CONTENT)})
    assert document(site.url("/a"), QUICK) == CONTENT
    site.pages["/a"] = Page(b"", modified_time=1_600_000_000)
    assert document(site.url("/a"), QUICK) == b""
    assert "If-Modified-Since" not in site.asked[1].headers
    assert site.asked[0].headers["User-Agent"] == f"Vac {vac.__version__}"


def test_a_redirect_to_another_server_is_followed(web: Web) -> None:
    plain = web.serve({"/b": Page(CONTENT)}, certificate=None)
    site = web.serve({"/a": Page(status=301, location=plain.url("/b"))})
    assert document(site.url("/a"), QUICK) == CONTENT


@pytest.mark.parametrize(
    ("certificate", "reason_words"),
    [
        ("wrong name", "the server's certificate isn't trusted for this host: it belongs to another one"),
        ("expired", "the server's certificate has expired, or one of its CA's has"),
        ("not yet valid", "the server's certificate is not valid yet, or one of its CA's isn't"),
        ("stranger", "the server's certificate isn't trusted: its CA is unknown here"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told(web: Web, certificate: str, reason_words: str) -> None:
    site = web.serve({"/a": Page(CONTENT)}, certificate)
    assert reason(web, site.url("/a")) == reason_words
    assert site.asked == []


@pytest.mark.parametrize(
    ("page", "reason_words"),
    [
        (Page(CONTENT, 404), "the server answers with status 404"),
        (Page(CONTENT, 500), "the server answers with status 500"),
        (Page(CONTENT, 206), "the server answers with status 206 instead of 200"),
        (Page(CONTENT + b"x"), "larger than 100 bytes"),
        (Page(CONTENT, cut_off=True), "larger than 100 bytes"),
        (Page(b"x", gate=threading.Event(), cut_off=True), "larger than 100 bytes"),
        (Page(b"xyz", gate=threading.Event()), "too slow: 1 s at less than 1000 bytes/s"),
        (Page(status=302, location="/circle/0"), "redirected more than 3 times"),
        (Page(status=302, location="file:///etc/passwd"), "neither http nor https"),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(web: Web, page: Page, reason_words: str) -> None:
    site = web.serve({"/a": page, **circle()})
    assert reason_words in reason(web, site.url("/a"))


def test_an_answer_that_is_cut_off_is_no_answer(web: Web) -> None:
    site = web.serve({"/a": Page(CONTENT, cut_off=True)})
    words = ("the server ended the transfer early", "connection lost")
    assert reason(web, site.url("/a"), Limits()) in words


def test_a_server_that_is_not_there_is_told(web: Web) -> None:
    with closed_port() as port:
        assert reason(web, f"https://127.0.0.1:{port}/a") == "connection refused or host unreachable"


def test_a_server_that_says_nothing_is_told(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = reason(web, f"https://127.0.0.1:{silent.getsockname()[1]}/a", Limits(connect_seconds=1))
    assert words == "connection timed out"


def test_a_server_without_tls_is_told(web: Web) -> None:
    site = web.serve({"/a": Page(CONTENT)}, certificate=None)
    assert "TLS" in reason(web, site.url("/a").replace("http:", "https:"))


def test_the_environment_may_name_the_trusted_cas(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    site = web.serve({"/a": Page(CONTENT)})
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DownloadFailed, match="its CA is unknown here"):
        document(site.url("/a"), QUICK)
    monkeypatch.setenv("SSL_CERT_FILE", str(web.ca_file))
    assert document(site.url("/a"), QUICK) == CONTENT


@pytest.mark.parametrize(
    ("content", "html"),
    [
        (HTML, True),
        (b"\xef\xbb\xbf \n<HTML lang=en>", True),
        (b'<?xml version="1.0"?>\n<!doctype  HTML PUBLIC "x">', True),
        (b"", False),
        (b"#!/bin/sh\necho '<html>'\n", False),
        (b"<htmlish>", False),
        (b"<?xml version='1.0'?><domain/>", False),
        (b"From nobody\nMIME-Version: 1.0\n", False),
    ],
)
def test_web_pages_are_recognised(content: bytes, html: bool) -> None:
    assert is_html(content) == html


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *(
            (address, True)
            for address in ("127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1%eth0")
        ),
        *(
            (address, True)
            for address in ("0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:169.254.1.1", "224.0.0.1")
        ),
        *((address, False) for address in ("192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1")),
    ],
)
def test_local_addresses_are_those_of_this_host_and_its_link(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_local_addresses_are_refused_where_they_may_not_be_used(
    server: ImageServer, place: Place, host: str
) -> None:
    url = server.url.replace("127.0.0.1", host)
    with pytest.raises(DownloadFailed, match="is a local address, which a pipe may not use"):
        document(url, QUICK, local=Local.REFUSED)
    cache = ImageCache(place.directory, place.unfinished, named=lambda: {url: "lhcb"})
    with pytest.raises(DownloadFailed, match="is a local address"):
        cache.fetch(url)
    assert server.asked == []


@pytest.fixture
def publisher(server: ImageServer, place: Place, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr(downloads, "is_local", lambda host: False)
    server.content = bytes(1000)
    return Publisher(server, place)


@dataclass
class Publisher:
    """Writes pipes' documents, for a cache of at most 10,000 bytes of pipes' images."""

    server: ImageServer
    place: Place
    named: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = ImageCache(
            self.place.directory, self.place.unfinished, named=lambda: self.named, most_bytes=lambda: 10_000
        )

    def fetch(self, count: int, pipe: str = "lhcb", start: int = 0) -> int:
        """Name so many images and ask for them; return how many come."""
        urls = [f"{self.server.url}?{pipe}{number}" for number in range(start, start + count)]
        self.named.update(dict.fromkeys(urls, pipe))
        come = 0
        for url in urls:
            with contextlib.suppress(DownloadFailed):
                self.cache.fetch(url)
                come += 1
        return come


def test_images_of_one_pipe_take_half_of_the_room_for_all(publisher: Publisher) -> None:
    assert publisher.fetch(8) == 5
    with pytest.raises(
        DownloadFailed, match=r"images of pipe lhcb would take more than 0.0 GB; see pipe_images_gb"
    ):
        publisher.cache.fetch(f"{publisher.server.url}?lhcb7")
    assert publisher.fetch(8, "atlas") == 5
    assert publisher.fetch(1, "cms") == 0
    assert publisher.fetch(3, "") == 3, "the site's own images are the site's affair"
    assert publisher.place.leftovers() == []


def test_images_that_no_pipe_names_any_more_make_room(publisher: Publisher) -> None:
    for edition in range(6):
        publisher.named.clear()
        assert publisher.fetch(5, start=10 * edition) == 5
        assert sum(path.stat().st_size for path in publisher.place.directory.iterdir()) <= 10_000
    kept = {path.name.rpartition("-")[0] for path in publisher.place.directory.iterdir()}
    assert len(kept) == 1


def test_an_image_without_a_length_is_cut_off_when_the_room_is_used_up(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "ROOM_LOOK_BYTES", 512)
    publisher.server.content, publisher.server.length = bytes(100_000), False
    written: list[int] = []
    make_room = publisher.cache._make_room

    def look(pipe: str, more_bytes: int = 0) -> None:
        written.append(sum(path.stat().st_size for path in publisher.place.unfinished.iterdir()))
        make_room(pipe, more_bytes)

    monkeypatch.setattr(publisher.cache, "_make_room", look)
    assert publisher.fetch(1) == 0
    assert max(written) < 50_000


def test_pipes_images_leave_room_for_machines(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(publisher.place.directory)._replace(free=downloads.LEFT_FREE_BYTES + 2500)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert publisher.fetch(1) == 1
    usage = usage._replace(free=downloads.LEFT_FREE_BYTES + 500)
    with pytest.raises(DownloadFailed, match="only 2 GB or less would be left free"):
        publisher.named["x"] = "lhcb"
        publisher.cache.fetch(f"{publisher.server.url}?more")


def test_a_copy_that_can_not_be_renewed_for_want_of_room_serves(publisher: Publisher) -> None:
    assert publisher.fetch(5) == 5
    publisher.server.content, publisher.server.modified_time = bytes(1001), NEW
    assert publisher.fetch(5) == 5


def test_a_pipe_may_not_be_redirected_to_a_local_address(server: ImageServer) -> None:
    with contextlib.closing(ImageServer()) as inner:
        server.location = inner.url
        with pytest.raises(DownloadFailed, match="is a local address"):
            fetch_pipe(server.url)
        assert (len(server.asked), inner.asked) == (1, [])
        assert document(server.url, QUICK) == CACHED
        server.location = "/elsewhere"
        assert fetch_pipe(server.url) == CACHED


def test_a_proxy_may_have_a_local_address(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert document("http://vo.example.org/image.tar", QUICK, local=Local.REFUSED) == CACHED
