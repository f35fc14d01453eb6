"""vacd-page: /metrics for Prometheus and a status page for people, at metrics_listen, both made of state_dir.

The page is plain HTML without scripts or external resources, built and escaped by ElementTree. Both are rendered at
most once a second, however often they are requested.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from xml.etree.ElementTree import Element, SubElement, tostring

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from vac.config.settings import Settings
from vac.config.values import split_host_port
from vac.machines.layout import StateDir
from vac.machines.status import Status
from vac.roles import RoleOptions
from vac.text import duration, utc_time
from vac.vacquery.messages import MachineStatus
from vac.vacquery.snapshot import Slot, Snapshot
from vac.web import web_process
from vac.web.http_server import HTML, NOT_FOUND, READ_ONLY, READING, Answer, Request
from vac.web.metrics import Metrics
from vac.web.view import STALE_SECONDS, View, Viewer, name, shares, shown

KEPT_SECONDS = 1.0
MOST_KEPT = 8
"""Formats kept; clients may request more, by version."""
_BODY_LIMIT_BYTES = 4096
"""No request needs a body."""
_HARDENED = (
    ("Cache-Control", "no-cache"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
LONGEST_TEXT = 500
REFRESH_SECONDS = 60
_STYLE = """
body { font-family: sans-serif; margin: 1.5em; }
table { border-collapse: collapse; margin-bottom: 1.5em; }
th, td { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; vertical-align: top; }
th { background: #eee; }
.bad { color: #a00; }
"""
_BYTES_PER_MB = 1024 * 1024


def render(view: View) -> bytes:
    """Return the status page as UTF-8."""
    snapshot = view.snapshot
    title = "Vac factory" if snapshot is None else name(snapshot.status.factory)
    html = Element("html", lang="en")
    head = SubElement(html, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", {"http-equiv": "refresh", "content": str(REFRESH_SECONDS)})
    _text(head, "title", title)
    _text(head, "style", _STYLE)
    body = SubElement(html, "body")
    _text(body, "h1", title)
    if snapshot is None:
        _text(body, "p", "No factory has reported yet.", bad=True)
    else:
        _body(body, view, snapshot)
    metrics = _text(SubElement(body, "p"), "a", "Metrics for Prometheus")
    metrics.set("href", "/metrics")
    return f"<!DOCTYPE html>\n{tostring(html, encoding='unicode', method='html')}".encode()


def _body(body: Element, view: View, snapshot: Snapshot) -> None:
    status, now = snapshot.status, view.now
    facts = (
        f"Space {name(status.space)}, site {name(status.site)}, Vac {shown(status.version)}, "
        f"{snapshot.factory.running_processors} of {status.total_processors} processors in use, "
        f"load {snapshot.factory.load_average:.2f}, as of {utc_time(status.time)}."
    )
    _text(body, "p", facts)
    for line in _news(status, now):
        _text(body, "p", line, bad=True)
    _table(body, "Machinetypes", _TYPE_COLUMNS, _types(snapshot, now))
    _table(body, "Slots", _SLOT_COLUMNS, _slots(snapshot, now))
    _table(body, "Engines", ("Engine", "State"), _troubles(status.engines.items()))
    _table(body, "Vacuum Pipes", ("Pipe", "State"), _troubles(status.pipes.items()))


def _news(status: Status, now: float) -> Iterator[str]:
    """Yield lines about problems and administrators' actions."""
    if now - status.time > STALE_SECONDS:
        yield f"The factory has not reported for {duration(now - status.time)}: is vacd running?"
    if status.drain is not None:
        until = "" if status.drain.until is None else f" until {utc_time(status.drain.until)}"
        since = "" if status.drain.since is None else f" since {utc_time(status.drain.since)}"
        yield f"Draining{since}{until}: {_long(status.drain.reason) or 'no reason given'}."
    if status.guard is not None:
        yield f"Nothing is created: {_long(status.guard)}."
    if status.shutdown_time is not None:
        yield f"No machine may run past {utc_time(status.shutdown_time)}."
    for problem in status.problems[:20]:
        yield f"Configuration: {_long(problem)}"
    for warning in status.warnings[:20]:
        yield f"Warning: {_long(warning)}."
    if status.silent:
        yield f"No answer from {len(status.silent)} of {len(status.factories)} factories."


_TYPE_COLUMNS = (
    *("Machinetype", "Model", "Machines", "Processors", "HS06", "Share", "Target"),
    *("Why no more are created", "Last creation that failed", "Last end"),
)


def _types(snapshot: Snapshot, now: float) -> Iterator[Sequence[str]]:
    status = snapshot.status
    target, actual = shares(snapshot)
    for facts, one in zip(status.machinetypes, snapshot.machinetypes):
        reason = status.passed_over.get(facts.name)
        failed = status.failed.get(facts.name)
        failure = "" if failed is None else f"{duration(now - failed.time)} ago: {_long(failed.reason)}"
        yield (
            *(name(facts.name), name(facts.machine_model), str(one.running_machines)),
            *(f"{one.running_processors:.0f}", f"{one.running_hs06:.1f}"),
            *(f"{actual[facts.name]:.0%}", f"{target[facts.name]:.0%}"),
            *("" if reason is None else _long(reason), failure, _long(one.shutdown_message or "")),
        )


_SLOT_COLUMNS = (
    *("Slot", "State", "Machinetype", "Model", "Processors", "Age"),
    *("CPU", "Memory", "Ends by", "Last end"),
)


def _slots(snapshot: Snapshot, now: float) -> Iterator[Sequence[str]]:
    return (_slot(slot, said, snapshot.status, now) for slot, said in zip(snapshot.slots, snapshot.machines))


def _slot(slot: Slot, said: MachineStatus, status: Status, now: float) -> Sequence[str]:
    machine = slot.machine
    beginning = (name(slot.name), shown(said.state))
    if machine is None:
        return (*beginning, *[""] * (len(_SLOT_COLUMNS) - len(beginning)))
    made = (*beginning, name(machine.machinetype), name(machine.model))
    if machine.finished:
        gone = len(_SLOT_COLUMNS) - len(made) - 1
        return (*made, *[""] * gone, _long(slot.message or "no shutdown message"))
    memory = "" if machine.memory_bytes is None else f"{machine.memory_bytes / _BYTES_PER_MB:.0f} MB"
    return (
        *made,
        str(machine.processors),
        duration(now - (machine.started_time or machine.created_time)),
        "" if machine.cpu_percent is None else f"{machine.cpu_percent:.0f} %",
        memory,
        utc_time(machine.shutdown_time),
        "",
    )


def _troubles(troubles: Iterable[tuple[str, str | None]]) -> Iterator[Sequence[str]]:
    return ((name(one), "ok" if trouble is None else _long(trouble)) for one, trouble in troubles)


def _long(text: str) -> str:
    return shown(text, LONGEST_TEXT)


def _text(parent: Element, tag: str, text: str, *, bad: bool = False) -> Element:
    element = SubElement(parent, tag, {"class": "bad"} if bad else {})
    element.text = text
    return element


def _table(body: Element, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Append a table with its heading, unless it has no rows."""
    found = list(rows)
    if not found:
        return
    _text(body, "h2", title)
    table = SubElement(body, "table")
    line = SubElement(table, "tr")
    for column in columns:
        _text(line, "th", column)
    for row in found:
        line = SubElement(table, "tr")
        for cell in row:
            _text(line, "td", cell)


class Site:
    """The page and the metrics, for requests from any thread."""

    def __init__(self, state: StateDir, clock: Callable[[], float] = time.time) -> None:
        self._viewer = Viewer(state)
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None
        self._kept: dict[str, bytes] = {}

    def respond(self, request: Request) -> Answer:
        """Return the answer to a request."""
        if request.parts not in ((), ("metrics",)):
            return NOT_FOUND
        if request.method not in READING:
            return READ_ONLY
        if not request.parts:
            return self._answer(HTML, render)
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
    """Return the encoder of the format that a client accepts, and the format's name."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # raised by the library for a malformed version
        return choose_encoder("")


def service(settings: Settings) -> web_process.Service | None:
    """Return the service that [settings] ask for; None without metrics_listen."""
    if settings.metrics_listen is None:
        return None
    host, port = split_host_port(settings.metrics_listen)
    return web_process.Service(
        "page",
        host,
        lambda state: Site(state).respond,
        _BODY_LIMIT_BYTES,
        port,
        for_people=True,
        name=f"metrics_listen = {settings.metrics_listen}",
    )


def main(options: RoleOptions) -> int:
    """Run the role `page`: 0 when told to end, 1 if it can't work as configured."""
    return web_process.run(service, options)
