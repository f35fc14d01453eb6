"""Images come in the background, machines boot only from the very file that was checked, and facts are told once."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vac.drivers import images
from vac.drivers.base import CreationFailed, no_images
from vac.drivers.images import (
    ImageFacts,
    ImageFiles,
    ImageVersion,
    version_of,
)
from vac.host.filesystems import FileStamp, stamp_of

URL = "https://user:secret@example.com/boot.iso"


class Source:
    """fetch(), which waits until it is told what to answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self.judged: Callable[[], object] = lambda: None

    def fetch(self, source: str, signing_dn: str | None = None) -> tuple[Path, FileStamp]:
        self.asked.put((source, signing_dn))
        failure = self.answers.get(timeout=60)
        if failure is not None:
            raise failure
        stamp = stamp_of(self.path)
        self.judged()
        return self.path, stamp


class Site:
    """ImageFiles, the clock by which they go, and their source."""

    def __init__(self, directory: Path) -> None:
        self.now = 0.0
        self.directory = directory
        self.source = Source(directory / "copy")
        self.source.path.write_bytes(b"1")
        self.woken = threading.Event()
        self.images = ImageFiles(self.source.fetch, self.woken.set, lambda: self.now)

    def prepare(self, image: str = URL, dn: str | None = None) -> str | None:
        return self.images.prepare(image, dn, self.directory)

    def path(self, image: str = URL, dn: str | None = None) -> Path:
        return self.images.held(image, dn, self.directory)[0]

    def held(self, own_name: Path, image: str = URL, dn: str | None = None) -> tuple[Path, Path]:
        return self.images.held(image, dn, self.directory, own_name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(images, "FIRST_LOOK_SECONDS", 0.01)
    return Site(tmp_path)


def wait_until(condition: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(6000):
        if condition():
            return
        waiting.wait(0.01)
    pytest.fail("not so after a minute")


def test_nobody_waits_for_a_download_and_its_end_is_told(site: Site) -> None:
    shown = "image https://***@example.com/boot.iso"
    assert (site.prepare() or "").endswith("is being downloaded")
    assert "secret" not in (site.prepare() or ""), shown
    assert site.source.asked.get(timeout=60) == (URL, None)
    site.source.answers.put(None)
    assert site.woken.wait(60)
    assert site.prepare() is None
    assert site.path() == site.source.path
    assert site.source.asked.empty()


def test_an_image_that_is_there_soon_is_known_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FIRST_LOOK_SECONDS", 60.0)
    site.source.answers.put(None)
    assert site.prepare() is None
    assert not site.woken.is_set()


def test_a_copy_that_somebody_has_removed_is_fetched_again(site: Site) -> None:
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)
    site.source.path.unlink()
    with pytest.raises(CreationFailed, match="will be checked again"):
        site.path()
    site.source.path.write_bytes(b"2")
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)
    assert site.path() == site.source.path


def test_failures_are_retried_after_growing_pauses(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for seconds in (30, 60, 120):
        site.prepare()
        site.source.answers.put(OSError("no such host"))
        wait_until(lambda: "next attempt" in (site.prepare() or ""))
        assert (site.prepare() or "").endswith(f": no such host; next attempt in {seconds} s")
        with pytest.raises(CreationFailed, match="no such host"):
            site.path()
        site.now += seconds
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
    assert "secret" not in caplog.text
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)


def test_the_reason_of_a_failure_is_told_during_the_next_attempt(site: Site) -> None:
    site.prepare()
    site.source.answers.put(OSError("no such host"))
    wait_until(lambda: "next attempt" in (site.prepare() or ""))
    site.now += 30
    assert (site.prepare() or "").endswith("boot.iso: no such host; it is being downloaded again")
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)


def test_a_bug_is_a_failure_and_tried_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def buggy(source: str, signing_dn: str | None = None) -> tuple[Path, FileStamp]:
        raise RuntimeError("a bug")

    site.images._fetch, fetch = buggy, site.images._fetch
    wait_until(lambda: "unexpected RuntimeError (see the log); next attempt" in (site.prepare() or ""))
    assert "a bug" in caplog.text
    site.images._fetch = fetch
    site.now += images.REST.longest_seconds
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)


def test_another_reason_of_failure_is_news_and_the_same_is_none(site: Site) -> None:
    for reason, news in (("no such host", True), ("no such host", False), ("status 404", True)):
        before = set(threading.enumerate())
        site.prepare()
        (thread,) = set(threading.enumerate()) - before
        site.woken.clear()
        site.source.asked.get(timeout=60)
        site.source.answers.put(OSError(reason))
        thread.join(60)
        assert site.woken.is_set() is news
        assert reason in (site.prepare() or "")
        site.now += images.REST.longest_seconds


def test_a_copy_serves_while_the_server_is_asked_again(site: Site) -> None:
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)
    site.source.asked.get(timeout=60)
    site.now += images.REST.success_seconds
    assert site.prepare() is None
    assert site.source.asked.get(timeout=60) == (URL, None)
    assert site.path() == site.source.path
    site.source.answers.put(None)


def test_a_file_replaced_since_its_check_is_not_booted(site: Site) -> None:
    site.source.answers.put(None)
    wait_until(lambda: site.prepare(dn="/CN=signer") is None)
    site.source.path.write_bytes(b"another")
    with pytest.raises(CreationFailed, match="has been replaced"):
        site.path(dn="/CN=signer")
    site.source.answers.put(OSError("the signature isn't that of this image"))
    wait_until(lambda: "signature isn't" in (site.prepare(dn="/CN=signer") or ""))


def test_a_copy_that_goes_during_its_refresh_is_fetched_again(site: Site) -> None:
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)
    site.now += images.REST.success_seconds
    assert site.prepare() is None
    for _ in range(2):
        site.source.asked.get(timeout=60)
    site.source.path.write_bytes(b"another")
    with pytest.raises(CreationFailed, match="has been replaced"):
        site.path()
    site.source.answers.put(None)
    for thread in threading.enumerate():
        if thread.name == "image":
            thread.join(60)
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)
    assert site.path() == site.source.path


def test_a_copy_replaced_after_its_check_is_not_taken(site: Site) -> None:
    site.source.judged = lambda: site.source.path.write_bytes(b"another")
    site.source.answers.put(None)
    wait_until(lambda: site.prepare(dn="/CN=signer") is None)
    with pytest.raises(CreationFailed, match="has been replaced"):
        site.path(dn="/CN=signer")
    site.source.answers.put(OSError("not signed"))


def test_an_own_name_stays_that_of_the_checked_file(site: Site) -> None:
    own, other = site.directory / "own", site.directory / "other"
    site.source.answers.put(None)
    wait_until(lambda: site.prepare(dn="/CN=signer") is None)
    assert site.held(own, dn="/CN=signer") == (site.source.path, own)
    other.write_bytes(b"unjudged")
    other.replace(site.source.path)
    assert own.read_bytes() == b"1"
    own.unlink()
    with pytest.raises(CreationFailed, match="has been replaced"):
        site.held(own, dn="/CN=signer")
    assert not own.exists()


def test_an_image_on_another_file_system_keeps_its_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr("os.link", link)
    site.source.answers.put(None)
    wait_until(lambda: site.prepare() is None)
    assert site.held(site.directory / "own") == (site.source.path, site.source.path)


def test_a_local_file_needs_nothing_unless_it_has_to_be_signed(site: Site) -> None:
    (site.directory / "boot.iso").write_bytes(b"1")
    assert site.prepare("boot.iso") is None
    assert site.path("boot.iso") == site.directory / "boot.iso"
    assert site.path(str(site.directory / "boot.iso")) == site.directory / "boot.iso"
    assert site.held(site.directory / "own", "boot.iso")[1] == site.directory / "boot.iso"
    assert site.source.asked.empty()
    assert (site.prepare("boot.iso", "/CN=signer") or "").endswith("is being checked")
    assert site.source.asked.get(timeout=60) == (str(site.directory / "boot.iso"), "/CN=signer")
    site.source.answers.put(OSError("not signed"))


def test_an_image_that_is_not_there(site: Site) -> None:
    with pytest.raises(CreationFailed, match="No such file"):
        site.path("absent.iso")


def test_without_a_way_to_check_what_must_be_signed_is_refused(tmp_path: Path) -> None:
    images = ImageFiles(no_images, lambda: None)
    for image, dn in (("boot.iso", "/CN=x"), (URL, None)):
        reason = ""
        while "attempt" not in reason:
            reason = images.prepare(image, dn, tmp_path) or ""
        assert "can't be downloaded or checked" in reason
        assert "secret" not in reason


IMAGE = ImageVersion("/images/a.sif", FileStamp(1, 2, 3, 1_700_000_000_000_000_000))


class Reader:
    """Computes digests once it may."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[str | OSError | None] = queue.SimpleQueue()
        self.read: list[ImageVersion] = []
        self.facts = ImageFacts(self)

    def __call__(self, path: str, stamp: FileStamp) -> str | None:
        self.read.append(ImageVersion(path, stamp))
        answer = self.answers.get(timeout=60)
        if isinstance(answer, OSError):
            raise answer
        return answer


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name == "digest":
            thread.join(60)


def test_facts_are_known_at_once_and_the_digest_later() -> None:
    reader = Reader()
    facts = reader.facts
    facts.note("u1", {"user": "nobody (65534)"}, IMAGE)
    facts.note("u2", {"user": "nobody (65534)"}, None)
    facts.note("u3", {"user": "nobody (65534)"}, IMAGE)
    assert facts.of("u0") == {}
    first = {"user": "nobody (65534)", "image_modified": "2023-11-14T22:13:20Z"}
    assert (facts.of("u1"), facts.of("u2")) == (first, {"user": "nobody (65534)"})
    facts.forget("u3")
    reader.answers.put("abc")
    settle()
    for _ in range(2):
        assert facts.of("u1") == {**first, "image_digest": "sha256:abc"}
    assert (facts.of("u2"), facts.of("u3")) == ({"user": "nobody (65534)"}, {})
    facts.note("u4", {}, IMAGE)
    assert facts.of("u4")["image_digest"] == "sha256:abc"
    assert reader.read == [IMAGE], "one version of a file is read once"


def test_an_image_that_cannot_be_read_has_no_digest(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    reader.answers.put(OSError("Input/output error"))
    for _ in range(2):
        reader.facts.note("u1", {}, IMAGE)
        assert "image_digest" not in reader.facts.of("u1")
        settle()
    assert "/images/a.sif: cannot compute its digest: Input/output error" in caplog.text
    assert len(reader.read) == 1


def test_another_file_is_another_version(tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert version_of(image) is None
    assert version_of(tmp_path) is None
    image.write_bytes(b"1")
    before = version_of(image)
    image.write_bytes(b"22")
    assert before is not None
    assert version_of(image) != before
