"""Status messages to VacMon services: unrequested answers, with cookie "0". Failures cost a log line each."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence

from vac.config.values import split_host_port
from vac.vacquery.messages import ANSWER_LIMIT, AnyStatus, message_of, shortened
from vac.vacquery.resolver import Names
from vac.vacquery.signed_json import canonical

log = logging.getLogger(__name__)

COOKIE = "0"


def datagram(status: AnyStatus, now: float) -> bytes | None:
    """Return the message; None if it can't be made to fit into a datagram."""
    message = {**message_of(status), "cookie": COOKIE, "time_sent": int(now)}
    short = shortened(message, ANSWER_LIMIT)
    return None if short is None else canonical(short)


class VacMon:
    """The configured services, and the last problem with each."""

    def __init__(self, hostports: Sequence[str], names: Names) -> None:
        """hostports: HOST:PORT, or [IPV6]:PORT, as vacmon_hostport lists them."""
        self._services = [(hostport, *split_host_port(hostport)) for hostport in hostports]
        self._names = names
        self._problems: dict[str, str] = {}
        names.request(host for _, host, _ in self._services)

    def send(self, statuses: Iterable[AnyStatus], now: float) -> None:
        """Send these to every service with a known address, without waiting."""
        datagrams = [text for text in (datagram(status, now) for status in statuses) if text is not None]
        self._names.request(host for _, host, _ in self._services)
        for hostport, host, port in self._services:
            addresses = self._names.known(host)
            if addresses:
                self._note(hostport, _send(datagrams, addresses[0], port))
            elif not self._names.looking(host):
                self._note(hostport, "its name can't be resolved")

    def _note(self, hostport: str, problem: str | None) -> None:
        before = self._problems.pop(hostport, None)
        if problem is not None:
            self._problems[hostport] = problem
            if problem != before:
                log.warning("VacMon %s gets no status messages: %s", hostport, problem)
        elif before is not None:
            log.info("VacMon %s gets status messages again", hostport)


def _send(datagrams: Iterable[bytes], address: str, port: int) -> str | None:
    """Send them; return the problem, if any."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            for text in datagrams:
                sender.sendto(text, socket.MSG_DONTWAIT, (address, port))
    except OSError as error:
        return str(error)
    return None
