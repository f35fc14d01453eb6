"""Make a Configuration of files, the table of options and facts about the host; Loader does it each cycle.

A mistake in a machinetype or pipe stops that one alone; only broken files and [settings] stop the factory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vac.config.checks import (
    check_machinetype,
    check_settings,
    check_shares,
    check_state_dir,
    full_names,
    unusable,
)
from vac.config.ini import COMMON, DEFAULT_PATHS, Contents, Problem, Report, Section, read
from vac.config.machinetype import CONTAINER_MODELS, VM_MODELS, Machinetype, VacuumPipe
from vac.config.options import declared
from vac.config.pipe_types import DIRECTORY, FromPipe, PipeCopy, expand, read_copy
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
    check_contents,
    nearest,
    parse_section,
)
from vac.config.settings import Settings
from vac.host.facts import ASSUME_PROCESSORS, HostFacts
from vac.text import quoted

FACTS_SECONDS = 600
"""Interval after which facts about the host are read again."""
_OF_VAC_1 = {
    "factories": "write the names as `factories = …` in [settings]",
    "targetshares": "write `target_share = …` in each [machinetype NAME]",
}
"""Sections of Vac 1, and how to convert them."""

Sections = Mapping[str, Mapping[str, Section]]
"""By kind (settings, machinetype, vacuum_pipe), then by name, which is empty for settings."""


class ConfigurationError(Exception):
    """The configuration can't be used. All problems, and the warnings besides.

    settings are the part of [settings] that is right, with defaults for the rest: not enough to create machines, but to
    go on watching those that exist.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        warnings: Sequence[Problem] = (),
        settings: Settings | None = None,
    ) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        self.settings = settings


@dataclass(frozen=True)
class Configuration:
    """Everything that a site has configured, every default worked out. Mappings are not to be changed."""

    settings: Settings
    machinetypes: Mapping[str, Machinetype]
    """By name, in alphabetical order."""
    pipes: Mapping[str, VacuumPipe]
    """By prefix."""
    unusable: Mapping[str, str]
    """Machinetypes of which no machine can be made as they are configured: the reason in words."""
    warnings: tuple[Problem, ...]
    copies: Mapping[str, PipeCopy] = field(default_factory=dict, compare=False)
    """By prefix, the cache's copy of each pipe's document when this was read."""
    files: tuple[str, ...] = ()
    """The files that it was read from, in order."""
    errors: tuple[Problem, ...] = ()
    """Mistakes in machinetypes and pipes, each of which is stopped by them."""

    @property
    def digest(self) -> str:
        """Text that differs whenever a value in force differs."""
        parts: tuple[Settings | Machinetype | VacuumPipe, ...]
        parts = (self.settings, *self.machinetypes.values(), *self.pipes.values())
        content = json.dumps([dataclasses.asdict(part) for part in parts], default=str)
        return hashlib.sha256(content.encode("ascii")).hexdigest()


def load(paths: Sequence[Path] | None, host: HostFacts) -> Configuration:
    """Read and check everything; paths are files and directories, None the default places.

    Raises ConfigurationError with every problem there is.
    """
    contents = read(paths)
    report, stopped = Report([*contents.problems], [*contents.warnings]), Report()
    if host.problem:
        report.error("environment", "", ASSUME_PROCESSORS, host.problem)
    check_contents(contents, report)
    sections = _sort_out(contents, report, stopped)
    place = ", ".join(contents.files or map(str, DEFAULT_PATHS if paths is None else paths))
    settings, group_problem = _settings(sections["settings"].get(""), contents, place, host, report)
    reasons: dict[str, str] = {}
    local: dict[str, Parsed] = {}
    for name, section in sorted(sections["machinetype"].items()):
        own = Report()
        local[name] = parse_section(f"machinetype {name}", MACHINETYPE, section, contents.common, own)
        _stop(name, own, reasons, stopped)
    pipes, copies, found = _pipes(sections["vacuum_pipe"], contents, local, settings, stopped)
    for name in sorted(local.keys() - found.keys()):
        machinetype = build_machinetype(name, local[name], settings)
        if _fits(machinetype, settings, local[name], pipes, reasons, stopped):
            found[name] = FromPipe(machinetype, local[name])
    machinetypes = {name: found[name].machinetype for name in sorted(found)}
    for name, machinetype in machinetypes.items():
        reason = unusable(machinetype, settings)
        text = reason.text if reason else group_problem if machinetype.machine_model in VM_MODELS else None
        if text is not None and name not in reasons:
            reasons[name] = text
            if machinetype.target_share > 0:
                parsed = found[name].parsed
                stopped.warn(parsed.file, parsed.name, "", f"{text}; until then none is created")
    if any(one.machine_model in CONTAINER_MODELS for one in machinetypes.values()):
        given = sections["settings"].get("", Section({}, place)).values.get("state_dir")
        check_state_dir(settings, (given.file if given else place, "settings", "state_dir"), host, stopped)
    check_shares(machinetypes, sum(pipe.target_share for pipe in pipes.values()), place, stopped)
    warnings = (*report.warnings, *stopped.warnings)
    if report.errors:
        raise ConfigurationError([*report.errors, *stopped.errors], warnings, settings)
    return Configuration(
        settings,
        machinetypes,
        pipes,
        {name: reasons[name] for name in machinetypes if name in reasons},
        warnings,
        copies,
        contents.files,
        tuple(stopped.errors),
    )


def _stop(name: str, own: Report, reasons: dict[str, str], report: Report) -> None:
    """Report what was found in a machinetype; an error makes it unusable."""
    report.errors += own.errors
    report.warnings += own.warnings
    for error in own.errors[:1]:
        reasons.setdefault(name, f"{error.option}: {error.text}")


def _pipes(
    sections: Mapping[str, Section],
    contents: Contents,
    local: Mapping[str, Parsed],
    settings: Settings,
    report: Report,
) -> tuple[dict[str, VacuumPipe], dict[str, PipeCopy], dict[str, FromPipe]]:
    """Return the pipes by prefix, the cache's copies of them, and the machinetypes of those copies by name."""
    parsed: dict[str, Parsed] = {}
    for name, section in sorted(sections.items()):
        own = Report()
        one = parse_section(f"vacuum_pipe {name}", PIPE, section, contents.common, own)
        report.errors += own.errors
        report.warnings += own.warnings
        if not own.errors:  # a wrong option stops the pipe: without it, its types might be less restricted
            parsed[name] = one
    pipes = {name: _pipe(name, one) for name, one in parsed.items()}
    copies = {name: read_copy(settings.state_dir / DIRECTORY, pipe) for name, pipe in pipes.items()}
    found: dict[str, FromPipe] = {}
    for name, copy in copies.items():
        if copy.document is not None:
            document = copy.document
            found.update(expand(pipes[name], document, parsed[name], local, [*sections], settings, report))
        if copy.problem is not None:
            report.warn(parsed[name].file, parsed[name].name, "", copy.problem)
    return pipes, copies, found


def _fits(
    machinetype: Machinetype,
    settings: Settings,
    parsed: Parsed,
    pipes: Mapping[str, VacuumPipe],
    reasons: dict[str, str],
    report: Report,
) -> bool:
    """Check a machinetype of the site's own; False if it is to be left out.

    Below a pipe's prefix it may be meant for an entry that the pipe doesn't have, yet or any more.
    """
    own = Report()
    check_machinetype(machinetype, settings, parsed, own)
    prefixes = [prefix for prefix in pipes if machinetype.name.startswith(f"{prefix}-")]
    if not prefixes:
        _stop(machinetype.name, own, reasons, report)
        return True
    words = f"the machinetype is left out, since pipe {max(prefixes, key=len)} doesn't give it now, and by itself "
    report.warnings += own.warnings
    for error in own.errors:
        report.warn(error.file, error.section, error.option, words + error.text)
    return not own.errors


def _sort_out(contents: Contents, report: Report, stopped: Report) -> Sections:
    """Return the sections that Vac knows; report others. [vmtype NAME] is an older [machinetype NAME]."""
    sections: dict[str, dict[str, Section]] = {"settings": {}, "machinetype": {}, "vacuum_pipe": {}}
    older: dict[str, Section] = {}
    for title, section in contents.sections.items():
        kind, _, name = title.partition(" ")
        file = section.file
        if title == COMMON:
            continue
        if title == "settings":
            sections["settings"][""] = section
        elif kind in _OF_VAC_1:
            report.error(file, title, "", f"is a section of Vac 1: {_OF_VAC_1[kind]}")
        elif kind not in ("machinetype", "vmtype", "vacuum_pipe"):
            titles = {schema.title.partition(" ")[0]: f"[{schema.title}]" for schema in SCHEMAS}
            hint = nearest(kind, titles, titles)
            report.warn(file, title, "", f"is not a section that Vac knows{hint}; it is ignored")
        elif not re.fullmatch("[a-z0-9-]{1,100}", name):
            text = f"{quoted(name)} is not a name of 1 to 100 characters of a-z, 0-9 and -"
            stopped.error(file, title, "", text)
        elif kind == "vmtype":
            report.warn(file, title, "", f"is deprecated; write [machinetype {name}]")
            older[name] = section
        else:
            sections[kind][name] = section
    for name, old in older.items():
        new = sections["machinetype"].get(name, old)
        sections["machinetype"][name] = Section({**old.values, **new.values}, new.file)
    return sections


def _settings(
    section: Section | None, contents: Contents, place: str, host: HostFacts, report: Report
) -> tuple[Settings, str | None]:
    """Return [settings] with its defaults worked out, and why VMs can't have their volume group.

    place is where the section would be. What is missing may be in a file that is broken.
    """
    if section is None and not contents.problems:
        report.error(place, "settings", "", "there is no such section")
    partial = bool(contents.problems) or section is None
    parsed = parse_section(
        "settings", SETTINGS, section or Section({}, place), contents.common, report, partial
    )
    values: dict[str, Any] = dict(parsed.values)
    values["factory_name"] = str(values.get("factory_name", host.name)).lower()
    values["factories"] = full_names((*values.get("factories", ()), "."), values["factory_name"])
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
    group = parsed.values.get("volume_group")
    if group is None or host.volume_group_exists(group):
        return settings, None
    text = f"there is no LVM volume group {quoted(group)}; leave it out to use files"
    report.warn(*parsed.where("volume_group"), text)
    return settings, f"volume_group: {text}"


def _pipe(name: str, parsed: Parsed) -> VacuumPipe:
    own = declared(VacuumPipe)
    return VacuumPipe(
        name=name,
        **{key: value for key, value in parsed.values.items() if key in own},
        overrides={key: value for key, value in parsed.values.items() if key not in own},
        user_data_options=parsed.free[USER_DATA_OPTION],
        user_data_files=parsed.free[USER_DATA_FILE],
    )


class Loader:
    """The last good Configuration, for as long as it says the same."""

    def __init__(self, paths: Sequence[Path] | None, facts: Callable[[], HostFacts]) -> None:
        """paths: as for load(). facts: asks the host, as vac.host.facts.read does."""
        self._paths = paths
        self._facts = facts
        self._host = facts()
        self._host_time: float | None = None
        self._configuration: Configuration | None = None

    @property
    def host(self) -> HostFacts:
        """The host's facts when they were last asked for."""
        return self._host

    def load(self, now: float) -> Configuration:
        """Return the configuration at the time now (Unix seconds), the same object if it says the same as last time.

        All of it is read anew, within 10 ms for a hundred machinetypes. Raises ConfigurationError.
        """
        if self._host_time is None:
            self._host_time = now
        if not 0 <= now - self._host_time < FACTS_SECONDS:
            self._host, self._host_time = self._facts(), now
        before, self._configuration = self._configuration, None
        found = load(self._paths, self._host)
        self._configuration = before if before == found else found
        return self._configuration
