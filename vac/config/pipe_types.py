"""Vacuum Pipes: the copies of their documents in state_dir/pipescache, and the machinetypes that they define.

Precedence of options, highest first: [machinetype PREFIX-suffix], [vacuum_pipe PREFIX], the document, [settings].
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vac.config.checks import check_machinetype, needed_repositories, unusable
from vac.config.ini import Report
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.pipe_document import CACHE_SECONDS, LARGEST_BYTES, Entry, PipeDocument, parse_pipe
from vac.config.sections import USER_DATA_FILE, USER_DATA_OPTION, Parsed, build_machinetype
from vac.config.settings import Settings
from vac.decoding import BadJson, Flaw
from vac.text import without_url_secrets

DIRECTORY = "pipescache"
LEAST_CACHE_SECONDS = 5
"""Lower limit of cache_seconds."""


@dataclass(frozen=True)
class PipeCopy:
    """Cached copy of one pipe's document. Times are Unix seconds."""

    fetched_time: float | None = None
    """Time of the fetch; None: there is no copy."""
    document: PipeDocument | None = None
    digest: str = ""
    """Of the document's bytes."""
    problem: str | None = None
    """Reason why an existing copy can't be used."""
    failure: str | None = None
    """Reason why the last fetch failed; None: it didn't."""
    failure_time: float = 0.0
    foreign: bool = False
    """True if the copy is of another URL's answer."""

    @property
    def cache_seconds(self) -> int:
        """Return how long the copy serves before the document is fetched again."""
        return max(self.document.cache_seconds if self.document else CACHE_SECONDS, LEAST_CACHE_SECONDS)

    def due(self, now: float) -> bool:
        """Return True if it is time to fetch the document, failures left aside."""
        return (
            self.document is None
            or self.fetched_time is None
            or not 0 <= now - self.fetched_time < self.cache_seconds
        )

    def trouble(self) -> str | None:
        """Return what the site should know; None if all is well."""
        serves = "the copy in the cache serves" if self.document else "there is no copy in the cache"
        if self.failure is not None:
            return f"{self.failure}; {serves}"
        return self.problem or (None if self.document else "has not been fetched yet")


def document_path(directory: Path, prefix: str) -> Path:
    """Return the path of the copy of this pipe's document."""
    return directory / f"{prefix}.pipe"


def record_path(directory: Path, prefix: str) -> Path:
    """Return the path of the record of the URL and of the last failure."""
    return directory / f"{prefix}.fetch"


def record(url: str, failure: str | None = None, failure_time: float = 0.0) -> bytes:
    """Return the content of PREFIX.fetch, in which a URL's password doesn't appear."""
    content = {"url_sha256": _url_digest(url), "failure": failure, "failure_time": failure_time}
    return json.dumps(content).encode("ascii")


def read_copy(directory: Path, pipe: VacuumPipe) -> PipeCopy:
    """Return the copy of this pipe. A copy of another URL, or a broken one, counts as missing."""
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
    except BadJson as error:
        copy = PipeCopy(problem=f"its copy {path} can't be used: {error}")
    return _with_failure(copy, found)


def _with_failure(copy: PipeCopy, found: Mapping[str, object]) -> PipeCopy:
    failure, time = found.get("failure"), found.get("failure_time")
    if not isinstance(failure, str) or not isinstance(time, (int, float)) or not abs(time) < math.inf:
        return copy
    return dataclasses.replace(copy, failure=failure, failure_time=float(time))


def _record(directory: Path, prefix: str) -> Mapping[str, object]:
    """Return the content of PREFIX.fetch; nothing if it is missing or damaged. Raises OSError if it can't be read."""
    try:
        found = json.loads(record_path(directory, prefix).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _url_digest(url: str) -> str:
    return digest(url.encode("utf-8", "surrogateescape"))


def digest(content: bytes) -> str:
    """Return a digest that differs for different documents."""
    return hashlib.sha256(content).hexdigest()


LONGEST_NAME = 100
MOST_WARNINGS = 20
"""Of one pipe's document; `vac pipe check` tells all."""
MOST_REPOSITORIES = 20
"""Of all machinetypes of one pipe: a child process checks each repository in every cycle."""
_NOTHING = Parsed("", {}, {USER_DATA_OPTION: {}, USER_DATA_FILE: {}}, {}, "")


@dataclass(frozen=True)
class FromPipe:
    """A machinetype that a pipe defines, with what the site changes in it."""

    machinetype: Machinetype
    parsed: Parsed


def expand(
    pipe: VacuumPipe,
    document: PipeDocument,
    section: Parsed,
    local: Mapping[str, Parsed],
    prefixes: Iterable[str],
    settings: Settings,
    report: Report,
) -> dict[str, FromPipe]:
    """Return the pipe's machinetypes by name; mistakes in the document are warnings.

    section is [vacuum_pipe PREFIX], local the [machinetype NAME]s, prefixes are those of all pipes.
    """
    problems = Report()
    for flaw in document.flaws:
        left_out = flaw.serious and flaw.path.startswith("$.machinetypes[")
        what = "the machinetype is left out: " if left_out else ""
        problems.warn(_source(pipe), f"vacuum_pipe {pipe.name}", flaw.path, what + flaw.text)
    found: dict[str, FromPipe] = {}
    repositories: set[str] = set()
    total = 0.0
    for name, entry in _named(pipe, document, prefixes, problems):
        parsed = _with_site_options(f"machinetype {name}", pipe, entry, section, local.get(name, _NOTHING))
        machinetype, own = _checked(name, pipe, parsed, settings, repositories)
        problems.warnings += own.warnings
        for error in own.errors:
            problems.warn(
                error.file, error.section, error.option, f"the machinetype is left out: {error.text}"
            )
        if not own.errors:
            total += entry.values.get("target_share", 0.0)
            found[name] = FromPipe(machinetype, parsed)
    _report(pipe, problems, report)
    shares = {name: _share(pipe, one, total, local.get(name, _NOTHING)) for name, one in found.items()}
    return {
        name: FromPipe(dataclasses.replace(one.machinetype, target_share=shares[name]), one.parsed)
        for name, one in found.items()
    }


def review(document: PipeDocument) -> Iterator[Flaw]:
    """Yield flaws in the combination of each entry's options, for a site that changes none of them."""
    pipe, title = VacuumPipe("pipe"), "machinetype pipe"
    repositories: set[str] = set()
    for entry in document.entries:
        parsed = _with_site_options(title, pipe, entry, _NOTHING, _NOTHING)
        processors = entry.values.get("min_processors", 1)
        settings = Settings(singularity_user="user", processors_per_superslot=processors)
        machinetype, found = _checked("pipe", pipe, parsed, settings, repositories)
        for problems, serious in ((found.errors, True), (found.warnings, False)):
            yield from (Flaw(f"{entry.path}.{each.option}", each.text, serious) for each in problems)
        reason = unusable(machinetype, settings)
        if reason is not None:
            path = entry.path if reason.site else f"{entry.path}.{reason.option}"
            yield Flaw(path, f"{reason.text}; {reason.remedy}", serious=not reason.site)
    yield from _review_shares(document)


def _review_shares(document: PipeDocument) -> Iterator[Flaw]:
    """Yield a flaw if sites that change nothing would create nothing."""
    if not document.entries and not any(flaw.serious for flaw in document.flaws):
        yield Flaw("$.machinetypes", "there is none: sites create nothing", serious=False)
    elif document.entries and not any(entry.values.get("target_share") for entry in document.entries):
        text = "none has a target_share above 0: sites that set none create nothing"
        yield Flaw("$.machinetypes", text, serious=False)


def _named(
    pipe: VacuumPipe, document: PipeDocument, prefixes: Iterable[str], problems: Report
) -> Iterator[tuple[str, Entry]]:
    """Yield the entries with their machinetypes' names, but those in another pipe's name space."""
    closer = [prefix for prefix in prefixes if prefix.startswith(f"{pipe.name}-")]
    for entry in document.entries:
        name = f"{pipe.name}-{entry.suffix}"
        owner = next((prefix for prefix in closer if name.startswith(f"{prefix}-")), None)
        if owner is not None:
            text = f"the machinetype is left out: {name} belongs to [vacuum_pipe {owner}]"
        elif len(name) > LONGEST_NAME:
            text = f"the machinetype is left out: its name {name} has more than {LONGEST_NAME} characters"
        else:
            yield name, entry
            continue
        problems.warn(_source(pipe), f"vacuum_pipe {pipe.name}", f"{entry.path}.suffix", text)


def _checked(
    name: str, pipe: VacuumPipe, parsed: Parsed, settings: Settings, repositories: set[str]
) -> tuple[Machinetype, Report]:
    """Return a machinetype and its problems; repositories, which the pipe needs, get its own."""
    machinetype = dataclasses.replace(build_machinetype(name, parsed, settings), pipe=pipe.name)
    report = Report()
    check_machinetype(machinetype, settings, parsed, report)
    more = repositories.union(needed_repositories(machinetype))
    if not report.errors and len(more) > MOST_REPOSITORIES:
        text = f"with it the pipe needs {len(more)} CernVM-FS repositories; at most {MOST_REPOSITORIES} are looked at"
        report.error(*parsed.where("cvmfs_repositories"), text)
    elif not report.errors:
        repositories |= more
    return machinetype, report


def _with_site_options(title: str, pipe: VacuumPipe, entry: Entry, section: Parsed, local: Parsed) -> Parsed:
    """Return the entry, with [vacuum_pipe PREFIX] over it and [machinetype PREFIX-suffix] over both."""
    source = _source(pipe)
    files = {**dict.fromkeys(entry.values, source), **section.files, **local.files}
    options: dict[str, str] = {}
    paths: dict[str, str] = {}
    layers = (
        (entry.user_data_options, entry.user_data_files),
        (pipe.user_data_options, pipe.user_data_files),
        (local.free[USER_DATA_OPTION], local.free[USER_DATA_FILE]),
    )
    for texts, names in layers:
        options = {**{key: text for key, text in options.items() if key not in names}, **texts}
        paths = {**paths, **names}
    values = {**entry.values, **pipe.overrides, **local.values}
    return Parsed(title, values, {USER_DATA_OPTION: options, USER_DATA_FILE: paths}, files, source)


def _share(pipe: VacuumPipe, one: FromPipe, total: float, local: Parsed) -> float:
    """Return the type's part of the pipe's share; a share in [machinetype PREFIX-suffix] stands as it is."""
    share = one.machinetype.target_share
    if "target_share" in local.values:
        return share
    return pipe.target_share * (share / total) if total > 0 else 0.0


def _report(pipe: VacuumPipe, problems: Report, report: Report) -> None:
    report.warnings += problems.warnings[:MOST_WARNINGS]
    more = len(problems.warnings) - MOST_WARNINGS
    if more > 0:
        text = f"and {more} more warnings; `vac pipe check` on its URL tells them all"
        report.warn(_source(pipe), f"vacuum_pipe {pipe.name}", "", text)


def _source(pipe: VacuumPipe) -> str:
    return without_url_secrets(pipe.vacuum_pipe_url)
