"""A driver that is opened when it is first used, by the thread that uses it, and tried again until that works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from vac.drivers.base import Driver, MachineSpec, Observed, Usage


class LateDriver:
    """Stands for the driver that `opener` opens; every call raises EngineUnavailable as long as that does."""

    def __init__(self, opener: Callable[[], Driver]) -> None:
        self._opener = opener
        self._opened: Driver | None = None
        self._opening = threading.Lock()

    @property
    def driver(self) -> Driver | None:
        """The driver itself, once it has been opened."""
        return self._opened

    def _open(self) -> Driver:
        with self._opening:
            if self._opened is None:
                self._opened = self._opener()
            return self._opened

    def list(self) -> Sequence[Observed]:
        """As Driver."""
        return self._open().list()

    def usage(self) -> Mapping[str, Usage]:
        """As Driver."""
        return self._open().usage()

    def create(self, spec: MachineSpec) -> None:
        """As Driver."""
        self._open().create(spec)

    def stop(self, name: str, uuid: str) -> None:
        """As Driver."""
        self._open().stop(name, uuid)

    def destroy(self, name: str, uuid: str) -> None:
        """As Driver."""
        self._open().destroy(name, uuid)

    def events(self) -> Iterator[str]:
        """As Driver."""
        return self._open().events()

    def close(self) -> None:
        """As Driver; one that was never opened needs no closing."""
        if self._opened is not None:
            self._opened.close()
