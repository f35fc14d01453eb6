"""How a pull is getting on, from the lines that the engine sends. Pure.

The lines are the JSON objects of POST /images/create of the Docker Engine API: status, id (of a layer),
progressDetail with current and total in bytes, or error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

UNREACHABLE = (
    r"dial tcp|no such host|connection refused|connection reset|i/o timeout|unreachable|TLS|x509|"
    r"deadline exceeded|Client\.Timeout|\bEOF\b|server gave HTTP|unexpected status code 5|50[0234] "
)
ABSENT = r"not found|manifest unknown|does not exist|pull access denied|unauthorized|denied"


class PullError(Exception):
    """The image isn't to be had now; the text is the reason."""


@dataclass(frozen=True)
class PullLimits:
    """How long a pull may take, and how often one is made."""

    stall_seconds: float = 120.0
    """A pull that brings less than least_bytes within this time is given up."""
    least_bytes: int = 120 * 1024
    total_seconds: float = 4 * 3600.0
    refresh_seconds: float = 6 * 3600.0
    """An image that is here is asked for again after this time, in case its tag has moved."""
    first_pause_seconds: float = 60.0
    """After a failure; doubled with each further one."""
    longest_pause_seconds: float = 3600.0

    def pause_seconds(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return float(min(self.first_pause_seconds * 2 ** min(failures - 1, 20), self.longest_pause_seconds))


LIMITS = PullLimits()


class PullProgress:
    """One pull, from its first line to its last. Times are in seconds of any one clock."""

    def __init__(self, limits: PullLimits, now: float) -> None:
        self._limits = limits
        self._deadline = now + limits.total_seconds
        self._window_end = now + limits.stall_seconds
        self._window_bytes = 0
        self._layers: dict[str, tuple[int, int]] = {}
        self._moved_bytes = 0
        self._last: dict[tuple[str, str], int] = {}

    def feed(self, line: Mapping[str, object], now: float) -> None:
        """Take the next line. Raises PullError if it tells of an error, or the pull takes too long."""
        if "error" in line:
            raise PullError(pull_failure(str(line["error"])))
        layer, status = str(line.get("id", "")), str(line.get("status", ""))
        detail = line.get("progressDetail")
        if isinstance(detail, Mapping) and isinstance(detail.get("current"), int):
            current, total = detail["current"], detail.get("total")
            self._moved_bytes += max(current - self._last.get((layer, status), 0), 0)
            self._last[layer, status] = current
            if status == "Downloading" and isinstance(total, int) and total > 0:
                self._layers[layer] = (min(current, total), total)
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            self._layers[layer] = (self._layers[layer][1], self._layers[layer][1])
            self._moved_bytes += self._limits.least_bytes
        self._check(now)

    @property
    def text(self) -> str:
        """For people: the share of the layers seen so far that has been downloaded, "" while none has."""
        total = sum(total for _, total in self._layers.values())
        if total == 0:
            return ""
        return f"{100 * sum(current for current, _ in self._layers.values()) // total} %"

    def stalled(self) -> PullError:
        """The failure that it is when no line has come for stall_seconds."""
        at = f" at {self.text}" if self.text else ""
        return PullError(f"the registry stalls: no progress for {self._limits.stall_seconds:g} s{at}")

    def _check(self, now: float) -> None:
        if now >= self._deadline:
            at = f", at {self.text}" if self.text else ""
            raise PullError(f"not complete after {self._limits.total_seconds:g} s{at}")
        if now >= self._window_end:
            if self._moved_bytes - self._window_bytes < self._limits.least_bytes:
                raise self.stalled()
            self._window_end, self._window_bytes = now + self._limits.stall_seconds, self._moved_bytes


def pull_failure(text: str) -> str:
    """What an engine says about a failed pull, in one line that begins with what it comes to."""
    text = " ".join(text.split())
    if re.search(UNREACHABLE, text):
        return f"the registry can't be reached: {text}"
    if re.search(ABSENT, text):
        return f"the registry has no such image, or not for us: {text}"
    return text
