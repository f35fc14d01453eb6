"""Telling the service manager how things are: the protocol of sd_notify(3) and sd_watchdog_enabled(3)."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from vac.logs import OnChange

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True)
class Notifier:
    """Sends to the service manager's socket, or nowhere if there is none."""

    address: str | None = None
    """Path of a datagram socket; `@NAME` is an abstract one."""
    watchdog_seconds: float | None = None
    """The manager expects a sign of life within this time."""
    _trouble: OnChange = field(default_factory=lambda: OnChange(logging.getLogger(__name__)), compare=False)

    def send(self, *assignments: str) -> None:
        """Send `NAME=value` lines. What can't be sent is logged and lost."""
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            text = f"can't notify the service manager at {self.address}: {error}"
            self._trouble.say(self.address, text, logging.WARNING)
        else:
            self._trouble.clear(self.address)


def from_environment(environ: Mapping[str, str], pid: int) -> Notifier:
    """What the manager has told the process with this number in its environment."""
    address = environ.get("NOTIFY_SOCKET") or None
    microseconds = environ.get("WATCHDOG_USEC", "")
    mine = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
    enabled = mine and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0
    return Notifier(address, int(microseconds) / 1e6 if enabled else None)
