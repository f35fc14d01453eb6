"""Metadata and features for VMs: requests answered per second, alone and beside 100 slow clients.

Clients have loopback addresses, all of which stand for one VM here. Each request has a connection of its own, as those
of images have; then each client keeps its connection.
"""

from __future__ import annotations

import http.client
import multiprocessing
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from vac.clock import Clock
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.lifecycle.phases import PendingCreation
from vac.machines.creation import create
from vac.machines.layout import StateDir, slot_address, slot_name
from vac.roles import bind
from vac.scheduling.model import Create
from vac.web import metadata, mjf
from vac.web.http_server import Answer, Request, Server, adjustments, application, find_guest

FACTORY = "bench-1.example.org"
HOST = "127.0.0.1"
SECONDS = 2.0
CLIENTS = 4
BODY = b"x" * 10_000
SLOW = {
    "nobody else": b"",
    "100 that send half a header": b"GET /latest/user-data HTTP/1.1\r\nHost:",
    "100 that send half a body": b"PUT /joboutputs/x HTTP/1.1\r\nContent-Length: 4000\r\n\r\nabc",
}
KEPT = "nobody else, connections kept"
REQUESTS = (
    ("metadata", "GET", "/latest/user-data"),
    ("metadata", "GET", "/openstack/latest/meta_data.json"),
    ("mjf", "GET", "/machinefeatures/total_cpu"),
    ("mjf", "PUT", "/joboutputs/heartbeat"),
)


def run() -> None:
    """Print the measurements."""
    print(f"Web service for VMs: {CLIENTS} clients, {SECONDS:g} s each: requests/s, p50/p99 ms")
    with tempfile.TemporaryDirectory(prefix="vac-bench-") as directory:
        state = make_state(Path(directory))
        for service, method, path in REQUESTS:
            for what, sent in {**SLOW, KEPT: b""}.items():
                with serving(service, state) as port, slow_clients(port, sent):
                    times = measure(port, method, path, keep=what == KEPT)
                p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
                print(
                    f"  {method} {path:32} beside {what:29}: {len(times) / SECONDS:6.0f}/s "
                    f"{1000 * p50:5.1f}/{1000 * p99:5.1f} ms",
                    flush=True,
                )


def make_state(root: Path) -> StateDir:
    """A state_dir with one VM."""
    state = StateDir(root)
    state.prepare()
    machinetype = Machinetype("bench", machine_model="cernvm4")
    create(
        state,
        PendingCreation(
            Create("bench", 1, 2e9, ""), "4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b", machinetype, 0.0
        ),
        Settings(factory_name=FACTORY),
        name=slot_name(FACTORY, 0),
        now=Clock().moment(),
        user_data=BODY,
        ip=slot_address(0),
    )
    return state


@contextmanager
def serving(service: str, state: StateDir) -> Iterator[int]:
    """Runs the service in a process of its own; gives its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(theirs, service, state.root), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve(ready: Connection, service: str, root: Path) -> None:
    state = StateDir(root)
    respond: Callable[[Request], Answer] = metadata.respond
    if service == "mjf":
        respond = partial(mjf.respond, mjf.prepare(state))
    bound = bind(HOST, 0)
    app = application(respond, lambda _: find_guest(state, FACTORY, slot_address(0)))
    server = Server(app, bound, adjustments(1_000_000), lambda _: True)
    ready.send(bound.getsockname()[1])
    server.serve()


@contextmanager
def slow_clients(port: int, sent: bytes) -> Iterator[None]:
    """A hundred connections from as many addresses on which this was sent and no more comes; none if it is empty."""
    with ExitStack() as stack:
        for number in range(1, 101) if sent else ():
            source = (f"127.0.1.{number}", 0)
            stack.enter_context(socket.create_connection((HOST, port), 60, source)).sendall(sent)
        yield


def measure(port: int, method: str, path: str, *, keep: bool = False) -> list[float]:
    """Return the seconds that each request took. keep: all requests of a client use one connection."""
    times: list[float] = []
    end = time.monotonic() + SECONDS

    def ask(source: str) -> None:
        connection = http.client.HTTPConnection(HOST, port, 60, source_address=(source, 0))
        while (begun := time.monotonic()) < end:
            connection.request(method, path, b"alive" if method == "PUT" else None)
            reply = connection.getresponse()
            reply.read()
            if not keep:
                connection.close()  # the next request opens it again
            if reply.status not in (200, 201):
                raise RuntimeError(f"{method} {path}: {reply.status}")
            times.append(time.monotonic() - begun)
        connection.close()

    threads = [threading.Thread(target=ask, args=(f"127.0.2.{number}",)) for number in range(1, CLIENTS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times
