"""Read the configuration's files: INI with the rules of Python 2's parser, for which sites' files were written.

Values are raw (`%` stands for itself), and each keeps its file and line. A broken line is named by file and number and
never quoted, since it may be part of a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PATHS = (Path("/etc/vac.d"), Path("/etc/vac.conf"), Path("/run/vac.conf"))
COMMON = "DEFAULT"
"""The section whose options count in every other section; its case matters."""
LARGEST_BYTES = 1024 * 1024
"""Of one file."""
MOST_BROKEN_LINES = 20
"""Of one file, reported by number."""
_BLANKS = " \t\f\v"
_REMARK = re.compile(r"[#;]|rem(?:\s|$)", re.IGNORECASE)
_HEADER = re.compile(r"\[([^]\n]+)\]")
_OPTION = re.compile(r"([^:=\s][^:=]*)[:=](.*)")


@dataclass(frozen=True)
class Problem:
    """An error or a warning."""

    file: str
    section: str
    option: str
    text: str
    """The value that was found, and what would be right."""

    def __str__(self) -> str:
        where = f"[{self.section}] {self.option}".strip() if self.section else self.option
        return ": ".join(part for part in (self.file, where, self.text) if part)


@dataclass
class Report:
    """Collector of problems, so that people learn all of them at once."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, file: str, section: str, option: str, text: str) -> None:
        """Add an error: it makes the configuration, or the section, unusable."""
        self.errors.append(Problem(file, section, option, text))

    def warn(self, file: str, section: str, option: str, text: str) -> None:
        """Add a warning."""
        self.warnings.append(Problem(file, section, option, text))


@dataclass(frozen=True)
class Value:
    """An option's value as it was written, without comments and surrounding blanks."""

    text: str
    file: str
    line: int = 0


@dataclass
class Section:
    """Everything that the files say under one name."""

    values: dict[str, Value]
    """By lower-cased option name."""
    file: str
    """The last file that has this section."""


@dataclass
class Contents:
    """Merged content of all files, later ones replacing earlier ones."""

    sections: dict[str, Section] = field(default_factory=dict)
    """By section name, lower-cased with single blanks (DEFAULT as it is)."""
    files: tuple[str, ...] = ()
    """The files that were read, in order."""
    report: Report = field(default_factory=Report)
    continuations: list[tuple[str, Value]] = field(default_factory=list)
    """Indented lines that look like a [section] or an option, each with the section it stands in."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Files that can't be read, lines that can't be understood; their other lines are in sections."""
        return tuple(self.report.errors)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Files that are skipped, options that are repeated."""
        return tuple(self.report.warnings)

    @property
    def common(self) -> Mapping[str, Value]:
        """[DEFAULT]'s values, which count in every section that has none of its own."""
        return self.sections[COMMON].values if COMMON in self.sections else {}

    def add(self, file: str, text: str) -> None:
        """Put one file's text over the others."""
        title, option = "", ""
        broken: list[int] = []
        lines: dict[tuple[str, str], list[int]] = {}
        parts: dict[tuple[str, str], list[str]] = {}
        for number, line in _lines(text):
            stripped = line.strip(_BLANKS)
            header = _HEADER.match(stripped)
            if option and line[0] in _BLANKS:
                parts[title, option].append(stripped)
                if header or _OPTION.match(stripped):
                    self.continuations.append((title, Value(stripped, file, number)))
            elif header:
                title, option = _title(header[1]), ""
                self.sections.setdefault(title, Section({}, file)).file = file
            elif not title:
                self.report.error(file, "", f"line {number}", "stands before the first [section]")
                return
            elif match := _OPTION.match(stripped):
                option = match[1].rstrip(_BLANKS).lower()
                parts[title, option] = [own_line(match[2])]
                lines.setdefault((title, option), []).append(number)
            else:
                broken.append(number)
        for number in broken[:MOST_BROKEN_LINES]:
            text = "is neither a [section] nor option = value nor an indented continuation"
            self.report.error(file, "", f"line {number}", text)
        if len(broken) > MOST_BROKEN_LINES:
            self.report.error(file, "", "", f"{len(broken) - MOST_BROKEN_LINES} more lines are neither")
        for (title, option), numbers in lines.items():
            self.sections[title].values[option] = Value("\n".join(parts[title, option]), file, numbers[-1])
            if len(numbers) > 1:
                earlier = "line" if len(numbers) == 2 else f"{len(numbers) - 1} lines, first in"
                text = f"is set in {earlier} {numbers[0]} and again in line {numbers[-1]}, which counts"
                self.report.warn(file, title, option, text)


def _find(paths: Sequence[Path] | None, report: Report) -> list[Path]:
    """Return the files to read, in order: of a directory its *.conf by name. None: the default places.

    The default places may be missing; paths that are named explicitly must exist, and may be pipes.
    """
    found: list[Path] = []
    for path in DEFAULT_PATHS if paths is None else paths:
        try:
            if path.is_dir():
                names = sorted(entry.name for entry in path.iterdir())
                for name in names:
                    if name.endswith(".conf") and _worth_reading(path / name, report):
                        found.append(path / name)
            elif paths is not None or (path.exists() and _worth_reading(path, report)):
                found.append(path)
        except OSError as error:
            _report_unreadable(path, error, report)
    return found


def _worth_reading(path: Path, report: Report) -> bool:
    if path.name.startswith("."):
        if not path.name.startswith(".#"):  # an editor's lock
            report.warn(str(path), "", "", "is skipped, since its name begins with '.'")
        return False
    if not path.is_file():
        kinds = ((path.is_dir(), "a directory"), (path.exists(), "a pipe, socket or device"))
        kind = next((kind for found, kind in kinds if found), "a link to nothing")
        report.warn(str(path), "", "", f"is skipped, since it is {kind} and not a file")
        return False
    return True


def read(paths: Sequence[Path] | None) -> Contents:
    """Read and merge all files. Never raises for what is in them or for what can't be read."""
    report = Report()
    found = _find(paths, report)
    contents = Contents(files=tuple(map(str, found)), report=report)
    for path in found:
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_BYTES + 1)
        except OSError as error:
            _report_unreadable(path, error, report)
            continue
        if len(content) > LARGEST_BYTES:
            report.error(
                str(path), "", "", f"is larger than {LARGEST_BYTES} bytes, which no configuration is"
            )
        else:
            contents.add(str(path), content.decode("utf-8", "surrogateescape"))
    return contents


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that aren't empty or comments, numbered from 1."""
    plain = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(plain.split("\n"), 1):
        if line.strip(_BLANKS) and not _REMARK.match(line):
            yield number, line


def _title(text: str) -> str:
    name = " ".join(text.split())
    return name if name == COMMON else name.lower()


def own_line(text: str) -> str:
    """Return the value on an option's own line: only the first `;` may begin a comment, and only after a blank."""
    value = text.strip(_BLANKS)
    comment = value.find(";")
    if comment > 0 and value[comment - 1] in _BLANKS:
        value = value[:comment].rstrip(_BLANKS)
    return "" if value == '""' else value


def _report_unreadable(path: Path, error: OSError, report: Report) -> None:
    report.error(str(path), "", "", f"can't be read: {error.strerror or error}")
