"""What an image archive calls its image, looked at before an engine loads it: engines do whatever it says.

The format is that of `docker save`: a tar archive with manifest.json (Docker Image Specification 1.2), of late also
an OCI image layout with index.json, which some engines prefer. Pure: reads the open file only.

Where the format leaves it open which of several files counts, the archive is refused: engines differ.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from vac.decoding import BadJson
from vac.decoding import parse as parse_json

MOST_ENTRIES = 10_000
MOST_TAGS = 100
LARGEST_BYTES = 4 * 1024 * 1024
"""Of a file that is read whole, and of a header."""
DEEPEST = 32
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class BadArchive(ValueError):
    """It is no archive of one image; the text is the reason."""


@dataclass(frozen=True)
class ImageArchive:
    """The one image of an archive."""

    id: str
    """sha256:HEX of its configuration."""
    tags: tuple[str, ...]
    """What an engine would call it."""


def read_archive(file: BinaryIO) -> ImageArchive:
    """What an archive holds, from its start. Raises BadArchive, OSError."""
    start = file.read(8)
    file.seek(0)
    opened = next((opener(file) for magic, opener in _COMPRESSED if start.startswith(magic)), file)
    try:
        bounded = cast("IO[bytes]", _Bounded(cast(BinaryIO, opened)))
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            return _image(_Files(archive))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        words = "neither a tar archive nor one compressed by gzip, bzip2 or xz"
        raise BadArchive(f"{words}: {error}") from error
    except BadJson as error:
        raise BadArchive(f"its manifest.json or index.json: {error}") from error


class _Bounded:
    """A file of which nothing large is read at once: tarfile reads headers whole, of whatever size they claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_BYTES:
            raise tarfile.ReadError(f"a part of {size} bytes is more than {LARGEST_BYTES}")
        return self._file.read(size)


class _Files:
    """The files of an archive, by name."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._entries: dict[str, list[tarfile.TarInfo]] = {}
        for number, entry in enumerate(archive, start=1):
            if number > MOST_ENTRIES:
                raise BadArchive(f"more than {MOST_ENTRIES} files")
            self._entries.setdefault(posixpath.basename(posixpath.normpath(entry.name)), []).append(entry)
        file = cast("IO[bytes]", archive.fileobj)
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise BadArchive(f"no tar header at byte {archive.offset}")

    def has(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> bytes:
        """A file's content. No other entry may end with its name: through links it could replace this one."""
        found = self._entries.get(posixpath.basename(name), [])
        names = [posixpath.normpath(entry.name) for entry in found]
        if names != [name] or not found[0].isreg() or found[0].issparse():
            where = " and ".join(names[:3]) or "nowhere"
            raise BadArchive(f"{name} has to be one file there; found: {where}")
        if found[0].size > LARGEST_BYTES:
            raise BadArchive(f"{name} has {found[0].size} bytes, more than {LARGEST_BYTES}")
        content = self._archive.extractfile(found[0])
        return content.read() if content is not None else b""


def _image(files: _Files) -> ImageArchive:
    if not files.has("manifest.json"):
        raise BadArchive("it has no manifest.json; `docker save IMAGE` makes an archive that has")
    images = parse_json(files.read("manifest.json"), LARGEST_BYTES, DEEPEST)
    count = len(images) if isinstance(images, list) else 0
    if count != 1:
        raise BadArchive(f"it holds {count} images; `docker save IMAGE` makes one of one image")
    configs = [each for each in _all(images[0], "Config") if isinstance(each, str)]
    if len(configs) != 1:
        raise BadArchive(f"its manifest.json names {len(configs)} configurations, not one")
    identity = f"sha256:{hashlib.sha256(files.read(configs[0])).hexdigest()}"
    tags = [tag for listed in _all(images[0], "RepoTags") for tag in _texts(listed)]
    if files.has("index.json"):
        index = parse_json(files.read("index.json"), LARGEST_BYTES, DEEPEST)
        for manifests in _all(index, "manifests"):
            for manifest in manifests if isinstance(manifests, list) else ():
                for notes in _all(manifest, "annotations"):
                    tags += [tag for name in _NAMES for tag in _all(notes, name) if isinstance(tag, str)]
    if len(tags) > MOST_TAGS:
        raise BadArchive(f"it gives its image {len(tags)} names, more than {MOST_TAGS}")
    return ImageArchive(identity, tuple(dict.fromkeys(_tagged(tag) for tag in tags if tag)))


def _tagged(name: str) -> str:
    """With a tag, so that no engine takes it for the beginning of an id."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _all(found: Any, name: str) -> Iterator[Any]:
    """The values that Go's encoding/json takes for this field: case doesn't matter to it."""
    if isinstance(found, dict):
        yield from (value for key, value in found.items() if key.casefold() == name.casefold())


def _texts(found: Any) -> list[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
