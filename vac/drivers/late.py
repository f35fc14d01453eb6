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
        self._adopted: Mapping[str, str] = {}

    def _open(self) -> Driver:
        with self._opening:
            if self._opened is None:
                self._opened = self._opener()
                self.adopt(self._adopted)
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

    def events(self) -> Iterator[str]:
        """As Driver."""
        return self._open().events()

    def close(self) -> None:
        """As Driver; one that was never opened needs no closing."""
        if self._opened is not None:
            self._opened.close()
