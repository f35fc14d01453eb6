"""Images for containers: pulled from registries, or loaded from archives of `docker save`.

Progress comes as the JSON objects of POST /images/create of the Docker Engine API. An archive is a tar archive with
manifest.json (Docker Image Specification 1.2). Engines give an image all the names that its archive says, be they
another's: so the archive is passed on with our own name only.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import posixpath
import re
import stat
import tarfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Callable, NamedTuple, cast

import docker.errors

from vac.background import Rest
from vac.decoding import BadJson, parse
from vac.drivers.base import EngineUnavailable, Fetch
from vac.drivers.docker.docker_api import Client, Connection, explanation, timed_out
from vac.drivers.images import Entry, ImageStore, ImageUnavailable
from vac.host.filesystems import real_image
from vac.host.probes import problem_of
from vac.text import without_url_secrets

SCHEME = "docker://"
ARCHIVES = "vac-archive/"
"""Prefix of the names of loaded archives."""
REST = Rest(success_seconds=6 * 3600.0, first_failure_seconds=60.0, longest_seconds=3600.0)
"""A present image is pulled again in case its tag has moved."""
STALL_SECONDS, LEAST_BYTES = 120.0, 120 * 1024
"""A pull that brings fewer bytes within this time is given up."""
TOTAL_SECONDS = 4 * 3600.0
"""Longest that a pull may take."""
ARCHIVE_LOOK_SECONDS = 60.0
"""Interval at which an archive on this host is checked for having been replaced."""
LARGEST_PART_BYTES = 4 * 1024 * 1024
"""Of an archive: manifest.json, or a header."""
UNREACHABLE = (
    r"dial tcp|no such host|connection refused|connection reset|i/o timeout|unreachable|TLS|x509|"
    r"deadline exceeded|Client\.Timeout|\bEOF\b|server gave HTTP|unexpected status code 5|50[0234] "
)
ABSENT = r"not found|manifest unknown|does not exist|pull access denied|unauthorized|denied"
_PIECE_BYTES = 1024 * 1024
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
_NAMING = frozenset({"manifest.json", "index.json", "oci-layout", "repositories"})
"""Files of an archive that may name its image."""

_log = logging.getLogger(__name__)


class Image(NamedTuple):
    """An image that the engine has."""

    id: str
    digest: str
    """NAME@sha256:… as the registry knows it; "" for an image that comes from none."""
    user: str
    """Its USER, "" if it sets none."""
    entrypoint: bool
    """True if it has an ENTRYPOINT, to which the command is an argument."""
    name: str = ""
    """By which it was found."""


class PullProgress:
    """Progress of one pull. Times are in seconds of any one clock."""

    def __init__(self, now: float) -> None:
        self._deadline = now + TOTAL_SECONDS
        self._window_end = now + STALL_SECONDS
        self._window_bytes = 0
        self._layers: dict[str, tuple[int, int]] = {}
        self._moved_bytes = 0
        self._last: dict[tuple[str, str], int] = {}

    def feed(self, line: Mapping[str, object], now: float) -> None:
        """Take the next line. Raises ImageUnavailable if it tells of an error, or the pull takes too long."""
        if "error" in line:
            raise ImageUnavailable(pull_failure(str(line["error"])))
        layer, status = str(line.get("id", "")), str(line.get("status", ""))
        detail = line.get("progressDetail")
        if isinstance(detail, Mapping) and isinstance(detail.get("current"), int):
            current, total = detail["current"], detail.get("total")
            self._moved_bytes += max(current - self._last.get((layer, status), 0), 0)
            self._last[layer, status] = current
            if status == "Downloading" and isinstance(total, int) and total > 0:
                self._layers[layer] = (min(current, total), total)
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            self._layers[layer] = (self._layers[layer][1], self._layers[layer][1])
            self._moved_bytes += LEAST_BYTES
        self._check(now)

    @property
    def text(self) -> str:
        """Downloaded share of the layers seen so far, for people; "" while there is none."""
        total = sum(total for _, total in self._layers.values())
        if total == 0:
            return ""
        return f"{100 * sum(current for current, _ in self._layers.values()) // total} %"

    def stalled(self) -> ImageUnavailable:
        """Return the failure of a pull without progress."""
        at = f" at {self.text}" if self.text else ""
        return ImageUnavailable(f"the registry stalls: no progress for {STALL_SECONDS:g} s{at}")

    def _check(self, now: float) -> None:
        if now >= self._deadline:
            at = f", at {self.text}" if self.text else ""
            raise ImageUnavailable(f"not complete after {TOTAL_SECONDS:g} s{at}")
        if now >= self._window_end:
            if self._moved_bytes - self._window_bytes < LEAST_BYTES:
                raise self.stalled()
            self._window_end, self._window_bytes = now + STALL_SECONDS, self._moved_bytes


def pull_failure(text: str) -> str:
    """Return an engine's words on a failed pull in one line that starts with their meaning."""
    text = " ".join(text.split())
    if re.search(UNREACHABLE, text):
        return f"the registry can't be reached: {text}"
    if re.search(ABSENT, text):
        return f"the registry has no such image, or not for us: {text}"
    return text


class DockerImages:
    """Images that the engine has or is to have, by image_key()."""

    def __init__(
        self,
        connection: Connection,
        wake: Callable[[], object],
        fetch: Fetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store: ImageStore[Image] = ImageStore(wake, clock, keeps_old=True)
        self._clock = clock
        self._connection = connection
        self._fetch = fetch
        self._superseded: set[str] = set()
        """Ids, and names of loaded archives, of images to be removed."""

    def prepare(self, root_image: str, files: Path) -> str | None:
        """Return None if a container can be made from this image now, else why not yet. Starts what is needed."""
        key, shown = image_key(root_image, files), without_url_secrets(root_image)
        rest = REST if "://" in key else replace(REST, success_seconds=ARCHIVE_LOOK_SECONDS)
        return self._store.missing(key, shown, "being looked for", lambda entry: self._get(key, entry), rest)

    def find(self, client: Client, root_image: str, files: Path) -> Image | None:
        """Return the image as the engine has it now. None if it hasn't: then the next prepare() gets it again."""
        key = image_key(root_image, files)
        present = self._store.held(key)
        image = inspect_image(client, present.name) if present is not None else None
        if image is None:
            self._store.drop(key)
        return image

    def _get(self, key: str, entry: Entry[Image]) -> Image:
        """Pull the image, or load its archive, unless that has been done."""
        try:
            image = self._pull(key, entry) if key.startswith(SCHEME) else self._load(key, entry)
            self._superseded -= {image.name, image.id}
            others = {each.id for other, each in self._store.all_held().items() if other != key}
            self._remove_superseded({image.id, *others})
            return image
        finally:
            self._connection.forget()

    def _inspect(self, name: str) -> Image | None:
        with self._connection.client() as client:
            return inspect_image(client, name)

    def _pull(self, key: str, entry: Entry[Image]) -> Image:
        reference = key[len(SCHEME) :]
        before = self._inspect(reference)
        if before is not None:
            self._store.found(entry, before)
            if "@" in reference:
                return before
        entry.doing = "being pulled"
        entry.answered.set()
        self._pull_now(reference, entry)
        after = self._inspect(reference)
        if after is None:
            raise ImageUnavailable("pulled, but the engine doesn't have it")
        if before is not None and before.id != after.id:
            self._superseded.add(before.id)
        if before is None or before.id != after.id:
            _log.info("image %s: pulled %s", key, after.digest or after.id)
        return after

    def _pull_now(self, reference: str, entry: Entry[Image]) -> None:
        progress = PullProgress(self._clock())
        try:
            with self._connection.stream_client(STALL_SECONDS) as client:
                for line in client.pull_lines(reference):
                    progress.feed(line, self._clock())
                    entry.doing = f"being pulled: {progress.text}" if progress.text else "being pulled"
        except EngineUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, docker.errors.APIError):
                raise ImageUnavailable(pull_failure(explanation(cause))) from error
            if cause is not None and timed_out(cause):
                raise progress.stalled() from error
            raise

    def _load(self, key: str, entry: Entry[Image]) -> Image:
        """Load the archive with this path or URL, unless that has been done."""
        try:
            path = self._archive(key, entry)
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ImageUnavailable("no image archive: no regular file")
            repository = f"{ARCHIVES}{_hash(key)}"
            name = f"{repository}:{_hash(f'{status.st_mtime_ns} {status.st_size}')}"
            image = self._inspect(name)
            if entry.image is None:
                self._supersede(repository, name)
            if image is None:
                entry.doing = "being loaded"
                entry.answered.set()
                with (
                    path.open("rb") as file,
                    self._connection.stream_client(STALL_SECONDS) as client,
                ):
                    for line in client.load_lines(renamed_archive(file, name)):
                        refusal = line.get("error") or line.get("message")
                        if refusal:
                            raise ImageUnavailable(f"no image archive: {refusal}")
                image = self._inspect(name)
        except EngineUnavailable as error:
            if isinstance(error.__cause__, docker.errors.APIError):
                raise ImageUnavailable(f"no image archive: {explanation(error.__cause__)}") from error
            raise
        if image is None:
            raise ImageUnavailable("no image archive: loaded, but the engine doesn't have its image")
        if entry.image is not None and entry.image.name != name:
            self._superseded.add(entry.image.name)
        return image

    def _archive(self, key: str, entry: Entry[Image]) -> Path:
        """Return the archive's file. Raises OSError, ValueError."""
        hanging = problem_of(key)
        if hanging is not None:
            raise ImageUnavailable(hanging)
        if is_url(key):
            entry.doing = "being downloaded"
            return self._fetch(key)[0]
        return Path(real_image(key))

    def _supersede(self, repository: str, name: str) -> None:
        """Replace former contents of this archive, maybe loaded by an earlier process, by name."""
        with self._connection.client() as client:
            loaded = {_plain(tag) for tag in client.tags()}
        self._superseded |= {each for each in loaded if each.startswith(f"{repository}:") and each != name}

    def _remove_superseded(self, used: set[str]) -> None:
        """Remove images that a newer one has replaced, unless a container needs them.

        Removing by id removes all names: so not if the image has a tag, or a machinetype names it by digest.
        """
        for image in tuple(self._superseded):
            with self._connection.client() as client:
                is_id = not image.startswith(ARCHIVES)
                if is_id and (image in used or (client.image(image) or {}).get("RepoTags")):
                    continue
                try:
                    client.remove_image(image)
                except docker.errors.APIError as error:
                    if error.status_code == 409:
                        continue
                self._superseded.discard(image)


def inspect_image(client: Client, reference: str) -> Image | None:
    """Return the image with this name or id, None if the engine doesn't have it."""
    found = client.image(reference)
    if found is None:
        return None
    config = found.get("Config") or {}
    digests = found.get("RepoDigests") or [""]
    repository = re.sub(r"(@.*|:[^/:]*)$", "", reference)
    own = [digest for digest in digests if digest.startswith(f"{repository}@")]
    user, entrypoint = config.get("User") or "", bool(config.get("Entrypoint"))
    return Image(found["Id"], (own or digests)[0], user, entrypoint, reference)


def image_key(root_image: str, files: Path) -> str:
    """Return one name for what is one image: docker:// with its tag, URL, or absolute path."""
    if root_image.startswith(SCHEME):
        reference = root_image[len(SCHEME) :].strip("/")
        tagged = "@" in reference or ":" in reference.rpartition("/")[2]
        return SCHEME + (reference if tagged else f"{reference}:latest")
    return root_image if is_url(root_image) else str(files / root_image)


def is_url(root_image: str) -> bool:
    """Tell if it is an archive to be downloaded."""
    return root_image.startswith(("http://", "https://"))


def renamed_archive(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the archive, uncompressed, with this name for its image in place of all in it. Raises ImageUnavailable.

    Without the file that names the image, which comes last, engines load nothing.
    """
    start = file.read(8)
    file.seek(0)
    opened = next((opener(file) for magic, opener in _COMPRESSED if start.startswith(magic)), file)
    reader = _Reader(cast(BinaryIO, opened))
    manifests: list[bytes] = []
    try:
        with tarfile.TarFile(fileobj=cast("IO[bytes]", reader)) as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # they would be kept, however many there are
                path = posixpath.normpath(entry.name)
                if entry.issparse():
                    raise tarfile.ReadError(f"sparse file {path}")
                if posixpath.basename(path) not in _NAMING:
                    yield from _copy(entry, reader)
                elif path == "manifest.json" and entry.isreg():
                    manifests.append(reader.read(entry.size))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = f"neither a tar archive nor one compressed by gzip, bzip2 or xz: {error}"
        raise ImageUnavailable(f"no image archive: {reason}") from error
    content = _manifest(manifests, name)
    last = tarfile.TarInfo("manifest.json")
    last.size = len(content)
    yield last.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


class _Reader:
    """A file read forward in bounded pieces: tarfile reads headers whole, of whatever size they claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0

    def read(self, size: int) -> bytes:
        if size > LARGEST_PART_BYTES:
            raise tarfile.ReadError(f"a part of {size} bytes is more than {LARGEST_PART_BYTES}")
        found = self._file.read(size)
        self._position += len(found)
        return found

    def pieces(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self.read(min(size, _PIECE_BYTES))
            if not piece:
                raise tarfile.ReadError("it ends early")
            size -= len(piece)
            yield piece

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        for _ in self.pieces(position - self._position):
            pass


def _copy(entry: tarfile.TarInfo, reader: _Reader) -> Iterator[bytes]:
    """Yield a file, directory or symbolic link as it is in the archive; never b"", which would end the call."""
    if entry.isreg() or entry.isdir() or entry.issym():
        entry.size = entry.size if entry.isreg() else 0
        yield entry.tobuf(tarfile.PAX_FORMAT)
        yield from reader.pieces(entry.size)
        if entry.size % tarfile.BLOCKSIZE:
            yield bytes(-entry.size % tarfile.BLOCKSIZE)


def _manifest(found: list[bytes], name: str) -> bytes:
    if len(found) != 1:
        raise ImageUnavailable(
            f"no image archive: {len(found)} manifest.json; `docker save IMAGE` makes one with one"
        )
    try:
        images = parse(found[0], LARGEST_PART_BYTES, as_written=True)
    except BadJson as error:
        raise ImageUnavailable(f"no image archive: its manifest.json: {error}") from error
    count = len(images) if isinstance(images, list) else 0
    if count != 1:
        raise ImageUnavailable(
            f"the archive holds {count} images; `docker save IMAGE` makes one of one image"
        )
    image: Any = images[0]
    if not isinstance(image, dict) or not {"Config", "Layers"} <= image.keys():
        raise ImageUnavailable("no image archive: its manifest.json names no configuration or layers")
    return json.dumps([{"Config": image["Config"], "RepoTags": [name], "Layers": image["Layers"]}]).encode()


def _plain(name: str) -> str:
    """Return an image's name without what engines put in front, each its own."""
    return re.sub(r"^((index\.)?docker\.io/|localhost/)?(library/)?", "", name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
