"""What goes wrong with web servers, each with its own reason."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import vac
from tests.https_server import HTML, Page, Web, circle, closed_port
from vac.context.transfers import DownloadFailed, Limits, document, is_html

QUICK = Limits(largest_bytes=100, slow_seconds=1, redirects=3)
CONTENT = bytes(range(100))


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    with Web(tmp_path) as web:
        yield web


def reason(web: Web, url: str, limits: Limits = QUICK) -> str:
    """Why there is no document."""
    with pytest.raises(DownloadFailed) as failed:
        document(url, limits, web.ca_file)
    return str(failed.value)


def test_a_document_comes_byte_for_byte_and_anew_each_time(web: Web) -> None:
    site = web.serve({"/a": Page(CONTENT)})
    assert document(site.url("/a"), QUICK, web.ca_file) == CONTENT
    site.pages["/a"] = Page(b"", modified_time=1_600_000_000)
    assert document(site.url("/a"), QUICK, web.ca_file) == b""
    assert "If-Modified-Since" not in site.asked[1].headers
    assert site.asked[0].headers["User-Agent"] == f"Vac {vac.__version__}"


def test_a_redirect_to_another_server_is_followed(web: Web) -> None:
    plain = web.serve({"/b": Page(CONTENT)}, certificate=None)
    site = web.serve({"/a": Page(status=301, location=plain.url("/b"))})
    assert document(site.url("/a"), QUICK, web.ca_file) == CONTENT


@pytest.mark.parametrize(
    ("certificate", "reason_words"),
    [
        ("wrong name", "the server's certificate isn't to be trusted for this host: it is another's"),
        ("expired", "the server's certificate has expired, or one of its CA's has"),
        ("not yet valid", "the server's certificate is not valid yet, or one of its CA's isn't"),
        ("stranger", "the server's certificate isn't to be trusted: nobody here trusts its CA"),
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
        (Page(status=302, location="/circle/0"), "redirected more than 3 times, as if in a circle"),
        (Page(status=302, location="file:///etc/passwd"), "neither http nor https"),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(web: Web, page: Page, reason_words: str) -> None:
    site = web.serve({"/a": page, **circle()})
    assert reason_words in reason(web, site.url("/a"))


def test_an_answer_that_is_cut_off_is_no_answer(web: Web) -> None:
    site = web.serve({"/a": Page(CONTENT, cut_off=True)})
    words = ("the server has cut the transfer off", "the connection to the server broke")
    assert reason(web, site.url("/a"), Limits()) in words


def test_a_server_that_is_not_there_is_told(web: Web) -> None:
    with closed_port() as port:
        assert reason(web, f"https://127.0.0.1:{port}/a") == "the server can't be connected to"


def test_a_server_that_says_nothing_is_told(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = reason(web, f"https://127.0.0.1:{silent.getsockname()[1]}/a", Limits(connect_seconds=1))
    assert words == "no connection to the server comes about in time"


def test_a_server_without_tls_is_told(web: Web) -> None:
    site = web.serve({"/a": Page(CONTENT)}, certificate=None)
    assert "TLS" in reason(web, site.url("/a").replace("http:", "https:"))


def test_the_environment_may_name_the_trusted_cas(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    site = web.serve({"/a": Page(CONTENT)})
    with pytest.raises(DownloadFailed, match="nobody here trusts its CA"):
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
