"""Status messages to VacMon services: unrequested answers, with cookie "0", made and sent in the background."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vac.background import BackgroundWork, Outcome
from vac.config.options import split_host_port
from vac.logs import OnChange
from vac.machines.layout import StateDir
from vac.vacquery.messages import ANSWER_LIMIT, AnyStatus, message_of, shortened
from vac.vacquery.poll import Resolver
from vac.vacquery.signed_json import canonical
from vac.vacquery.snapshot import SnapshotBuilder

log = logging.getLogger(__name__)

COOKIE = "0"


def datagram(status: AnyStatus, now: float) -> bytes | None:
    """Return the message; None if it can't be made to fit into a datagram."""
    message = {**message_of(status), "cookie": COOKIE, "time_sent": int(now)}
    short = shortened(message, ANSWER_LIMIT)
    return None if short is None else canonical(short)


class VacMon:
    """The services of vacmon_hostport, with a log line for each change in what can be sent."""

    def __init__(self, state: StateDir, names: Resolver, clock: Callable[[], float]) -> None:
        self._builder = SnapshotBuilder(state, "vacd-factory")
        self._names = names
        self._clock = clock
        self._changes = OnChange(log)
        self._work: BackgroundWork[None] = BackgroundWork("vacmon", self._note)

    def tell(self, hostports: Sequence[str], directory: Path | None = None) -> None:
        """Send the status of the finished machine with this directory; else those of factory and machinetypes.

        hostports: HOST:PORT, or [IPV6]:PORT. Never blocks.
        """
        if hostports:
            self._work.start(str(directory or ""), lambda: self.send(hostports, self._statuses(directory)))

    def _statuses(self, directory: Path | None) -> list[AnyStatus]:
        """Return the statuses to be sent; none before the factory has reported for the first time."""
        if directory is not None:
            machine = self._builder.finished(directory)
            return [] if machine is None else [machine]
        snapshot = self._builder.build(self._clock())
        return [] if snapshot is None else [snapshot.factory, *snapshot.machinetypes]

    def _note(self, outcome: Outcome[None]) -> None:
        failure = outcome.failure
        self._changes.tell("state", failure and f"VacMon gets no status messages: {failure}")

    def send(self, hostports: Iterable[str], statuses: Iterable[AnyStatus]) -> None:
        """Send these to every service with a known address, without waiting."""
        now = self._clock()
        datagrams = [text for text in (datagram(status, now) for status in statuses) if text is not None]
        for hostport in hostports:
            host, port = split_host_port(hostport)
            self._names.request([host])
            addresses, problem = self._names.known(host), "its name can't be resolved"
            if addresses:
                problem = _send(datagrams, addresses[0], port)
            elif self._names.looking(host):
                continue
            self._changes.tell(hostport, problem and f"VacMon {hostport} gets no status messages: {problem}")


def _send(datagrams: Iterable[bytes], address: str, port: int) -> str:
    """Send them; return the problem, if any."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            for text in datagrams:
                sender.sendto(text, socket.MSG_DONTWAIT, (address, port))
    except OSError as error:
        return str(error)
    return ""
