"""Images with URLs for engines that take files: in the background, and what is said meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

import pytest

from vac.context.transfers import DownloadFailed
from vac.drivers.fetched import FIRST_PAUSE_SECONDS, REFRESH_SECONDS, FetchedImages

URL = "https://user:secret@example.com/image.sif"


class Fetcher:
    """A download that ends when it is told how. now is its clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ready = threading.Event()
        self.images = FetchedImages(self, self.ready.set, lambda: self.now)

    def __call__(self, url: str) -> Path:
        self.asked.put(url)
        failure = self.answers.get(timeout=60)
        if failure:
            raise DownloadFailed(failure)
        self.path.touch()
        return self.path

    def settle(self) -> None:
        """Wait until no download is in progress."""
        for thread in threading.enumerate():
            if thread.name == "image":
                thread.join(60)


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "copy")


def test_an_image_that_comes_late_is_an_event(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vac.drivers.fetched.FIRST_LOOK_SECONDS", 0.01)
    shown = fetcher.images.prepare(URL) or ""
    assert shown.endswith("example.com/image.sif is being downloaded")
    assert "secret" not in shown
    assert fetcher.images.prepare(URL) == shown
    assert fetcher.images.path(URL) is None
    fetcher.answers.put("")
    assert fetcher.ready.wait(60)
    assert fetcher.images.prepare(URL) is None
    assert fetcher.images.path(URL) == fetcher.path
    fetcher.settle()
    assert fetcher.asked.qsize() == 1, "one download at a time"


def test_an_image_that_is_there_soon_is_known_at_once(fetcher: Fetcher) -> None:
    fetcher.answers.put("")
    assert fetcher.images.prepare(URL) is None
    assert not fetcher.ready.is_set()


def test_a_failure_is_told_without_the_password_and_tried_again(
    fetcher: Fetcher, caplog: pytest.LogCaptureFixture
) -> None:
    fetcher.answers.put("the server answers with status 404")
    fetcher.images.prepare(URL)
    fetcher.settle()
    reason = fetcher.images.prepare(URL) or ""
    assert "example.com/image.sif: the server answers with status 404; next attempt in 30 s" in reason
    assert "secret" not in f"{reason}{caplog.text}"
    assert caplog.record_tuples[0][1] == logging.WARNING
    fetcher.now += FIRST_PAUSE_SECONDS
    fetcher.answers.put("")
    fetcher.images.prepare(URL)
    fetcher.settle()
    assert fetcher.images.prepare(URL) is None


def test_a_copy_serves_while_it_cannot_be_brought_up_to_date(fetcher: Fetcher) -> None:
    fetcher.answers.put("")
    assert fetcher.images.prepare(URL) is None
    fetcher.settle()
    fetcher.now += REFRESH_SECONDS
    fetcher.answers.put("gone")
    assert fetcher.images.prepare(URL) is None
    fetcher.settle()
    assert fetcher.asked.qsize() == 2
    assert fetcher.images.path(URL) == fetcher.path


def test_a_copy_that_somebody_has_removed_is_fetched_again(fetcher: Fetcher) -> None:
    fetcher.answers.put("")
    fetcher.images.prepare(URL)
    fetcher.settle()
    fetcher.path.unlink()
    assert fetcher.images.path(URL) is None
    fetcher.answers.put("")
    assert fetcher.images.prepare(URL) is None
    assert fetcher.images.path(URL) == fetcher.path


def test_without_downloads_that_is_the_reason() -> None:
    reason = FetchedImages(None, lambda: None).prepare(URL) or ""
    assert "images can't be downloaded here; use a path" in reason
    assert "secret" not in reason
