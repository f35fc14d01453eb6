"""Work in lines: what is of one line is done in order, each line in a thread of its own as long as there is work."""

from __future__ import annotations

import collections
import threading
from typing import Callable


class Lines:
    """Threads come and go with the work; name is theirs. Work may not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._waiting: dict[str, collections.deque[Callable[[], None]]] = {}
        """By line that has a thread: what is still to be begun."""

    def add(self, line: str, work: Callable[[], None]) -> None:
        """Have this done when all is done that was added to the line before. Doesn't block."""
        with self._lock:
            if line in self._waiting:
                self._waiting[line].append(work)
                return
            self._waiting[line] = collections.deque([work])
        threading.Thread(target=self._work_off, args=(line,), name=self._name, daemon=True).start()

    def _work_off(self, line: str) -> None:
        while True:
            with self._lock:
                if not self._waiting[line]:
                    del self._waiting[line]
                    return
                work = self._waiting[line].popleft()
            work()
