"""Reads the configuration's files: INI as Python's configparser has it, raw, with the classic's `rem` lines.

Each value keeps the file that it came from. What is broken is told by file and line, never by quoting the
line, since it may be a piece of a secret.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vac.config.errors import Problem

DEFAULT_PATHS = (Path("/etc/vac.d"), Path("/etc/vac.conf"), Path("/run/vac.conf"))
COMMON = "DEFAULT"
"""The section whose options count in every other one, spelled exactly so."""
_REMARK = re.compile(r"^rem(?=\s|$).*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Value:
    """An option's value as it was written (without comments and surrounding blanks)."""

    text: str
    file: str


@dataclass(frozen=True)
class Section:
    """All that files say under one name."""

    values: Mapping[str, Value]
    """By lower-cased option name."""
    file: str
    """The last file that has this section."""


@dataclass(frozen=True)
class Contents:
    """What the files say, later ones replacing earlier ones."""

    sections: Mapping[str, Section]
    """By section name, lower-cased with single blanks (DEFAULT as it is)."""
    files: tuple[str, ...]
    """The files that were read, in order."""
    problems: tuple[Problem, ...]
    """Files that can't be read, lines that can't be understood; their other lines are in sections."""


def find(paths: Sequence[Path] | None) -> tuple[list[Path], list[Problem]]:
    """The files to read, in order: of a directory its *.conf by name. None: the default places.

    The default places may be missing; anything that was named explicitly must be there.
    """
    found: list[Path] = []
    problems: list[Problem] = []
    for path in DEFAULT_PATHS if paths is None else paths:
        try:
            if path.is_dir():
                names = sorted(entry.name for entry in path.iterdir())
                found += [path / name for name in names if name.endswith(".conf") and name[0] != "."]
            elif paths is not None or path.exists():
                found.append(path)
        except OSError as error:
            problems.append(_unreadable(path, error))
    return found, problems


def read(paths: Sequence[Path] | None) -> Contents:
    """Read and merge all files. Never raises for what is in them or for what can't be read."""
    found, problems = find(paths)
    sections: dict[str, Section] = {}
    for path in found:
        try:
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            problems.append(_unreadable(path, error))
            continue
        parser, broken = _parse(text)
        problems += [Problem(str(path), "", f"line {line}", what) for line, what in broken]
        for title in parser.sections():
            name = " ".join(title.split())
            name = name if name == COMMON else name.lower()
            earlier = sections[name].values if name in sections else {}
            values = {key: Value(value, str(path)) for key, value in parser.items(title)}
            sections[name] = Section({**earlier, **values}, str(path))
    return Contents(sections, tuple(str(path) for path in found), tuple(problems))


def _parse(text: str) -> tuple[configparser.RawConfigParser, Iterable[tuple[int, str]]]:
    """The parser with all that could be read of one file; the numbers of lines that could not, and why."""
    parser = _new_parser()
    lines = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        parser.read_string(_REMARK.sub("#", lines))
    except configparser.MissingSectionHeaderError as error:
        return _new_parser(), [(error.lineno, "stands before the first [section]")]
    except configparser.ParsingError as error:
        what = "is neither a [section] nor option = value nor an indented continuation"
        return parser, [(line, what) for line, _ in error.errors]
    return parser, ()


def _new_parser() -> configparser.RawConfigParser:
    return configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",), default_section="\n")


def _unreadable(path: Path, error: OSError) -> Problem:
    return Problem(str(path), "", "", f"can't be read: {error.strerror or error}")
