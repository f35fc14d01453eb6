"""The copies of Vacuum Pipes' documents in state_dir/pipescache: what is there, and until when it serves.

PREFIX.pipe is the document as it came, its mtime when that was; it may hold secrets. PREFIX.fetch tells which
URL it came from and how the last attempt failed. Only the factory writes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vac.config.pipe import VacuumPipe
from vac.config.pipe_document import CACHE_SECONDS, LARGEST_BYTES, PipeDocument, parse_pipe
from vac.config.strict_json import Refused

DIRECTORY = "pipescache"
LEAST_CACHE_SECONDS = 5
"""No document is asked for more often, whatever it says."""


@dataclass(frozen=True)
class PipeCopy:
    """What the cache holds of one pipe. Times are Unix seconds."""

    fetched_time: float | None = None
    """When the document came; None: there is none."""
    document: PipeDocument | None = None
    digest: str = ""
    """Of the document's bytes."""
    problem: str | None = None
    """Why the copy can't be used though there is one."""
    failure: str | None = None
    """Why the last attempt to fetch it failed; None: it didn't."""
    failure_time: float = 0.0
    foreign: bool = False
    """There is a copy, but of what another URL has answered."""

    @property
    def cache_seconds(self) -> int:
        """How long the copy serves before the document is asked for again."""
        return max(self.document.cache_seconds if self.document else CACHE_SECONDS, LEAST_CACHE_SECONDS)

    def due(self, now: float) -> bool:
        """Is it time to ask for the document, failures left aside?"""
        return (
            self.document is None
            or self.fetched_time is None
            or not 0 <= now - self.fetched_time < self.cache_seconds
        )

    def trouble(self) -> str | None:
        """In words, what the site should know; None if all is well."""
        serves = "the copy in the cache serves" if self.document else "there is no copy in the cache"
        if self.failure is not None:
            return f"{self.failure}; {serves}"
        return self.problem or (None if self.document else "has not been fetched yet")


def document_path(directory: Path, prefix: str) -> Path:
    """Where the copy of this pipe's document is."""
    return directory / f"{prefix}.pipe"


def record_path(directory: Path, prefix: str) -> Path:
    """Where it is noted what the copy is of."""
    return directory / f"{prefix}.fetch"


def record(url: str, failure: str | None = None, failure_time: float = 0.0) -> bytes:
    """The content of PREFIX.fetch, in which a URL's password doesn't appear."""
    content = {"url_sha256": _url_digest(url), "failure": failure, "failure_time": failure_time}
    return json.dumps(content).encode("ascii")


def read_copy(directory: Path, pipe: VacuumPipe) -> PipeCopy:
    """What there is of this pipe. What is of another URL, or broken, counts as not there."""
    path = document_path(directory, pipe.name)
    try:
        found = _record(directory, pipe.name)
        if found.get("url_sha256") not in (None, _url_digest(pipe.vacuum_pipe_url)):
            return PipeCopy(foreign=True)
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        fetched_time = path.stat().st_mtime
    except FileNotFoundError:
        return _with_failure(PipeCopy(), found)
    except OSError as error:
        return PipeCopy(problem=f"its copy {error.filename or path} can't be read: {error.strerror}")
    try:
        copy = PipeCopy(fetched_time, parse_pipe(content), digest(content))
    except Refused as error:
        copy = PipeCopy(problem=f"its copy {path} can't be used: {error}")
    return _with_failure(copy, found)


def _with_failure(copy: PipeCopy, found: Mapping[str, object]) -> PipeCopy:
    failure, time = found.get("failure"), found.get("failure_time")
    if not isinstance(failure, str) or not isinstance(time, (int, float)) or not abs(time) < math.inf:
        return copy
    return dataclasses.replace(copy, failure=failure, failure_time=float(time))


def _record(directory: Path, prefix: str) -> Mapping[str, object]:
    """What PREFIX.fetch says; nothing if it isn't there or was damaged. OSError if it can't be read."""
    try:
        found = json.loads(record_path(directory, prefix).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _url_digest(url: str) -> str:
    return digest(url.encode("utf-8", "surrogateescape"))


def digest(content: bytes) -> str:
    """What tells one document from another."""
    return hashlib.sha256(content).hexdigest()
