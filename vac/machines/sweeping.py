"""Removal of what has been discarded into tmp/, in the background: machines make it as large and deep as they like."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from vac.machines import files

log = logging.getLogger(__name__)


class TrashCollector:
    """Removes what is discarded; run has that done in the background. What fails is tried again at the next start()."""

    def __init__(self, tmp: Path, run: Callable[[Callable[[], object]], None]) -> None:
        self._tmp = tmp
        self._run = run
        self._lock = threading.Lock()
        self._wanted = False
        self._sweeping = False
        self._complained: set[Path] = set()

    def start(self) -> None:
        """Something has been discarded, or may be removed by now. Doesn't block."""
        if not files.trash(self._tmp):
            return
        with self._lock:
            self._wanted = True
            if self._sweeping:
                return
            self._sweeping = True
        self._run(self._sweep)

    def _sweep(self) -> None:
        while self._more():
            for path in files.trash(self._tmp):
                try:
                    files.remove_tree(path)
                except OSError as error:
                    if path not in self._complained:
                        self._complained.add(path)
                        log.warning("%s can't be removed now: %s", path, error)

    def _more(self) -> bool:
        with self._lock:
            self._wanted, more = False, self._wanted
            self._sweeping = more
            return more
