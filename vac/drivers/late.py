"""A driver that is opened when it is first used, by the thread that uses it, and tried again until that works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    Driver,
    EngineUnavailable,
    LeftProcess,
    MachineSpec,
    Observed,
    Trace,
    Usage,
)


class LateDriver(Driver):
    """Stands for the driver that `opener` opens; every call raises EngineUnavailable as long as that does."""

    def __init__(self, opener: Callable[[], Driver]) -> None:
        self._opener = opener
        self._opened: Driver | None = None
        self._opening = threading.Lock()
        self._closing = threading.Lock()
        self._closed = threading.Event()
        self._adopted: Mapping[str, str] = {}
        self._followed: Mapping[str, LeftProcess] = {}

    def _open(self) -> Driver:
        with self._opening:
            if self._closed.is_set():
                raise EngineUnavailable("its connection has been closed")
            driver = self._opened
            if driver is None:
                driver = self._opened = self._opener()
                self.adopt(self._adopted)
                self.follow(self._followed)
                if self._closed.is_set():
                    self._close()
            return driver

    def _close(self) -> None:
        """Close what is open, once."""
        with self._closing:
            driver, self._opened = self._opened, None
        if driver is not None:
            driver.close()

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

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """As Driver; one that isn't open yet needs no preparation."""
        driver = self._opened
        return driver.prepare(machinetype, settings, files) if driver is not None else None

    def details(self, uuid: str) -> Mapping[str, str]:
        """As Driver."""
        return self._open().details(uuid)

    def notices(self) -> Sequence[str]:
        """As Driver; one that isn't open yet notices nothing."""
        driver = self._opened
        return driver.notices() if driver is not None else ()

    def traces(self) -> Mapping[str, Trace]:
        """As Driver."""
        return self._open().traces()

    def adopt(self, machines: Mapping[str, str]) -> None:
        """As Driver; what is said before the driver is open is told to it then."""
        self._adopted = machines
        if self._opened is not None:
            self._opened.adopt(machines)

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        """As Driver; what is said before the driver is open is told to it then."""
        self._followed = processes
        if self._opened is not None:
            self._opened.follow(processes)

    def events(self) -> Iterator[str]:
        """As Driver."""
        return self._open().events()

    def close(self) -> None:
        """As Driver. One that is being opened, which may take for ever, is closed afterwards; none is opened then."""
        self._closed.set()
        self._close()
