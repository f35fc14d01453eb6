"""Images that machines are made from: got, checked and refreshed in the background, so that nobody waits.

For incident teams, facts about machines and the digests of their image files are kept as long as the machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Generic, NamedTuple, TypeVar

from vac.background import BackgroundWork, Outcome, Rest
from vac.drivers.base import CreationFailed, EngineUnavailable, Fetch
from vac.host.filesystems import FileStamp, stamp_from
from vac.host.probes import problem_of, sha256_of
from vac.text import without_url_secrets

FIRST_LOOK_SECONDS = 1.0
"""Longest that missing() waits for an image that may be there already."""
REST = Rest(success_seconds=600.0, first_failure_seconds=30.0, longest_seconds=1800.0)
"""Of image files: how often a server is asked for a newer version, and pauses after failures."""

_log = logging.getLogger(__name__)

Held = TypeVar("Held")


class ImageUnavailable(ValueError):
    """The image can't be had now; the text is the reason. No OSError: HTTP libraries take that for the connection's."""


@dataclass
class Entry(Generic[Held]):
    """State of one image, which only its background work changes."""

    shown: str
    doing: str
    """Present work, in words that follow "is"."""
    image: Held | None = None
    answered: threading.Event = field(default_factory=threading.Event)
    """Set once it is known whether the image is there, or somebody has been told to wait for it."""
    failure: str = ""
    engine_failed: bool = False
    """True if the last attempt failed for the engine, not for the image: then the image has no pause."""


class ImageStore(Generic[Held]):
    """Images by key.

    wake is called, from any thread, when an image has come that somebody was told to wait for, or when another reason
    than before keeps it from coming. keeps_old: an image that can't be refreshed may still be used.
    """

    def __init__(
        self, wake: Callable[[], object], clock: Callable[[], float] = time.monotonic, *, keeps_old: bool
    ) -> None:
        self._wake = wake
        self._keeps_old = keeps_old
        self._entries: dict[str, Entry[Held]] = {}
        self._work: BackgroundWork[Held] = BackgroundWork("image", self._done, at_once=None, clock=clock)

    def missing(
        self, key: str, shown: str, doing: str, get: Callable[[Entry[Held]], Held], rest: Rest
    ) -> str | None:
        """Return None if the image is there, else why not yet. Starts what is needed; doing is its first step.

        get brings the image up to date. It may call found() before, if the image can be used meanwhile. It raises
        OSError, ValueError or EngineUnavailable with a reason.
        """
        entry = self._entries.setdefault(key, Entry(shown, doing))
        self._work.start(key, lambda: self._attempt(entry, get), rest)
        entry.answered.wait(FIRST_LOOK_SECONDS)
        entry.answered.set()
        if entry.image is not None:
            return None
        if not entry.failure:
            return f"image {shown} is {entry.doing}"
        if self._work.busy(key):
            return f"image {shown}: {entry.failure}; it is {entry.doing} again"
        return f"image {shown}: {entry.failure}; next attempt in {self._work.rest_seconds(key):.0f} s"

    def found(self, entry: Entry[Held], image: Held) -> None:
        """Note that the image is there, and wake those who don't wait in missing() any more."""
        late = entry.image is None and entry.answered.is_set()
        entry.image = image
        entry.answered.set()
        if late:
            self._wake()

    def held(self, key: str) -> Held | None:
        """Return the image as it was when it came; None if it hasn't come."""
        entry = self._entries.get(key)
        return None if entry is None else entry.image

    def all_held(self) -> Mapping[str, Held]:
        """Return all images that have come, by key."""
        present = {key: entry.image for key, entry in list(self._entries.items())}
        return {key: image for key, image in present.items() if image is not None}

    def drop(self, key: str) -> None:
        """Forget an image that isn't there any more: the next missing() gets it again."""
        self._entries.pop(key, None)
        self._work.forget(key)

    def _attempt(self, entry: Entry[Held], get: Callable[[Entry[Held]], Held]) -> Held:
        entry.engine_failed = False
        try:
            return get(entry)
        except EngineUnavailable as error:
            entry.engine_failed = True
            raise ImageUnavailable(str(error)) from error

    def _done(self, outcome: Outcome[Held]) -> None:
        entry = self._entries.get(outcome.key)
        if entry is None:  # dropped meanwhile: the next missing() gets it again
            self._work.forget(outcome.key)
            return
        news, entry.failure = outcome.failure not in ("", entry.failure), outcome.failure
        if outcome.value is not None:
            self.found(entry, outcome.value)
            return
        if entry.engine_failed:
            self._work.forget(outcome.key)
        if not self._keeps_old:
            entry.image = None
        if news and entry.image is not None:
            text = "image %s: cannot be refreshed, so the present one is used: %s"
            _log.info(text, entry.shown, outcome.failure)
        elif news:
            _log.warning("image %s: %s", entry.shown, outcome.failure)
            if entry.answered.is_set():
                self._wake()
        entry.answered.set()


class ImageVersion(NamedTuple):
    """A file as it was at one time."""

    path: str
    stamp: FileStamp

    @property
    def modified(self) -> str:
        """Time of its last change, in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.stamp.mtime_ns // 10**9))


def version_of(path: Path) -> ImageVersion | None:
    """Return the present version of the file; None if there is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return ImageVersion(str(path), stamp_from(status)) if stat.S_ISREG(status.st_mode) else None


class ImageFiles:
    """Images that machines boot from as files."""

    def __init__(
        self,
        fetch: Fetch,
        wake: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store: ImageStore[ImageVersion] = ImageStore(wake, clock, keeps_old=False)
        self._fetch = fetch

    def prepare(self, root_image: str | None, signing_dn: str | None, files: Path) -> str | None:
        """Return None if a machine can boot from this image now, else why not yet.

        A relative root_image is in files. A file that needs no signature is looked at by held() only.
        """
        source = _source(root_image, files)
        remote = "://" in source
        if not remote and signing_dn is None:
            return None

        def get(_: Entry[ImageVersion]) -> ImageVersion:
            path, stamp = self._fetch(source, signing_dn)
            return ImageVersion(str(path), stamp)

        doing = "being downloaded" if remote else "being checked"
        return self._store.missing(_key(source, signing_dn), without_url_secrets(source), doing, get, REST)

    def held(
        self, root_image: str | None, signing_dn: str | None, files: Path, own_name: Path | None = None
    ) -> tuple[Path, Path]:
        """Return the image's file, and the name to open it by, which is own_name if the image was fetched or checked
        and is on the same file system: that stays the checked file's when the other is replaced. The caller removes it.

        Raises CreationFailed if the image isn't ready, or isn't what was checked any more.
        """
        problem = self.prepare(root_image, signing_dn, files)
        if problem is not None:
            raise CreationFailed(problem)
        source = _source(root_image, files)
        key, shown = _key(source, signing_dn), without_url_secrets(source)
        hanging = problem_of(source)
        if hanging is not None:
            raise CreationFailed(f"image {shown} {hanging}")
        checked = self._store.held(key)
        must_be_checked = "://" in source or signing_dn is not None
        path = name = Path(checked.path if checked is not None else source)
        if checked is not None and own_name is not None:
            with contextlib.suppress(OSError):
                os.link(path.resolve(), own_name)
                name = own_name
        try:
            status = name.stat()
        except OSError as error:
            problem = error.strerror
        if must_be_checked and (checked is None or problem or stamp_from(status) != checked.stamp):
            self._store.drop(key)
            problem = "its file has been replaced and will be checked again"
        if problem is not None:
            if name == own_name:
                name.unlink()
            raise CreationFailed(f"image {shown}: {problem}")
        return path, name


def _source(root_image: str | None, files: Path) -> str:
    root_image = root_image or ""
    return root_image if "://" in root_image else str(files / root_image)


def _key(source: str, signing_dn: str | None) -> str:
    return source if signing_dn is None else f"{source} {signing_dn}"


class ImageFacts:
    """Facts known of machines since their creation, and the SHA-256 of their image files. For any thread.

    Digests are computed in the background, once for each version of a file.
    """

    def __init__(self, compute: Callable[[str, FileStamp], str | None] = sha256_of) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._facts: dict[str, tuple[dict[str, str], ImageVersion | None]] = {}
        self._digests: dict[ImageVersion, str | None] = {}
        self._work: BackgroundWork[None] = BackgroundWork("digest", at_once=None)

    def note(self, uuid: str, facts: Mapping[str, str], image: ImageVersion | None) -> None:
        """Keep the facts of a new machine, made of this version of an image file if of one."""
        modified = {} if image is None else {"image_modified": image.modified}
        with self._lock:
            self._facts[uuid] = {**facts, **modified}, image

    def forget(self, uuid: str) -> None:
        """Drop the facts of a machine."""
        with self._lock:
            self._facts.pop(uuid, None)

    def of(self, uuid: str) -> Mapping[str, str]:
        """Return the facts of a machine that are known now."""
        with self._lock:
            facts, image = self._facts.get(uuid, ({}, None))
            digest = self._digest(image) if image is not None else None
        return facts if digest is None else {**facts, "image_digest": f"sha256:{digest}"}

    def _digest(self, version: ImageVersion) -> str | None:
        """Return the digest in hex; None if it isn't known (yet). The first call has it computed."""
        if version not in self._digests:
            self._digests[version] = None
            self._work.start(str(version), lambda: self._learn(version))
        return self._digests[version]

    def _learn(self, version: ImageVersion) -> None:
        try:
            digest = self._compute(version.path, version.stamp)
        except OSError as error:
            _log.warning("image %s: cannot compute its digest: %s", version.path, error)
            return
        with self._lock:
            self._digests[version] = digest
