"""JSON of others, and of Vac's own files.

parse() reads JSON of others. It refuses what other parsers accept in different ways: duplicate keys, NaN, numbers of
thousands of digits, halves of surrogate pairs (if as_written), unlimited nesting.

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
from typing import Any, NoReturn, TypeVar, cast

from vac.text import quoted

MOST_BYTES = 16 * 1024 * 1024
MOST_DEPTH = 32
MOST_FLAWS = 100
MOST_DIGITS = 30
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
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


def parse(content: bytes, most_bytes: int = MOST_BYTES, *, as_written: bool = False) -> Any:
    """Return the content as JSON's own types. Raises BadJson, nothing else.

    as_written: whatever is read can be written again as it was, so that numbers with a point become Number and halves
    of surrogate pairs are refused.
    """
    if len(content) > most_bytes:
        raise BadJson(Flaw("$", f"is larger than {most_bytes} bytes"))
    text = _decoded(content)
    if text.count("[") + text.count("{") > MOST_DEPTH:
        _check_depth(text)
    try:
        tree = (_AS_WRITTEN if as_written else _DECODER).decode(text)
        if as_written:
            json.dumps(tree, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"is not JSON: {error.msg}"
        raise BadJson(Flaw("$", f"{what} (line {error.lineno}, column {error.colno})")) from None
    except UnicodeEncodeError:
        raise BadJson(Flaw("$", "holds half a surrogate pair, which is no text")) from None
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
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a JSON value for a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return quoted(value) if isinstance(value, str) else kind_of(value)


def _decoded(content: bytes) -> str:
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()  # not by a codec that Python would have to load
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise BadJson(Flaw("$", f"{quoted(twice)} is there twice in an object"))
    return found


def _whole(written: str) -> int:
    return int(written) if len(written) <= MOST_DIGITS else _refuse(written)


def _number(written: str) -> float:
    value = float(written)
    return value if math.isfinite(value) else _refuse(written)


def _number_as_written(written: str) -> Number:
    value = Number(_number(written))
    value.text = written
    return value


def _refuse(written: str) -> NoReturn:
    raise BadJson(Flaw("$", f"{quoted(written)} is not a number of JSON's, or too long a one"))


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_number, parse_constant=_refuse
)
_AS_WRITTEN = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_number_as_written, parse_constant=_refuse
)


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
