"""Images for containers: pulled, loaded and refreshed in the background: nobody waits for a registry.

Each image has one thread while something is being done for it. Whoever wants to create a container asks
prepare(), which answers from memory.
"""

from __future__ import annotations

import hashlib
import logging
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Callable

import docker.errors

from vac.config.values import without_password
from vac.drivers.base import EngineUnavailable
from vac.drivers.docker.api import Client, Connection, explanation, timed_out
from vac.drivers.docker.create import Image
from vac.drivers.docker.image_archive import BadArchive, ImageArchive, read_archive
from vac.drivers.docker.progress import LIMITS, PullError, PullLimits, PullProgress, pull_failure
from vac.host.probes import problem_of, real_image

SCHEME = "docker://"
FIRST_LOOK_SECONDS = 1.0
"""How long prepare() waits for the first look whether an image is there."""
ARCHIVE_LOOK_SECONDS = 60.0
"""How often an archive is looked at, in case it has been replaced."""
ARCHIVES = "vac-archive/"
"""What the names of loaded archives begin with."""

_log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """What is known of one image. Only its thread, of which there is one at a time, changes it."""

    working: bool = False
    settled: threading.Event = field(default_factory=threading.Event)
    """Set once it is known whether the image is there."""
    name: str | None = None
    """By which the engine has it; None: it hasn't."""
    pulled_id: str = ""
    """The engine's id of what was last seen by a name from a registry."""
    doing: str = "being looked for"
    failure: str = ""
    failures: int = 0
    next_time: float = 0.0


class ImageKeeper:
    """The images that machinetypes name.

    news is called, from any thread, when an image has come that was waited for, or can't be had. fetch gives the local
    path of the archive with a URL, and raises OSError with a reason if it can't; None: URLs are refused.
    """

    def __init__(
        self,
        connection: Connection,
        news: Callable[[], object],
        fetch: Callable[[str], Path] | None = None,
        limits: PullLimits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._news = news
        self._fetch = fetch
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._superseded: set[str] = set()
        self._loading: set[str] = set()
        """Names that archives have which are being loaded."""
        self._loaded = threading.Condition()

    def prepare(self, root_image: str | None, files: Path) -> str | None:
        """None if a container can be made from this image now, else why not yet. Starts what is needed."""
        if root_image is None:
            return "no root_image is configured; docker://IMAGE or an image archive would be right"
        shown = without_password(root_image)
        if is_url(root_image) and self._fetch is None:
            return f"{shown}: archives of images can't be downloaded here; use docker://IMAGE or a path"
        key = image_key(root_image, files)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            if not entry.working and self._clock() >= entry.next_time:
                entry.working = True
                work = (key, entry)
                threading.Thread(target=self._work, args=work, name="docker-image", daemon=True).start()
        entry.settled.wait(FIRST_LOOK_SECONDS)
        entry.settled.set()
        return self._reason(shown, entry)

    def find(self, client: Client, root_image: str, files: Path) -> Image | None:
        """The image as the engine has it now. None if it hasn't: then the next prepare() gets it again."""
        key = image_key(root_image, files)
        with self._lock:
            entry = self._entries.get(key)
        image = inspect_image(client, entry.name) if entry is not None and entry.name is not None else None
        if image is None:
            with self._lock:
                self._entries.pop(key, None)
        return image

    def _reason(self, shown: str, entry: _Entry) -> str | None:
        if entry.name is not None:
            return None
        if entry.working or not entry.failure:
            return f"image {shown} is {entry.doing}" + (f", after {entry.failure}" if entry.failure else "")
        seconds = max(entry.next_time - self._clock(), 0)
        return f"image {shown}: {entry.failure}; next attempt in {seconds:.0f} s"

    def _work(self, key: str, entry: _Entry) -> None:
        pause_seconds = self._limits.first_pause_seconds
        try:
            get = self._pull if key.startswith(SCHEME) else self._load
            pause_seconds = get(key, entry)
            entry.failure, entry.failures = "", 0
            self._remove_superseded()
        except PullError as error:
            entry.failures += 1
            pause_seconds = self._limits.pause_seconds(entry.failures)
            self._note_failure(key, entry, str(error))
        except EngineUnavailable as error:
            self._note_failure(key, entry, str(error))
        finally:
            with self._lock:
                entry.next_time = self._clock() + pause_seconds
                entry.working = False
            entry.settled.set()
            self._connection.forget()

    def _note_failure(self, key: str, entry: _Entry, reason: str) -> None:
        if reason == entry.failure:
            return
        entry.failure = reason
        if entry.name is not None:
            _log.info("image %s: used as it is, for it can't be refreshed: %s", without_password(key), reason)
            return
        _log.warning("image %s: %s", without_password(key), reason)
        if entry.settled.is_set():
            self._news()

    def _found(self, entry: _Entry, name: str) -> None:
        """The engine has the image. Whoever doesn't wait in prepare() any more has to be told."""
        late = entry.name is None and entry.settled.is_set()
        entry.name = name
        self._superseded.discard(name)
        entry.settled.set()
        if late:
            self._news()

    def _pull(self, key: str, entry: _Entry) -> float:
        """Get the image from its registry; how long, in seconds, it is good for."""
        reference = key[len(SCHEME) :]
        with self._connection.client() as client:
            before = inspect_image(client, reference)
        if before is not None:
            entry.pulled_id = before.id
            self._found(entry, reference)
            if "@" in reference:
                return self._limits.refresh_seconds
        entry.doing = "being pulled"
        entry.settled.set()
        self._pull_now(reference, entry)
        with self._connection.client() as client:
            after = inspect_image(client, reference)
        if after is None:
            raise PullError("pulled, but the engine doesn't have it")
        if before is not None and before.id != after.id:
            self._superseded.add(before.id)
        entry.pulled_id = after.id
        self._superseded.discard(after.id)
        if before is None or before.id != after.id:
            _log.info("image %s: pulled %s", key, after.digest or after.id)
        self._found(entry, reference)
        return self._limits.refresh_seconds

    def _pull_now(self, reference: str, entry: _Entry) -> None:
        progress = PullProgress(self._limits, self._clock())
        try:
            with self._connection.stream_client(self._limits.stall_seconds) as client:
                for line in client.pull_lines(reference):
                    progress.feed(line, self._clock())
                    entry.doing = f"being pulled: {progress.text}" if progress.text else "being pulled"
        except EngineUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, docker.errors.APIError):
                raise PullError(pull_failure(explanation(cause))) from error
            if cause is not None and timed_out(cause):
                raise progress.stalled() from error
            raise

    def _load(self, key: str, entry: _Entry) -> float:
        """Load the archive with this path or URL, unless that has been done; seconds until the next look."""
        try:
            if is_url(key):
                entry.doing = "being downloaded"
            hanging = problem_of(key)
            if hanging is not None:
                raise PullError(hanging)
            path = self._fetch(key) if is_url(key) and self._fetch is not None else Path(real_image(key))
            stamp = path.stat()
            if not stat.S_ISREG(stamp.st_mode):
                raise PullError("no image archive: no regular file")
            name = f"{ARCHIVES}{_hash(key)}:{_hash(f'{stamp.st_mtime_ns} {stamp.st_size}')}"
            repository, _, tag = name.partition(":")
            with self._connection.client() as client:
                present = inspect_image(client, name) is not None
                if entry.name is None:
                    self._supersede(client, repository, name)
            if not present:
                entry.doing = "being loaded"
                entry.settled.set()
                silence_seconds = self._limits.stall_seconds
                with (
                    path.open("rb") as file,
                    self._connection.stream_client(silence_seconds) as client,
                    self._only_its_own(client, file),
                ):
                    client.tag(loaded_image(client.load_lines(file)), repository, tag)
        except OSError as error:
            raise PullError(error.strerror or str(error)) from error
        except ValueError as error:
            raise PullError(str(error)) from error
        except EngineUnavailable as error:
            if isinstance(error.__cause__, docker.errors.APIError):
                raise PullError(f"no image archive: {explanation(error.__cause__)}") from error
            raise
        if entry.name is not None and entry.name != name:
            self._superseded.add(entry.name)
        self._found(entry, name)
        return self._limits.refresh_seconds if is_url(key) else ARCHIVE_LOOK_SECONDS

    def _supersede(self, client: Client, repository: str, name: str) -> None:
        """What was loaded from this archive as it was earlier, maybe by an earlier process, is replaced by name."""
        loaded = map(_plain, client.tags())
        self._superseded.update(each for each in loaded if each.startswith(f"{repository}:") and each != name)

    @contextmanager
    def _only_its_own(self, client: Client, file: BinaryIO) -> Iterator[None]:
        """While this archive is loaded: it takes no name from another image, and afterwards has lost those it brought.

        Raises PullError if it would.
        """
        try:
            archive = read_archive(file)
        except BadArchive as error:
            raise PullError(f"no image archive: {error}") from error
        file.seek(0)
        with self._alone({_plain(tag) for tag in archive.tags}), self._tags_of(client, archive):
            yield

    @contextmanager
    def _alone(self, names: set[str]) -> Iterator[None]:
        """While no other archive is loaded that has one of these names; one that hangs holds up no others."""
        with self._loaded:
            self._loaded.wait_for(lambda: not names & self._loading)
            self._loading |= names
        try:
            yield
        finally:
            with self._loaded:
                self._loading -= names
                self._loaded.notify_all()

    @contextmanager
    def _tags_of(self, client: Client, archive: ImageArchive) -> Iterator[None]:
        """The engine lends its names to the archive. Raises PullError if they are another's."""
        with self._lock:
            wanted = {_plain(key[len(SCHEME) :]) for key in self._entries if key.startswith(SCHEME)}
        fresh = []
        for tag in archive.tags:
            there = inspect_image(client, tag)
            if there is None:
                fresh.append(tag)
            taken = there is not None and there.id.rpartition(":")[2] != archive.id.rpartition(":")[2]
            if taken or _plain(tag).startswith(ARCHIVES) or (there is None and _plain(tag) in wanted):
                other = "another image's" if taken else "that of an image which is got otherwise"
                raise PullError(
                    f"the archive's name {tag!r} is {other}; `docker tag`, then save it by a new one"
                )
        try:
            yield
        finally:
            for tag in fresh:
                with suppress(docker.errors.APIError):
                    client.remove_image(tag, noprune=True)

    def _remove_superseded(self) -> None:
        """Remove images that a newer one has replaced, as far as no container needs them any more.

        What is removed by its id loses all its names: so not if it has a tag, or a machinetype names it by digest.
        """
        for image in tuple(self._superseded):
            with self._connection.client() as client:
                if not image.startswith(ARCHIVES) and (self._is_named(image) or has_tags(client, image)):
                    continue
                try:
                    client.remove_image(image)
                except docker.errors.APIError as error:
                    if error.status_code == 409:
                        continue
                self._superseded.discard(image)

    def _is_named(self, image_id: str) -> bool:
        with self._lock:
            return any(entry.pulled_id == image_id for entry in self._entries.values())


def inspect_image(client: Client, reference: str) -> Image | None:
    """What the engine tells of an image that it has."""
    found = client.image(reference)
    if found is None:
        return None
    config = found.get("Config") or {}
    digests = found.get("RepoDigests") or [""]
    repository = re.sub(r"(@.*|:[^/:]*)$", "", reference)
    own = [digest for digest in digests if digest.startswith(f"{repository}@")]
    return Image(found["Id"], (own or digests)[0], config.get("User") or "", bool(config.get("Entrypoint")))


def has_tags(client: Client, image_id: str) -> bool:
    """Does any tag name this image?"""
    return bool((client.image(image_id) or {}).get("RepoTags"))


def image_key(root_image: str, files: Path) -> str:
    """One name for what is one image: docker:// with its tag, URL, or absolute path."""
    if root_image.startswith(SCHEME):
        reference = root_image[len(SCHEME) :].strip("/")
        tagged = "@" in reference or ":" in reference.rpartition("/")[2]
        return SCHEME + (reference if tagged else f"{reference}:latest")
    return root_image if is_url(root_image) else str(files / root_image)


def is_url(root_image: str) -> bool:
    """Is it an archive to be downloaded?"""
    return root_image.startswith(("http://", "https://"))


def loaded_image(lines: Iterable[Mapping[str, object]]) -> str:
    """The one image that was loaded, from the lines that the engine sends meanwhile."""
    loaded = []
    for line in lines:
        if "error" in line:
            raise PullError(f"no image archive: {line['error']}")
        found = re.match(r"Loaded image(?: ID)?: (\S+)", str(line.get("stream", "")))
        if found:
            loaded.append(found[1])
    if len(loaded) != 1:
        raise PullError(f"the archive holds {len(loaded)} images; `docker save IMAGE` makes one of one image")
    return loaded[0]


def _plain(name: str) -> str:
    """An image's name as people write it: engines put these in front, each its own."""
    return re.sub(r"^((index\.)?docker\.io/|localhost/)?(library/)?", "", name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
