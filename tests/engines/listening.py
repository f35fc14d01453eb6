"""A driver's events, received in a thread as the factory receives them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

from vac.drivers.base import Driver, EngineUnavailable

PATIENCE_SECONDS = 300.0


@contextlib.contextmanager
def listening(driver: Driver) -> Iterator[queue.SimpleQueue[str | None]]:
    """The driver's events from now on; a text with ! if they fail, None when they have ended. Closes the driver."""
    news: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for name in driver.events():
                news.put(name)
        except EngineUnavailable as error:
            news.put(f"!{error}")
        news.put(None)

    driver.wake = lambda: news.put("")
    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield news
    finally:
        driver.close()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
