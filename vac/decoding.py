"""JSON of others, and of Vac's own files.

parse() reads JSON of others. It refuses what other parsers accept in different ways: duplicate keys, NaN, numbers of
thousands of digits, halves of surrogate pairs, unlimited nesting. Its errors name the place by its JSON path.

filled() puts a file's JSON object over a dataclass, by the annotations of its fields: str, int, float, bool, other
dataclasses that have defaults, `X | None`, tuple[X, ...] and Mapping[str, X], of names at the top level of the module.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from vac.text import quoted

MOST_BYTES = 16 * 1024 * 1024
MOST_DEPTH = 32
MOST_FLAWS = 100
MOST_DIGITS = 30
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_T = TypeVar("_T")
_Read = Callable[[Any], Any]
"""Turns a JSON value into ours. Raises ValueError for one of another type."""


@dataclass(frozen=True)
class Flaw:
    """A part of a document that is wrong (serious) or that is ignored."""

    path: str
    """JSON path, such as $.machinetypes[0].user_data."""
    text: str
    """The value that was found, and what would be right."""
    serious: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class BadJson(ValueError):
    """The content can't be used; flaws says why."""

    def __init__(self, *flaws: Flaw) -> None:
        super().__init__("; ".join(map(str, flaws[:3])))
        self.flaws = flaws


class Number(float):
    """A number with a point or an exponent that remembers how it was written."""

    text: str


class _BadNumber(NamedTuple):
    """Placeholder for a number that isn't one."""

    text: str


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys were there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]


def parse(
    content: bytes | str,
    most_bytes: int = MOST_BYTES,
    *,
    as_written: bool = False,
) -> Any:
    """Return the content as JSON's own types; numbers with a point as Number if as_written. Raises BadJson."""
    if len(content) > most_bytes:
        raise BadJson(Flaw("$", f"is larger than {most_bytes} bytes"))
    text = content if isinstance(content, str) else _decoded(content)
    if text.count("[") + text.count("{") > MOST_DEPTH:
        _check_depth(text)
    suspicious: list[object] = []

    def bad_number(written: str) -> _BadNumber:
        suspicious.append(written)
        return _BadNumber(written)

    def integer(written: str) -> int | _BadNumber:
        return int(written) if len(written) <= MOST_DIGITS else bad_number(written)

    def number(written: str) -> float | _BadNumber:
        value = Number(written) if as_written else float(written)
        if isinstance(value, Number):
            value.text = written
        return value if math.isfinite(value) else bad_number(written)

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        suspicious.append(pairs)
        return _Object(pairs)

    try:
        tree = json.loads(
            text, object_pairs_hook=mapping, parse_int=integer, parse_float=number, parse_constant=bad_number
        )
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"is not JSON: {error.msg}"
        raise BadJson(Flaw("$", f"{what} (line {error.lineno}, column {error.colno})")) from None
    if suspicious or "\\u" in text or _SURROGATE.search(text):
        flaws = first(_value_flaws(tree, "$"))
        if flaws:
            raise BadJson(*flaws)
    return tree


def first(flaws: Iterator[Flaw] | list[Flaw]) -> tuple[Flaw, ...]:
    """Return the first flaws, the serious ones before the others, and how many more there are."""
    every = sorted(flaws, key=lambda flaw: not flaw.serious)
    if len(every) <= MOST_FLAWS:
        return tuple(every)
    rest = Flaw("$", f"and {len(every) - MOST_FLAWS} more flaws", serious=every[MOST_FLAWS].serious)
    return (*every[:MOST_FLAWS], rest)


def step(key: str) -> str:
    """Return how a key continues a JSON path; what isn't a plain name is quoted."""
    return f".{key}" if re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,60}", key) else f"[{json.dumps(key[:60])}]"


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value."""
    kinds = {bool: "true or false", str: "a text", list: "a list", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "a number")


def shown(value: Any) -> str:
    """Return a JSON value for a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return quoted(value) if isinstance(value, str) else kind_of(value)


def _decoded(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadJson(Flaw("$", f"is not UTF-8: byte {error.start}")) from None
    if text.lstrip().startswith("<"):
        raise BadJson(Flaw("$", "is HTML or XML instead of JSON, perhaps an error or login page"))
    return text


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += 1 if match[0] in "[{" else -1 if match[0] in "]}" else 0
        if depth > MOST_DEPTH:
            raise BadJson(Flaw("$", f"is nested more than {MOST_DEPTH} levels deep"))


def _value_flaws(value: Any, path: str) -> Iterator[Flaw]:
    if isinstance(value, _BadNumber):
        yield Flaw(path, f"{quoted(value.text)} is not a number of JSON's, or too long a one")
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield Flaw(path, "holds half a surrogate pair, which is no text")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _value_flaws(each, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key in value.twice if isinstance(value, _Object) else ():
            yield Flaw(path + step(key), "is there twice")
        for key, each in value.items():
            yield from _value_flaws(each, path + step(key))


def filled(stand_in: _T, value: object) -> _T:
    """Return the dataclass with what a JSON object has under its fields' names.

    Values and entries of another type are left out, null where it is no value of the field, and unknown keys. Raises
    ValueError if the value is no object.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is not an object")
    plan = _plan(cast(type, type(stand_in)))
    found = _entries(((name, read, value[name]) for name, read in plan if name in value))
    return dataclasses.replace(stand_in, **found)  # type: ignore[type-var]


@functools.cache
def _plan(kind: type) -> tuple[tuple[str, _Read], ...]:
    """List each field's name and what reads it. Python 3.9 can't evaluate `X | None`, so the syntax tree tells."""
    names = vars(sys.modules[kind.__module__])
    return tuple(
        (field.name, _reader(ast.parse(cast(str, field.type), mode="eval").body, names))
        for field in dataclasses.fields(kind)
    )


def _reader(annotation: ast.expr, names: Mapping[str, Any]) -> _Read:
    if isinstance(annotation, ast.BinOp):
        read = _reader(annotation.left, names)
        return lambda value: None if value is None else read(value)
    if isinstance(annotation, ast.Subscript):
        first_part, second = cast(ast.Tuple, annotation.slice).elts
        if cast(ast.Name, annotation.value).id == "Mapping":
            return functools.partial(_mapping, _reader(second, names))
        return functools.partial(_sequence, _reader(first_part, names))
    name = cast(ast.Name, annotation).id
    return _SCALARS.get(name) or (lambda value: filled(names[name](), value))


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if _finite(value) != int(value):
        raise ValueError
    return int(value)


def _finite(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < math.inf:
        raise ValueError
    return value


def _sequence(read: _Read, value: Any) -> tuple[Any, ...]:
    return tuple(_entries((n, read, each) for n, each in enumerate(_exactly(list, value))).values())


def _mapping(read: _Read, value: Any) -> dict[str, Any]:
    return _entries((key, read, each) for key, each in _exactly(dict, value).items())


def _entries(parts: Iterable[tuple[Any, _Read, Any]]) -> dict[Any, Any]:
    """Return what can be read of these keys, each with its reader and value."""
    found = {}
    for key, read, value in parts:
        with contextlib.suppress(ValueError):
            found[key] = read(value)
    return found


_SCALARS: dict[str, _Read] = {
    "str": functools.partial(_exactly, str),
    "bool": functools.partial(_exactly, bool),
    "int": _integer,
    "float": _finite,
}
