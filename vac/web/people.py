"""What anybody may read over HTTP: /metrics and the status page, made of state_dir as the responder's answers are.

Making them costs the same however often they are asked for: everything is kept for a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from vac.config.settings import Settings
from vac.config.values import split_host_port
from vac.machines.layout import StateDir
from vac.roles import RoleOptions
from vac.web import process, status_page
from vac.web.metrics import Metrics
from vac.web.view import View, Viewer
from vac.web.wsgi import HTML, NOT_FOUND, READ_ONLY, READING, Answer, Request

KEPT_SECONDS = 1.0
MOST_KEPT = 8
"""Clients may ask for more formats than there are, by version."""
_BODY_LIMIT_BYTES = 4096
"""Nothing that is sent here is wanted."""
_HARDENED = (
    ("Cache-Control", "no-cache"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)


class Site:
    """Answers requests, from any thread."""

    def __init__(self, state: StateDir, clock: Callable[[], float] = time.time) -> None:
        self._viewer = Viewer(state)
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None
        self._kept: dict[str, bytes] = {}

    def respond(self, request: Request) -> Answer:
        """The answer to a request."""
        if request.parts not in ((), ("metrics",)):
            return NOT_FOUND
        if request.method not in READING:
            return READ_ONLY
        if not request.parts:
            return self._answer(HTML, status_page.render)
        encode, content_type = _encoder(request.accept)

        def metrics(view: View) -> bytes:
            registry = CollectorRegistry()
            registry.register(Metrics(view))
            return encode(registry)

        return self._answer(content_type, metrics)

    def _answer(self, content_type: str, make: Callable[[View], bytes]) -> Answer:
        with self._lock:
            view = self._fresh()
            body = self._kept.get(content_type)
            if body is None:
                body = make(view)
                if len(self._kept) < MOST_KEPT:
                    self._kept[content_type] = body
        return Answer(HTTPStatus.OK, body, content_type, _HARDENED)

    def _fresh(self) -> View:
        now = self._clock()
        if self._view is None or not 0 <= now - self._view.now < KEPT_SECONDS:
            self._kept.clear()
            self._view = self._viewer.view(now)
        return self._view


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """What writes the format that a client wants, and that format's name."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # what the library makes of a version that is none
        return choose_encoder("")


def service(settings: Settings) -> process.Service | None:
    """What [settings] ask for; None: nothing."""
    if settings.metrics_listen is None:
        return None
    host, port = split_host_port(settings.metrics_listen)
    return process.Service(
        "page",
        host,
        lambda state: Site(state).respond,
        _BODY_LIMIT_BYTES,
        port,
        for_people=True,
        name=f"metrics_listen = {settings.metrics_listen}",
    )


def run(options: RoleOptions) -> int:
    """Serve until told to end; the exit status."""
    return process.run(service, options)
