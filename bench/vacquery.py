"""VacQuery: queries answered per second beside a bare loop that sends the same datagrams, and times of polls."""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from bench.standins import SPACE, LoopbackNames, factory_names, standins
from vac.machines import status as statuses
from vac.machines.layout import StateDir, slot_name
from vac.machines.status import Status, TypeFacts
from vac.vacquery.messages import QUERY_LIMIT, Kind, Query, encode_query
from vac.vacquery.poll import Poll, Resolver, enlarge_buffer
from vac.vacquery.responder import listen
from vac.vacquery.responder import run as run_responder

FACTORY = "bench-1.example.org"
TYPES = 10
SECONDS = 0.7
POLLS = 3
Serve = Callable[[Connection, object], None]


@dataclass(frozen=True)
class Rate:
    """Result of a server's clients."""

    per_second: float
    p50_ms: float
    p99_ms: float
    lost: int


def run() -> None:
    """Print the measurements."""
    print(
        f"VacQuery: complete queries/s, p50/p99 ms; {TYPES} machinetypes; bare: a Python recvfrom/sendto loop "
        "(aim: ours at least a quarter of bare, machinetypes flat from 8 to 256 slots, none lost)"
    )
    for slots in (8, 64, 256):
        with tempfile.TemporaryDirectory(prefix="vac-bench-") as directory:
            root = Path(directory)
            make_state(root, slots)
            for kind in (Kind.MACHINETYPES, Kind.MACHINES):
                _compare(root, slots, kind)
    for loss, aim in ((0.0, "under 20, 100 and 1000"), (0.05, "under 1000, 1000 and 2000")):
        print(f"VacQuery: wall time of a poll, ms: each of three polls (aim: {aim})")
        with standins(TYPES, loss) as port:
            for count in (1, 100, 1000):
                _polls(count, loss, port)


def _compare(root: Path, slots: int, kind: Kind) -> None:
    with serving(_responder, root) as port:
        answers = _collect(port, kind, TYPES if kind is Kind.MACHINETYPES else slots)
        ours = [measure(port, kind, len(answers), clients) for clients in (1, 8)]
    with serving(_bare_loop, answers) as port:
        bare = [measure(port, kind, len(answers), clients) for clients in (1, 8)]
    for clients, our, their in zip((1, 8), ours, bare):
        print(
            f"  {kind.name.lower():12} {slots:3d} slots {clients} clients: {our.per_second:7.0f}/s "
            f"{our.p50_ms:6.2f}/{our.p99_ms:6.2f} ms, lost {our.lost}; bare {their.per_second:7.0f}/s "
            f"{their.p50_ms:6.2f}/{their.p99_ms:6.2f} ms, lost {their.lost}; "
            f"ours/bare {our.per_second / max(their.per_second, 1):.2f}"
        )


def _polls(count: int, loss: float, port: int) -> None:
    results = [
        Poll(Kind.MACHINETYPES, factory_names(count), SPACE, LoopbackNames(), port, 10.0).run()
        for _ in range(POLLS)
    ]
    times = " ".join(f"{result.seconds * 1000:.1f}" for result in results)
    print(
        f"  {count:4d} factories, {loss:.0%} lost: {times}; incomplete {sum(len(r.missing) for r in results)}"
    )


def make_state(root: Path, slots: int) -> None:
    """A state_dir of a factory whose slots all run machines."""
    state = StateDir(root)
    state.prepare()
    root.chmod(0o755)
    created = int(time.time()) - 1000
    types = [TypeFacts(name=f"type-{number}", fqan="/vo.example.org/Role=NULL") for number in range(TYPES)]
    for number in range(slots):
        name, machinetype = slot_name(FACTORY, number), types[number % TYPES].name
        directory = state.machines / f"{created}_{machinetype}_{name}"
        (directory / "jobfeatures").mkdir(parents=True)
        for key, content in {"job_id": name, "allocated_cpu": "1", "hs06_job": "10"}.items():
            (directory / "jobfeatures" / key).write_text(content)
        for part, content in {"started": str(created), "heartbeat": "900.0 90.0"}.items():
            (directory / part).write_text(content)
        state.slot(name).write_text(f"{created} {machinetype} bubblewrap\n")
    statuses.write(
        state,
        Status(
            space=SPACE,
            site="example.org",
            factory=FACTORY,
            factories=(FACTORY,),
            slots=slots,
            total_processors=slots,
            mb_per_processor=2048,
            machinetypes=tuple(types),
        ),
    )


@contextmanager
def serving(serve: Serve, given: object) -> Iterator[int]:
    """Runs a server in a process of its own; gives its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs, given), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _responder(ready: Connection, root: object) -> None:
    assert isinstance(root, Path)
    receiver = listen(0)
    stop, stopped = socket.socketpair()
    port = receiver.getsockname()[1]
    names = Resolver(FACTORY)
    run_responder(StateDir(root), receiver, stopped, names=names, ready=lambda: ready.send(port))
    stop.close()


def _bare_loop(ready: Connection, answers: object) -> None:
    assert isinstance(answers, list)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    enlarge_buffer(server)
    server.bind(("127.0.0.1", 0))
    ready.send(server.getsockname()[1])
    while True:
        _, source = server.recvfrom(QUERY_LIMIT)
        for answer in answers:
            server.sendto(answer, source)


def _collect(port: int, kind: Kind, count: int) -> list[bytes]:
    with _client() as client:
        client.sendto(_query(kind), ("127.0.0.1", port))
        return [client.recv(9000) for _ in range(count)]


def measure(port: int, kind: Kind, count: int, clients: int) -> Rate:
    """Ask for SECONDS, as fast as answers come, from so many processes; count: answers to a query."""
    pipes = [multiprocessing.Pipe() for _ in range(clients)]
    processes = [
        multiprocessing.Process(target=_ask, args=(theirs, port, _query(kind), count)) for _, theirs in pipes
    ]
    for process in processes:
        process.start()
    found = [ours.recv() for ours, _ in pipes]
    for process in processes:
        process.join()
    times = sorted(seconds for seconds_of_one, _ in found for seconds in seconds_of_one)
    if len(times) < 2:
        return Rate(0.0, 0.0, 0.0, sum(lost for _, lost in found))
    cuts = statistics.quantiles(times, n=100)
    return Rate(len(times) / SECONDS, cuts[49] * 1000, cuts[98] * 1000, sum(lost for _, lost in found))


def _ask(report: Connection, port: int, query: bytes, count: int) -> None:
    times: list[float] = []
    lost = 0
    with _client() as client:
        end = time.perf_counter() + SECONDS
        while True:
            start = time.perf_counter()
            if start >= end:
                break
            client.sendto(query, ("127.0.0.1", port))
            try:
                for _ in range(count):
                    client.recv(9000)
            except socket.timeout:
                lost += 1
            else:
                times.append(time.perf_counter() - start)
    report.send((times, lost))


def _client() -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    enlarge_buffer(client)
    client.settimeout(1.0)
    return client


def _query(kind: Kind) -> bytes:
    return encode_query(Query(kind, SPACE, "c" * 64), time.time())


if __name__ == "__main__":
    run()
