"""A driver that is opened when it is first used, by the thread that uses it, and tried again until that works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    Adopting,
    Detailing,
    Driver,
    EngineUnavailable,
    Following,
    LeftProcess,
    MachineSpec,
    Noticing,
    Observed,
    Preparing,
    Trace,
    Tracing,
    Usage,
)


class LateDriver:
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
        """As Preparing; a driver that isn't one, or isn't open yet, needs no preparation."""
        driver: object = self._opened
        return driver.prepare(machinetype, settings, files) if isinstance(driver, Preparing) else None

    def details(self, uuid: str) -> Mapping[str, str]:
        """As Detailing; a driver that isn't one has none."""
        driver: object = self._open()
        return driver.details(uuid) if isinstance(driver, Detailing) else {}

    def notices(self) -> Sequence[str]:
        """As Noticing; a driver that isn't one, or isn't open yet, notices nothing."""
        driver: object = self._opened
        return driver.notices() if isinstance(driver, Noticing) else ()

    def traces(self) -> Mapping[str, Trace]:
        """As Tracing; a driver that isn't one has none."""
        driver: object = self._open()
        return driver.traces() if isinstance(driver, Tracing) else {}

    def adopt(self, machines: Mapping[str, str]) -> None:
        """As Adopting; what is said before the driver is open is told to it then."""
        self._adopted = machines
        driver: object = self._opened
        if isinstance(driver, Adopting):
            driver.adopt(machines)

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        """As Following; what is said before the driver is open is told to it then."""
        self._followed = processes
        driver: object = self._opened
        if isinstance(driver, Following):
            driver.follow(processes)

    def events(self) -> Iterator[str]:
        """As Driver."""
        return self._open().events()

    def close(self) -> None:
        """As Driver. One that is being opened, which may take for ever, is closed afterwards; none is opened then."""
        self._closed.set()
        self._close()
