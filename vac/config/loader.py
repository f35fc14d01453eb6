"""Loads the configuration each cycle, at the price of a few stat calls when nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

from vac.config.files import find
from vac.config.load import Configuration, load
from vac.config.pipe_copies import DIRECTORY, document_path
from vac.host.facts import HostFacts

FACTS_SECONDS = 600
"""Facts about the host are asked for again after so long."""

Signature = tuple[tuple[str, int, int, int, int], ...]
Copies = Mapping[str, Optional[tuple[int, int, int]]]
"""What tells one copy of a pipe's document from another, by prefix; None: there is none."""


class Loader:
    """Keeps the last good Configuration for as long as files and host stay what they were."""

    def __init__(self, paths: Sequence[Path] | None, facts: Callable[[], HostFacts]) -> None:
        """Paths as for load(); facts asks the host, as vac.host.facts.read does."""
        self._paths = paths
        self._facts = facts
        self._host = facts()
        self._host_time: float | None = None
        self._signature: Signature | None = None
        self._copies: Copies = {}
        self._configuration: Configuration | None = None

    @property
    def host(self) -> HostFacts:
        """The host as it was last seen."""
        return self._host

    def load(self, now: float) -> Configuration:
        """The configuration as it is at the time now (Unix seconds), the same object if nothing has changed.

        Raises ConfigurationError, and tries everything anew the next time: what was missing may be
        something else than a file, such as an account.
        """
        same_host = self._refresh_host(now)
        signature, before = _signature(self._paths), self._configuration
        same_files = signature is not None and signature == self._signature
        if before is not None and same_host and same_files and _copies(before) == self._copies:
            return before
        self._configuration = None
        configuration = load(self._paths, self._host)
        self._signature, self._copies = signature, _copies(configuration)
        if before is not None and configuration == before:
            configuration = before
        self._configuration = configuration
        return configuration

    def _refresh_host(self, now: float) -> bool:
        """Ask for the host's facts if it's time to; are they what they were?"""
        if self._host_time is None:
            self._host_time = now
        if 0 <= now - self._host_time < FACTS_SECONDS:
            return True
        before, self._host, self._host_time = self._host, self._facts(), now
        return self._host.same(before)


def _signature(paths: Sequence[Path] | None) -> Signature | None:
    """What changes when a file is written, replaced, added or removed; None if some can't be looked at."""
    found, problems = find(paths)
    if problems:
        return None
    try:
        stats = [(str(path), path.stat()) for path in found]
    except OSError:
        return None
    return tuple(
        (name, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for name, stat in stats
    )


def _copies(configuration: Configuration) -> Copies:
    """What the cache has of the configured pipes. The factory is the only one that changes it."""
    directory = configuration.settings.state_dir / DIRECTORY
    found: dict[str, tuple[int, int, int] | None] = {}
    for prefix in configuration.pipes:
        try:
            stat = document_path(directory, prefix).stat()
            found[prefix] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            found[prefix] = None
    return found
