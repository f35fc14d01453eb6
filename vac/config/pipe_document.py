"""A Vacuum Pipe's document: from the bytes of a remote server to values that may be used here. Pure.

A document that isn't valid JSON is refused as a whole. A machinetype with an error is left out, the others stay:
dropping just the wrong option might drop a restriction. A document may name files in the site's own files/
directory of the pipe, but no other local ones, and no option beyond those that are marked `pipe` in the
table of options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from vac.config.machinetype import Machinetype
from vac.config.options import NUMBERS, BadValue, Kind, Option, allowed, declared, matching, parse
from vac.config.sections import USER_DATA_FILE, USER_DATA_OPTION, nearest
from vac.decoding import MOST_FLAWS, BadJson, Flaw, Number, first, kind_of, shown, step
from vac.decoding import parse as parse_json
from vac.text import quoted

LARGEST_BYTES = 1024 * 1024
MOST_TYPES = 100
MOST_CHARACTERS = 1000
"""Of any value but user_data_option_XXX."""
MOST_ENTRIES = 100
"""Of a list."""
CACHE_SECONDS = 3600
LONGEST_CACHE_SECONDS = 7 * 86400
"""Upper limit of cache_seconds, so that a mistake in a document can be corrected."""

ACCEPTED: Mapping[str, Option] = {
    name: option for name, option in declared(Machinetype).items() if option.pipe
}
_SITES_OWN = frozenset(declared(Machinetype)) - frozenset(ACCEPTED)
_OLD_SPELLINGS = {old: name for name, option in ACCEPTED.items() for old in option.old}
_CACHE_SECONDS = Option(Kind.INTEGER, "how long a copy serves", least=0)
_SUFFIX = Option(matching("[a-z0-9-]{1,100}", "a name of a-z, 0-9 and -"), "")
_TEXT = Option(Kind.TEXT, "")

_FILE = r"(?!\.{1,2}$)[A-Za-z0-9_.][A-Za-z0-9_.+@=,-]*"
_PATH = r"/[A-Za-z0-9_.+@=,/-]+"
_WEB = r"https?://[A-Za-z0-9\[_][A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*"
_FILE_WORDS = "the name of a file in files/, without directory"
_NARROWER: Mapping[str, tuple[str, str]] = {
    "user_data": (f"{_WEB}|{_FILE}", f"an http:// or https:// URL, or {_FILE_WORDS}"),
    "root_image": (
        rf"{_WEB}|docker://[A-Za-z0-9][A-Za-z0-9._/:@-]*|/cvmfs/[A-Za-z0-9_.+@=,:/-]+|{_FILE}",
        f"an http://, https:// or docker:// URL, a path below /cvmfs/, or {_FILE_WORDS}",
    ),
    "heartbeat_file": (_FILE, "a file's name without directory"),
    "cvmfs_repositories": (
        "[A-Za-z0-9_][A-Za-z0-9._-]*",
        "a repository's name without '/', such as grid.cern.ch",
    ),
    "tmp_binds": (_PATH, "an absolute path of letters, digits and _.+@=,-/"),
    "container_command": (_PATH, "an absolute path of letters, digits and _.+@=,-/"),
    "image_signing_dn": (
        r"(?!.*\)[*+?])(?!(?:[^*+?|]*[*+?|]){4})(?!.*(?:\[\[|\\[0-9]))[^{]{1,200}",
        "a short regular expression with at most three of *+?|, no *+? after a ')', no {, [[ and \\1",
    ),
}
"""Narrower patterns for values of pipes, with words. A regular expression must not take for ever."""
_PARENT = re.compile(r"(^|/)\.\.(/|$)")


@dataclass(frozen=True)
class Entry:
    """One machinetype of a document."""

    suffix: str
    path: str
    """JSON path of the entry."""
    values: Mapping[str, Any]
    """By option name, of the types that Machinetype's fields have; only what is set."""
    user_data_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    user_data_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PipeDocument:
    """Usable part of a document."""

    cache_seconds: int
    entries: tuple[Entry, ...]
    flaws: tuple[Flaw, ...]
    """Reasons for missing entries, and ignored parts; at most MOST_FLAWS."""


def parse_pipe(content: bytes) -> PipeDocument:
    """Return the document of these bytes, a pipe's answer. Raises BadJson, nothing else, whatever they are."""
    tree = parse_json(content, LARGEST_BYTES, as_written=True)
    if not isinstance(tree, dict):
        raise BadJson(Flaw("$", f'{shown(tree)} is not an object that has "machinetypes"'))
    if "machinetypes" not in tree:
        raise BadJson(
            Flaw(
                "$",
                'there is no list "machinetypes": the old flat format, or no pipe at all; it has no types',
            )
        )
    found = tree["machinetypes"]
    if not isinstance(found, list) or len(found) > MOST_TYPES:
        what = f"a list of {len(found)}" if isinstance(found, list) else shown(found)
        raise BadJson(Flaw("$.machinetypes", f"{what} is not a list of at most {MOST_TYPES} machinetypes"))
    flaws = [
        Flaw(f"${step(key)}", "is not known; it is ignored", serious=False)
        for key in tree
        if key not in ("cache_seconds", "machinetypes")
    ]
    cache_seconds = _cache_seconds(tree, flaws)
    entries: dict[str, Entry] = {}
    for number, each in enumerate(found):
        entry = _entry(each, f"$.machinetypes[{number}]", flaws)
        if entry is not None and entry.suffix in entries:
            text = f"{entry.suffix!r} is the suffix of {entries[entry.suffix].path} already"
            flaws.append(Flaw(f"{entry.path}.suffix", text))
        elif entry is not None:
            entries[entry.suffix] = entry
    return PipeDocument(cache_seconds, tuple(entries.values()), first(flaws))


class _BadPart(BadValue):
    """A wrong entry of a list."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def _cache_seconds(tree: Mapping[str, Any], flaws: list[Flaw]) -> int:
    if "cache_seconds" not in tree:
        return CACHE_SECONDS
    path = "$.cache_seconds"
    try:
        seconds = _value(_CACHE_SECONDS, tree["cache_seconds"])
    except BadValue as error:
        flaws.append(Flaw(path, f"{error}; {CACHE_SECONDS} is used"))
        return CACHE_SECONDS
    if seconds > LONGEST_CACHE_SECONDS:
        text = f"{seconds} is more than a week; {LONGEST_CACHE_SECONDS} is used"
        flaws.append(Flaw(path, text, serious=False))
    return int(min(seconds, LONGEST_CACHE_SECONDS))


def _entry(found: Any, path: str, flaws: list[Flaw]) -> Entry | None:
    """Return one machinetype; None, with the reasons in flaws, if it can't be used."""
    if not isinstance(found, dict):
        flaws.append(Flaw(path, f"{shown(found)} is not an object"))
        return None
    values: dict[str, Any] = {}
    free: dict[str, dict[str, str]] = {USER_DATA_OPTION: {}, USER_DATA_FILE: {}}
    before = len(flaws)
    if found.get("suffix", "") == "":
        flaws.append(Flaw(path, f"there is no suffix; it has to be {allowed(_SUFFIX)}"))
    for key, given in found.items():
        here = path + step(key)
        prefix = next((prefix for prefix in free if key.startswith(prefix)), None)
        try:
            if key == "suffix":
                values[key] = _value(_SUFFIX, given, strip=False)
            elif key in ACCEPTED:
                values[key] = _value(ACCEPTED[key], given, *_NARROWER.get(key, ("", "")))
            elif prefix is not None:
                free[prefix][_free_name(key, prefix)] = _FREE_VALUES[prefix](given)
            else:
                text = _unknown(key, len(flaws) < MOST_FLAWS)
                flaws.append(Flaw(here, f"{text}; it is ignored", serious=False))
        except _BadPart as error:
            flaws.append(Flaw(f"{here}[{error.number}]", str(error)))
        except BadValue as error:
            flaws.append(Flaw(here, str(error)))
    if any(flaw.serious for flaw in flaws[before:]):
        return None
    kept = {name: value for name, value in values.items() if value is not None and name != "suffix"}
    return Entry(values["suffix"], path, kept, free[USER_DATA_OPTION], free[USER_DATA_FILE])


def _value(option: Option, given: Any, pattern: str = "", words: str = "", *, strip: bool = True) -> Any:
    """Return the option's value of a JSON value; None: as if it were not there. Raises BadValue."""
    words = words or allowed(option)
    if option.kind.many and isinstance(given, list):
        for number, each in enumerate(given):
            if not isinstance(each, str) or len(each.split()) != 1:
                raise _BadPart(number, f"{shown(each)} is not a text without blanks")
            _check_part(option, each, pattern, words, number)
        given = " ".join(given)
    text = _option_text(option, given)
    text = text.strip() if strip else text
    parts = text.split() if option.kind.many else [text]
    if len(parts) > MOST_ENTRIES:
        raise BadValue(f"{len(parts)} entries are more than the {MOST_ENTRIES} that a list may have")
    for part in parts:
        _check_part(option, part, pattern, words)
    return parse(option, text)


def _check_part(option: Option, part: str, pattern: str, words: str, number: int | None = None) -> None:
    """Check a value, or an entry of a list, beyond the option's own rules, since it is remote input."""
    problem = None
    if not part.isprintable() or len(part) > MOST_CHARACTERS:
        problem = f"{words}, in one line of at most {MOST_CHARACTERS} characters"
    elif option.kind is not Kind.REGEX and _PARENT.search(part):
        problem = f"{words}, without '..' as a part of a path"
    elif part and pattern and not re.fullmatch(pattern, part):
        problem = words
    if problem is not None:
        text = f"{quoted(part)} is not {problem}"
        raise BadValue(text) if number is None else _BadPart(number, text)


def _option_text(option: Option, given: Any) -> str:
    """Return the text of a JSON value in configuration files. Raises BadValue."""
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if isinstance(given, str):
        return given
    if option.kind in NUMBERS and number:
        return str(int(given)) if float(given).is_integer() else repr(given)
    if option.kind is Kind.BOOLEAN and isinstance(given, (bool, int)):
        return str(int(given))
    raise BadValue(f"{shown(given)} is not {allowed(option)}")


def _free_name(key: str, prefix: str) -> str:
    name = key[len(prefix) :]
    if not re.fullmatch("[a-z0-9_]{1,100}", name):
        raise BadValue(f"what follows {prefix} may hold only a-z, 0-9 and _, from 1 to 100 of them")
    return name


def _free_text(given: Any) -> str:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return given.text if isinstance(given, Number) else str(given)
    if not isinstance(given, str):
        raise BadValue(f"{kind_of(given)} is not text")
    return given


def _free_file(given: Any) -> str:
    value = _value(_TEXT, given, _FILE, _FILE_WORDS)
    if value is None:
        raise BadValue(f"nothing is not {_FILE_WORDS}")
    return str(value)


_FREE_VALUES: Mapping[str, Callable[[Any], str]] = {USER_DATA_OPTION: _free_text, USER_DATA_FILE: _free_file}


def _unknown(key: str, helpful: bool) -> str:
    if key in _OLD_SPELLINGS:
        return f"is an old spelling; a pipe has to say {_OLD_SPELLINGS[key]}"
    if key in _SITES_OWN:
        return "can't be set by a pipe, only by the site"
    return f"is not an option of a pipe's machinetype{nearest(key[:60], ACCEPTED) if helpful else ''}"
