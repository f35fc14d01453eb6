"""load(): the files, the table of options and what is known of the host become one Configuration."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from vac.config.checks import check_machinetype, check_settings, check_shares, unusable
from vac.config.files import COMMON, DEFAULT_PATHS, Contents, Problem, Report, Section, Value, find, read
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.options import declared
from vac.config.pipes import DIRECTORY, FromPipe, PipeCopy, document_path, expand, read_copy
from vac.config.sections import (
    MACHINEFEATURES_OPTION,
    MACHINETYPE,
    PIPE,
    SCHEMAS,
    SETTINGS,
    USER_DATA_FILE,
    USER_DATA_OPTION,
    Parsed,
    build_machinetype,
    check_common,
    parse_section,
)
from vac.config.settings import Settings
from vac.host.facts import ASSUME_PROCESSORS, HostFacts
from vac.text import quoted

FACTS_SECONDS = 600
"""Facts about the host are asked for again after so long."""

Signature = tuple[tuple[str, int, int, int, int], ...]
Copies = Mapping[str, Optional[tuple[int, int, int]]]
"""What tells one copy of a pipe's document from another, by prefix; None: there is none."""

Sections = Mapping[tuple[str, str], Section]
"""By kind (settings, machinetype, vacuum_pipe) and name, which is empty for settings."""


class ConfigurationError(Exception):
    """The configuration can't be used: every problem, and the warnings that there would be besides.

    settings are what could be understood of [settings], defaults standing in for the rest: not to create
    machines by, but enough to go on watching those that there are. pipes are those that may be fetched meanwhile.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        warnings: Sequence[Problem] = (),
        settings: Settings | None = None,
        pipes: Mapping[str, VacuumPipe] | None = None,
    ) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        self.settings = settings
        self.pipes = {name: pipe for name, pipe in (pipes or {}).items() if pipe.vacuum_pipe_url}


@dataclass(frozen=True)
class Configuration:
    """Everything that a site has configured, every default worked out. Mappings are not to be changed."""

    settings: Settings
    machinetypes: Mapping[str, Machinetype]
    """By name, in alphabetical order."""
    pipes: Mapping[str, VacuumPipe]
    """By prefix."""
    unusable: Mapping[str, str]
    """Machinetypes that no machine can be made of as they are configured, and why, in words."""
    warnings: tuple[Problem, ...]
    digest: str
    """Another one whenever an option's value, written or worked out, is another one."""
    copies: Mapping[str, PipeCopy] = field(default_factory=dict, compare=False)
    """By prefix, what the cache had of each pipe when this was read."""
    files: tuple[str, ...] = ()
    """Those that it was read from, in order."""


def load(paths: Sequence[Path] | None, host: HostFacts) -> Configuration:
    """Read and check everything; paths are files and directories, None the default places.

    Raises ConfigurationError with every problem there is.
    """
    report = Report()
    contents = read(paths)
    report.errors += contents.problems
    report.warnings += contents.warnings
    if host.problem:
        report.error("environment", "", ASSUME_PROCESSORS, host.problem)
    common = contents.sections[COMMON].values if COMMON in contents.sections else {}
    check_common(common, report)
    sections = _sort_out(contents, report)
    settings = _settings(sections, common, _place(contents, paths), bool(contents.problems), host, report)
    sure = not report.errors
    local = {
        name: parse_section(f"machinetype {name}", MACHINETYPE, section, common, report)
        for (kind, name), section in sorted(sections.items())
        if kind == "machinetype"
    }
    pipes, copies, from_pipes = _pipes(sections, common, local, settings, report)
    machinetypes: dict[str, Machinetype] = {}
    reasons: dict[str, str] = {}
    for name in sorted({**local, **from_pipes}):
        if name in from_pipes:
            machinetype, parsed = from_pipes[name].machinetype, from_pipes[name].parsed
        else:
            parsed = local[name]
            machinetype = build_machinetype(name, parsed, settings)
            if not _fits(machinetype, settings, parsed, pipes, report):
                continue
        machinetypes[name] = machinetype
        reason = unusable(machinetype, settings)
        if reason:
            reasons[name] = reason.text
        if reason and machinetype.target_share > 0:
            report.warn(parsed.file, parsed.name, "", f"{reason.text}; until then none is created")
    check_shares(
        machinetypes, sum(pipe.target_share for pipe in pipes.values()), _place(contents, paths), report
    )
    if report.errors:
        raise ConfigurationError(report.errors, report.warnings, settings, pipes if sure else {})
    digest = _digest(sections, common, host, copies)
    warnings = tuple(report.warnings)
    return Configuration(settings, machinetypes, pipes, reasons, warnings, digest, copies, contents.files)


def _pipes(
    sections: Sections,
    common: Mapping[str, Value],
    local: Mapping[str, Parsed],
    settings: Settings,
    report: Report,
) -> tuple[dict[str, VacuumPipe], dict[str, PipeCopy], dict[str, FromPipe]]:
    """The pipes by prefix, what the cache has of them, and the machinetypes of those copies by name."""
    parsed = {
        name: parse_section(f"vacuum_pipe {name}", PIPE, section, common, report)
        for (kind, name), section in sorted(sections.items())
        if kind == "vacuum_pipe"
    }
    pipes = {name: _pipe(name, each) for name, each in parsed.items()}
    copies = {name: read_copy(settings.state_dir / DIRECTORY, pipe) for name, pipe in pipes.items()}
    found: dict[str, FromPipe] = {}
    for name, copy in copies.items():
        if copy.document is not None:
            found.update(
                expand(pipes[name], copy.document, parsed[name], local, list(pipes), settings, report)
            )
        if copy.problem is not None:
            report.warn(parsed[name].file, parsed[name].name, "", copy.problem)
    return pipes, copies, found


def _fits(
    machinetype: Machinetype,
    settings: Settings,
    parsed: Parsed,
    pipes: Mapping[str, VacuumPipe],
    report: Report,
) -> bool:
    """Do the options of this machinetype of the site's own go together? False: it is to be left out.

    Below a pipe's prefix it may be meant for an entry that the pipe doesn't have, yet or any more: only a warning.
    """
    own = Report()
    check_machinetype(machinetype, settings, parsed, own)
    report.warnings += own.warnings
    prefixes = [prefix for prefix in pipes if machinetype.name.startswith(f"{prefix}-")]
    if not prefixes:
        report.errors += own.errors
        return True
    words = f"the machinetype is left out, since pipe {max(prefixes, key=len)} doesn't give it now, and by itself "
    for error in own.errors:
        report.warn(error.file, error.section, error.option, words + error.text)
    return not own.errors


def _place(contents: Contents, paths: Sequence[Path] | None) -> str:
    """Where to look, for messages about what isn't there."""
    return ", ".join(contents.files or [str(path) for path in (DEFAULT_PATHS if paths is None else paths)])


def _sort_out(contents: Contents, report: Report) -> Sections:
    """The sections that Vac knows; strangers are reported. [vmtype NAME] is an older [machinetype NAME]."""
    sections: dict[tuple[str, str], Section] = {}
    older: list[tuple[str, Section]] = []
    for title, section in contents.sections.items():
        kind, _, name = title.partition(" ")
        file = section.file
        if title == COMMON:
            continue
        if title == "settings":
            sections["settings", ""] = section
        elif kind not in ("machinetype", "vmtype", "vacuum_pipe"):
            text = f"is not a section that Vac knows{_nearest_title(kind)}; it is ignored"
            report.warn(file, title, "", text)
        elif not re.fullmatch("[a-z0-9-]{1,100}", name):
            text = f"{quoted(name)} is not a name of 1 to 100 characters of a-z, 0-9 and -"
            report.error(file, title, "", text)
        elif kind == "vmtype":
            report.warn(file, title, "", f"is deprecated; write [machinetype {name}]")
            older.append((name, section))
        else:
            sections[kind, name] = section
    for name, old in older:
        new = sections.get(("machinetype", name), old)
        sections["machinetype", name] = Section({**old.values, **new.values}, new.file)
    return sections


def _nearest_title(kind: str) -> str:
    titles = {schema.title.partition(" ")[0]: f"[{schema.title}]" for schema in SCHEMAS}
    known = difflib.get_close_matches(kind, titles, n=1)
    return f", the nearest is {titles[known[0]]}" if known else ""


def _settings(
    sections: Sections,
    common: Mapping[str, Value],
    place: str,
    partial: bool,
    host: HostFacts,
    report: Report,
) -> Settings:
    """[settings] with its defaults worked out; place is where it would be. Partial as in parse_section()."""
    section = sections.get(("settings", ""))
    if section is None and not partial:
        report.error(place, "settings", "", "there is no such section")
    partial = partial or section is None
    parsed = parse_section("settings", SETTINGS, section or Section({}, place), common, report, partial)
    values: dict[str, Any] = dict(parsed.values)
    values["factory_name"] = str(values.get("factory_name", host.name)).lower()
    values["factories"] = _factories(values.get("factories", ()), values["factory_name"])
    values.setdefault("total_processors", host.processors)
    values["disk_gb_per_processor"] = values.get("disk_gb_per_processor") or None
    values["shutdown_time"] = values.get("shutdown_time") or None
    settings = Settings(
        **values,
        machinefeatures_options=parsed.free[MACHINEFEATURES_OPTION],
        user_data_options=parsed.free[USER_DATA_OPTION],
        user_data_files=parsed.free[USER_DATA_FILE],
        host_processors=host.processors,
    )
    check_settings(settings, parsed, host, report)
    return settings


def _factories(names: Sequence[str], own: str) -> tuple[str, ...]:
    """All factories' full names, each once, in the order of the list; this one is always among them."""
    _, _, domain = own.partition(".")
    full = [
        own if name == "." else name if "." in name or not domain else f"{name}.{domain}" for name in names
    ]
    return tuple(dict.fromkeys([*full, own]))


def _pipe(name: str, parsed: Parsed) -> VacuumPipe:
    own = declared(VacuumPipe)
    return VacuumPipe(
        name=name,
        **{key: value for key, value in parsed.values.items() if key in own},
        overrides={key: value for key, value in parsed.values.items() if key not in own},
        user_data_options=parsed.free[USER_DATA_OPTION],
        user_data_files=parsed.free[USER_DATA_FILE],
    )


def _digest(
    sections: Sections, common: Mapping[str, Value], host: HostFacts, copies: Mapping[str, PipeCopy]
) -> str:
    def texts(values: Mapping[str, Value]) -> list[tuple[str, str]]:
        return sorted((option, value.text) for option, value in values.items())

    each = sorted((kind, name, texts(section.values)) for (kind, name), section in sections.items())
    fetched = [(name, copy.digest) for name, copy in copies.items()]
    content = json.dumps([host.name, host.processors, texts(common), each, fetched])
    return hashlib.sha256(content.encode("ascii")).hexdigest()


class Loader:
    """Keeps the last good Configuration for as long as files and host stay what they were."""

    def __init__(self, paths: Sequence[Path] | None, facts: Callable[[], HostFacts]) -> None:
        """Paths as for load(); facts asks the host, as vac.host.facts.read does."""
        self._paths = paths
        self._facts = facts
        self._host = facts()
        self._host_time: float | None = None
        self._signature: Signature | None = None
        self._copies: Copies = {}
        self._configuration: Configuration | None = None

    @property
    def host(self) -> HostFacts:
        """The host as it was last seen."""
        return self._host

    def load(self, now: float) -> Configuration:
        """The configuration as it is at the time now (Unix seconds), the same object if nothing has changed.

        Raises ConfigurationError, and tries everything anew the next time: what was missing may be
        something else than a file, such as an account.
        """
        same_host = self._refresh_host(now)
        signature, before = _signature(self._paths), self._configuration
        same_files = signature is not None and signature == self._signature
        if before is not None and same_host and same_files and _copies(before) == self._copies:
            return before
        self._configuration = None
        configuration = load(self._paths, self._host)
        self._signature, self._copies = signature, _copies(configuration)
        if before is not None and configuration == before:
            configuration = before
        self._configuration = configuration
        return configuration

    def _refresh_host(self, now: float) -> bool:
        """Ask for the host's facts if it's time to; are they what they were?"""
        if self._host_time is None:
            self._host_time = now
        if 0 <= now - self._host_time < FACTS_SECONDS:
            return True
        before, self._host, self._host_time = self._host, self._facts(), now
        return self._host.same(before)


def _signature(paths: Sequence[Path] | None) -> Signature | None:
    """What changes when a file is written, replaced, added or removed; None if some can't be looked at."""
    report = Report()
    found = find(paths, report)
    if report.errors:
        return None
    try:
        stats = [(str(path), path.stat()) for path in found]
    except OSError:
        return None
    return tuple(
        (name, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for name, stat in stats
    )


def _copies(configuration: Configuration) -> Copies:
    """What the cache has of the configured pipes. The factory is the only one that changes it."""
    directory = configuration.settings.state_dir / DIRECTORY
    found: dict[str, tuple[int, int, int] | None] = {}
    for prefix in configuration.pipes:
        try:
            stat = document_path(directory, prefix).stat()
            found[prefix] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            found[prefix] = None
    return found
