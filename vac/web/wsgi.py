"""Requests and answers as values, and the WSGI application (PEP 3333) around a function from one to the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, cast

from vac.web.guests import Guest, Guests

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
BYTES = "application/octet-stream"
HTML = "text/html; charset=utf-8"
READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Request:
    """What is asked, by whom."""

    method: str
    parts: tuple[str, ...]
    """Of the path, between slashes; empty ones left out, so that `//` counts as `/` and one at the end for
    nothing. They may be anything, `..` included."""
    guest: Guest | None
    body: Callable[[], bytes] = bytes
    """What was sent along."""
    accept: str = ""
    """The header field of that name, in which a client says which formats it takes."""


@dataclass(frozen=True)
class Answer:
    """What is said."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


def text(content: str | bytes) -> Answer:
    """A value or a list, one a line."""
    return Answer(HTTPStatus.OK, content.encode() if isinstance(content, str) else content)


def refusal(status: HTTPStatus, reason: str = "") -> Answer:
    """An error, with words for people."""
    return Answer(status, f"{reason or status.phrase}\n".encode("utf-8", "replace"))


NOT_FOUND = refusal(HTTPStatus.NOT_FOUND)
READ_ONLY = Answer(
    HTTPStatus.METHOD_NOT_ALLOWED, b"Method Not Allowed\n", headers=(("Allow", ", ".join(READING)),)
)


def path_parts(path_info: str) -> tuple[str, ...] | None:
    """The parts of WSGI's PATH_INFO, whose percent signs have been undone; None if it isn't printable UTF-8."""
    try:
        path = path_info.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None
    return tuple(part for part in path.split("/") if part) if path.isprintable() else None


def application(respond: Callable[[Request], Answer], guests: Guests | None) -> WSGIApplication:
    """A WSGI application in which respond gives the answers; guests, where clients are VMs, tells which one asks."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, address = environ["REQUEST_METHOD"], environ["REMOTE_ADDR"]
        parts = path_parts(environ["PATH_INFO"])
        if parts is None:
            answer = refusal(HTTPStatus.FORBIDDEN) if method == "PUT" else NOT_FOUND
        else:
            body = cast(BinaryIO, environ["wsgi.input"]).read
            guest = None if guests is None else guests.find(address)
            answer = respond(Request(method, parts, guest, body, environ.get("HTTP_ACCEPT", "")))
        log.debug("%s: %s %s: %d", address, method, environ["PATH_INFO"], answer.status)
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status:d} {answer.status.phrase}", [*headers, *answer.headers])
        return [b"" if method == "HEAD" else answer.body]

    return app
