"""Factories that aren't there: one process answers machinetypes queries for many loopback addresses."""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from multiprocessing.connection import Connection

from vac.vacquery.messages import MachinetypeStatus, message_of
from vac.vacquery.poll import Resolver, enlarge_buffer
from vac.vacquery.signed_json import canonical

SPACE = "bench.example.org"
_IP_PKTINFO = 8
"""From linux/in.h; Python before 3.12 has no name for it."""
_FIRST = int(IPv4Address("127.10.0.1"))


class LoopbackNames(Resolver):
    """Names of stand-ins: factory-N is at the N-th address."""

    def request(self, hosts: Iterable[str]) -> None:
        """All are known."""

    def looking(self, host: str) -> bool:
        """No."""
        return False

    def known(self, host: str) -> tuple[str, ...]:
        """The stand-in's address."""
        return (str(IPv4Address(_FIRST + int(host.partition(".")[0].rpartition("-")[2]))),)


def factory_names(count: int) -> list[str]:
    """Return the names of this many factories."""
    return [f"factory-{number}.example.org" for number in range(count)]


@contextmanager
def standins(types: int, loss: float) -> Iterator[int]:
    """Runs them for any number of factories; gives their port. loss: part of the datagrams lost each way."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(theirs, types, loss), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve(ready: Connection, types: int, loss: float) -> None:
    rng = random.Random(1)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    enlarge_buffer(server)
    server.bind(("0.0.0.0", 0))
    ready.send(server.getsockname()[1])
    texts: dict[bytes, list[bytes]] = {}
    while True:
        query, ancillary, _, source = server.recvmsg(1024, 64)
        if rng.random() < loss:
            continue
        address = ancillary[0][2][8:12]
        if address not in texts:
            texts[address] = _bodies(f"factory-{int.from_bytes(address, 'big') - _FIRST}.example.org", types)
        cookie = json.loads(query)["cookie"].encode()
        for body in texts[address]:
            if rng.random() >= loss:
                server.sendto(b'{"cookie":"%b",%b' % (cookie, body), source)


def _bodies(factory: str, types: int) -> list[bytes]:
    common = {"space": SPACE, "site": "example.org", "factory": factory, "version": "Vac stand-in"}
    names = [f"type-{number:02d}" for number in range(types)]
    return [canonical(_message(common, name, types))[1:] for name in names]


def _message(common: Mapping[str, str], name: str, types: int) -> dict[str, object]:
    status = MachinetypeStatus(
        **common,  # type: ignore[arg-type]
        machinetype=name,
        num_machinetypes=types,
        running_machines=4,
        running_processors=4.0,
        running_hs06=40.0,
        fqan="/vo.example.org/Role=NULL/Capability=NULL",
        shutdown_message="300 No work available",
        shutdown_time=1795227155,
    )
    return {"time_sent": 1795227167, **message_of(status)}
