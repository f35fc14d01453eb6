"""Images that machines are made from: got, checked and refreshed in the background, so that nobody waits.

Each image has one thread while something is being done for it. prepare() of the stores answers from memory. For
incident teams, facts about machines and the digests of their image files are kept until they are told.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Generic, NamedTuple, TypeVar

from vac.drivers.base import CreationFailed, EngineUnavailable, Fetch
from vac.host.filesystems import FileStamp, stamp_from
from vac.host.probes import problem_of, sha256_of
from vac.text import without_url_secrets

FIRST_LOOK_SECONDS = 1.0
"""How long prepare() waits for an image that may be there already."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 1800.0
"""Between attempts after a failure; doubled with each further one."""
REFRESH_SECONDS = 600.0
"""How often a server is asked for a newer version of a file."""
MOST_DOUBLINGS = 20
MOST_VERSIONS = 200
"""Versions of image files whose digests are remembered; the oldest are forgotten first."""

_log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Held = TypeVar("Held")


class ImageUnavailable(OSError):
    """The image can't be had now; the text is the reason."""


@dataclass
class Entry(Generic[Held]):
    """State of one image. Only its thread, of which there is one at a time, changes it."""

    shown: str
    doing: str
    """Present work, in words that follow "is"."""
    image: Held | None = None
    working: bool = False
    answered: threading.Event = field(default_factory=threading.Event)
    """Set once it is known whether the image is there, or somebody has been told to wait for it."""
    failure: str = ""
    failures: int = 0
    next_time: float = 0.0


class ImageStore(Generic[Key, Held]):
    """Images by key, of which a subclass says how to get one.

    wake is called, from any thread, when an image has come that somebody was told to wait for, or when another reason
    than before keeps it from coming.
    """

    keeps_old = False
    """True if an image that can't be refreshed may still be used."""
    pause_seconds = (FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)

    def __init__(self, wake: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._wake = wake
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[Key, Entry[Held]] = {}

    def get(self, key: Key, entry: Entry[Held]) -> tuple[Held, float]:
        """Bring the image up to date; return it and for how many seconds it is good.

        It may call found() before, if the image can be used meanwhile. Raises OSError or EngineUnavailable with a
        reason.
        """
        raise NotImplementedError

    def found(self, entry: Entry[Held], image: Held) -> None:
        """Note that the image is there, and wake those who don't wait in missing() any more."""
        late = entry.image is None and entry.answered.is_set()
        entry.image = image
        entry.answered.set()
        if late:
            self._wake()

    def missing(self, key: Key, shown: str, doing: str) -> str | None:
        """Return None if the image is there, else why not yet. Starts what is needed; doing is its first step."""
        with self._lock:
            entry = self._entries.setdefault(key, Entry(shown, doing))
            if not entry.working and self._clock() >= entry.next_time:
                entry.working = True
                threading.Thread(target=self._work, args=(key, entry), name="image", daemon=True).start()
        entry.answered.wait(FIRST_LOOK_SECONDS)
        entry.answered.set()
        if entry.image is not None:
            return None
        if not entry.failure:
            return f"image {shown} is {entry.doing}"
        seconds = max(entry.next_time - self._clock(), 0)
        attempt = f"it is {entry.doing} again" if entry.working else f"next attempt in {seconds:.0f} s"
        return f"image {shown}: {entry.failure}; {attempt}"

    def drop(self, entry: Entry[Held]) -> None:
        """Forget an image that isn't there any more: the next missing() gets it again."""
        with self._lock:
            entry.image, entry.next_time = None, 0.0

    def _work(self, key: Key, entry: Entry[Held]) -> None:
        first_seconds, longest_seconds = self.pause_seconds
        image, failure = None, ""
        try:
            image, seconds = self.get(key, entry)
            entry.failures = 0
        except (OSError, EngineUnavailable) as error:
            entry.failures += isinstance(error, OSError)
            doublings = min(max(entry.failures - 1, 0), MOST_DOUBLINGS)
            seconds = min(first_seconds * 2**doublings, longest_seconds)
            failure = getattr(error, "strerror", None) or str(error)
        except Exception as error:  # noqa: BLE001  a bug must not keep the image from being tried again
            _log.exception("image %s: unexpected error", entry.shown)
            failure, seconds = f"unexpected {type(error).__name__} (see the log)", longest_seconds
        with self._lock:
            entry.next_time = self._clock() + seconds
            entry.working = False
        if image is not None:
            entry.failure = ""
            self.found(entry, image)
        else:
            self._note_failure(entry, failure)
        entry.answered.set()

    def _note_failure(self, entry: Entry[Held], reason: str) -> None:
        if not self.keeps_old:
            entry.image = None
        news, entry.failure = reason != entry.failure, reason
        if news and entry.image is not None:
            _log.info("image %s: cannot be refreshed, so the present one is used: %s", entry.shown, reason)
        elif news:
            _log.warning("image %s: %s", entry.shown, reason)
            if entry.answered.is_set():
                self._wake()


class ImageVersion(NamedTuple):
    """A file as it was at one time."""

    path: str
    stamp: FileStamp

    @property
    def modified(self) -> str:
        """Time of its last change, in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.stamp.mtime_ns // 10**9))

    def is_that_of(self, status: os.stat_result) -> bool:
        """Tell if a file with this status is this version."""
        return stamp_from(status) == self.stamp


def version_of(path: Path) -> ImageVersion | None:
    """Return the present version of the file; None if there is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return ImageVersion(str(path), stamp_from(status)) if stat.S_ISREG(status.st_mode) else None


def read_through(version: ImageVersion) -> str | None:
    """Return the digest of this version of the file, None if it has changed; a child process reads it.

    Raises OSError with a reason.
    """
    stamp, digest = sha256_of(version.path)
    return digest if stamp == version.stamp else None


class _Wanted(NamedTuple):
    source: str
    signing_dn: str | None


class ImageFiles(ImageStore[_Wanted, ImageVersion]):
    """Images that machines boot from as files.

    fetch None: URLs, and images that have to be signed, are refused.
    """

    def __init__(
        self,
        fetch: Fetch | None,
        wake: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(wake, clock)
        self._fetch = fetch

    def prepare(self, root_image: str | None, signing_dn: str | None, files: Path) -> str | None:
        """Return None if a machine can boot from this image now, else why not yet.

        A relative root_image is in files. A file that needs no signature is looked at by path() only.
        """
        if not root_image:
            return "no root_image is configured; use a URL or a path"
        wanted = _wanted(root_image, signing_dn, files)
        remote = "://" in wanted.source
        if not remote and signing_dn is None:
            return None
        shown = without_url_secrets(wanted.source)
        if self._fetch is None:
            return f"{shown}: images can't be downloaded or checked here; use a path without a signature"
        return self.missing(wanted, shown, "being downloaded" if remote else "being checked")

    def get(self, key: _Wanted, entry: Entry[ImageVersion]) -> tuple[ImageVersion, float]:
        """Fetch and check the file; return the very version that was checked.

        With another signer, or none, the same URL has another thread, which may replace the copy at any time.
        """
        assert self._fetch is not None
        path = self._fetch(key.source, key.signing_dn)
        version = version_of(path)
        if key.signing_dn is not None:
            self._fetch(str(path), key.signing_dn)  # from memory, unless it is another file than a moment ago
        if version is None or version_of(path) != version:
            raise ImageUnavailable("the file was replaced while it was checked")
        return version, REFRESH_SECONDS

    def path(self, root_image: str | None, signing_dn: str | None, files: Path) -> Path:
        """Return the image's file. Raises CreationFailed if it isn't ready, or isn't what was checked any more."""
        return self._find(root_image, signing_dn, files, None)[0]

    def held(
        self, root_image: str | None, signing_dn: str | None, files: Path, own_name: Path
    ) -> tuple[Path, Path]:
        """As path(), with the name to open it by: own_name if it was fetched or checked and is on the same file system.

        That names what was checked even when the other has been replaced. The caller removes it.
        """
        return self._find(root_image, signing_dn, files, own_name)

    def _find(
        self, root_image: str | None, signing_dn: str | None, files: Path, own_name: Path | None
    ) -> tuple[Path, Path]:
        problem = self.prepare(root_image, signing_dn, files)
        if problem is not None:
            raise CreationFailed(problem)
        wanted = _wanted(root_image or "", signing_dn, files)
        shown = without_url_secrets(wanted.source)
        hanging = problem_of(wanted.source)
        if hanging is not None:
            raise CreationFailed(f"image {shown} {hanging}")
        entry = self._entries.get(wanted)
        checked = entry.image if entry is not None else None
        path = Path(checked.path if checked is not None else wanted.source)
        name = path if entry is None or own_name is None else _linked(path, own_name)
        try:
            status = name.stat()
        except OSError as error:
            problem = error.strerror
        else:
            problem = None
        if entry is not None and (checked is None or problem or not checked.is_that_of(status)):
            self.drop(entry)
            problem = "its file has been replaced and will be checked again"
        if problem is not None:
            if name == own_name:
                name.unlink()
            raise CreationFailed(f"image {shown}: {problem}")
        return path, name


def _wanted(root_image: str, signing_dn: str | None, files: Path) -> _Wanted:
    return _Wanted(root_image if "://" in root_image else str(files / root_image), signing_dn)


def _linked(path: Path, name: Path) -> Path:
    """Give the file another name and return that; the old one if it can't have another."""
    try:
        os.link(path.resolve(), name)
    except OSError:
        return path
    return name


class ImageFacts:
    """Facts known of machines since their creation, and the SHA-256 of their image files. For any thread.

    Digests are computed in the background, once for each version of a file.
    """

    def __init__(self, compute: Callable[[ImageVersion], str | None] = read_through) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._facts: dict[str, tuple[dict[str, str], ImageVersion | None]] = {}
        self._digests: dict[ImageVersion, str | None] = {}

    def note(self, uuid: str, facts: Mapping[str, str], image: ImageVersion | None) -> None:
        """Keep the facts of a new machine, made of this version of an image file if of one."""
        modified = {} if image is None else {"image_modified": image.modified}
        with self._lock:
            self._facts[uuid] = {**facts, **modified}, image

    def forget(self, uuid: str) -> None:
        """Drop the facts of a machine."""
        with self._lock:
            self._facts.pop(uuid, None)

    def news(self, running: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
        """Return, by uuid, facts of running machines that haven't been returned before."""
        news = {}
        with self._lock:
            for uuid in self._facts.keys() & set(running):
                facts, image = self._facts.pop(uuid)
                digest = self._digest(image) if image is not None else None
                if digest is not None:
                    facts = {**facts, "image_digest": f"sha256:{digest}"}
                elif image is not None:
                    self._facts[uuid] = {}, image
                if facts:
                    news[uuid] = facts
        return news

    def _digest(self, version: ImageVersion) -> str | None:
        """Return the digest in hex; None if it isn't known (yet). The first call has it computed."""
        if version not in self._digests:
            self._digests[version] = None
            while len(self._digests) > MOST_VERSIONS:
                del self._digests[next(iter(self._digests))]
            threading.Thread(target=self._work, args=(version,), name="digest", daemon=True).start()
        return self._digests[version]

    def _work(self, version: ImageVersion) -> None:
        try:
            digest = self._compute(version)
        except OSError as error:
            _log.warning("image %s: cannot compute its digest: %s", version.path, error)
            return
        with self._lock:
            if version in self._digests:
                self._digests[version] = digest
