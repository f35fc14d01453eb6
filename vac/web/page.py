"""vacd-page: /metrics for Prometheus and a status page for people, at metrics_listen, both made of state_dir.

state_dir is read at most once a second, however often they are requested.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from vac.accounting import history
from vac.accounting.history import Ended
from vac.config.options import split_host_port
from vac.config.settings import Settings
from vac.host.filesystems import stamp_if_there
from vac.machines.layout import StateDir
from vac.roles import RoleOptions
from vac.vacquery.snapshot import SnapshotBuilder
from vac.web.http_server import HTML, NOT_FOUND, READ_ONLY, READING, Answer, Request, Service, run
from vac.web.metrics import Metrics
from vac.web.page_content import WEEK, page
from vac.web.view import View, look

KEPT_SECONDS = 1.0
REFRESH_SECONDS = 60
"""Of /watch, for displays; other pages aren't reloaded while somebody reads them."""
_BODY_LIMIT_BYTES = 4096
"""No request needs a body."""
_HARDENED = (
    ("Cache-Control", "no-cache"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)


class Site:
    """The page and the metrics, for requests from any thread."""

    def __init__(self, state: StateDir, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._builder = SnapshotBuilder(state, "vacd-page")
        self._ends: tuple[object, Sequence[Ended]] = (None, ())
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None

    def respond(self, request: Request) -> Answer:
        """Return the answer to a request."""
        parts = request.parts
        if parts and parts[0] not in ("metrics", "watch", "machine", "machinetype"):
            return NOT_FOUND
        if request.method not in READING:
            return READ_ONLY
        with self._lock:
            view = self._fresh()
            if parts == ("metrics",):
                return _metrics(view, request.accept)
            watched = parts == ("watch",)
            body = page(view, self._recent(view.now), () if watched else parts)
        if body is None:
            return NOT_FOUND
        refresh = [("Refresh", str(REFRESH_SECONDS))] if watched else []
        return Answer(HTTPStatus.OK, body, HTML, (*_HARDENED, *refresh))

    def _recent(self, now: float) -> Sequence[Ended]:
        """Return the machines that ended within a week; the file is read anew when it has changed."""
        stamp = (stamp_if_there(self._state.history), int(now // 3600))
        if stamp != self._ends[0]:
            self._ends = (stamp, history.read(self._state, now - WEEK))
        return self._ends[1]

    def _fresh(self) -> View:
        now = self._clock()
        if self._view is None or not 0 <= now - self._view.now < KEPT_SECONDS:
            self._view = look(self._state, self._builder, now)
        return self._view


def _metrics(view: View, accept: str) -> Answer:
    """Return the metrics in the format that a client accepts."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # raised by the library for a malformed version
        encode, content_type = choose_encoder("")
    registry = CollectorRegistry()
    registry.register(Metrics(view))
    return Answer(HTTPStatus.OK, encode(registry), content_type, _HARDENED)


def service(settings: Settings) -> Service | None:
    """Return the service that [settings] ask for; None without metrics_listen."""
    if settings.metrics_listen is None:
        return None
    host, port = split_host_port(settings.metrics_listen)
    return Service(
        "page",
        host,
        lambda state: Site(state).respond,
        _BODY_LIMIT_BYTES,
        port,
        option=f"metrics_listen = {settings.metrics_listen}",
    )


def main(options: RoleOptions) -> int:
    """Run the role `page`: 0 when told to end, 1 if it can't work as configured."""
    return run(service, options)
