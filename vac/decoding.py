"""Conversion of JSON to dataclasses: strict about the text; errors name the field by its JSON path. Pure.

parse() refuses what other parsers accept in different ways: duplicate keys, NaN, numbers of thousands of digits,
halves of surrogate pairs, unlimited nesting. decode() makes a dataclass of it by the annotations of its
fields: str, int, float, bool, Any, enums, other dataclasses, `X | None`, tuple[X, ...], list[X] and Mapping[str, X], of
names at the top level of the module. An unknown key is ignored. Null, where it is no value of the field, means as
much as no key: the field's default.

    @dataclass(frozen=True)
    class Answer:
        name: str
        factories: tuple[str, ...] = ()
        load: float = json_field(check_load, "load_average", "loadavg", default=0.0)

    decode(Answer, content)                        # raises BadJson: $.load_average: is not from 0 to 1000
    decode(Answer, content, lenient=True)          # what is wrong has its default; raises for no object at all
    decode(Answer, content, stand_in=yesterdays)   # … or what the stand-in has
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
_Read = Callable[[Any, str, bool], Any]
"""Turns a JSON value, with its path, into ours; the flag says to be lenient. Raises BadJson."""
_MISSING = dataclasses.MISSING


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


class _Odd(NamedTuple):
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
    most_depth: int = MOST_DEPTH,
    *,
    as_written: bool = False,
    surrogates: bool = False,
) -> Any:
    """Return the content as JSON's own types; numbers with a point as Number if as_written. Raises BadJson.

    surrogates: text may hold halves of surrogate pairs, which stand for bytes that aren't UTF-8 in files of our own.
    """
    if len(content) > most_bytes:
        raise BadJson(Flaw("$", f"is larger than {most_bytes} bytes"))
    text = content if isinstance(content, str) else _decoded(content)
    if text.count("[") + text.count("{") > most_depth:
        _check_depth(text, most_depth)
    traps: list[object] = []

    def odd(written: str) -> _Odd:
        traps.append(written)
        return _Odd(written)

    def integer(written: str) -> int | _Odd:
        return int(written) if len(written) <= MOST_DIGITS else odd(written)

    def number(written: str) -> float | _Odd:
        value = Number(written) if as_written else float(written)
        if isinstance(value, Number):
            value.text = written
        return value if math.isfinite(value) else odd(written)

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        traps.append(pairs)
        return _Object(pairs)

    try:
        tree = json.loads(
            text, object_pairs_hook=mapping, parse_int=integer, parse_float=number, parse_constant=odd
        )
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"is not JSON: {error.msg}"
        raise BadJson(Flaw("$", f"{what} (line {error.lineno}, column {error.colno})")) from None
    if traps or (not surrogates and ("\\u" in text or _SURROGATE.search(text))):
        flaws = first(_traps(tree, "$", surrogates))
        if flaws:
            raise BadJson(*flaws)
    return tree


def decode(
    kind: type[_T],
    content: bytes | str,
    *,
    lenient: bool = False,
    stand_in: _T | None = None,
    most_bytes: int = MOST_BYTES,
) -> _T:
    """Parse the content, with surrogates if lenient or with a stand_in, and build() a dataclass. Raises BadJson."""
    surrogates = lenient or stand_in is not None
    return build(kind, parse(content, most_bytes, surrogates=surrogates), lenient=lenient, stand_in=stand_in)


def build(
    kind: type[_T], value: object, path: str = "$", *, lenient: bool = False, stand_in: _T | None = None
) -> _T:
    """Return a dataclass of this kind from what parse() has returned.

    Raises BadJson at the first field that is wrong or missing. If lenient, or with a stand_in, such a field has its
    default or the stand_in's value, and wrong entries of lists and mappings are left out; only a value that is no
    object, or lacks a field without default, raises.
    """
    if not isinstance(value, dict):
        raise BadJson(Flaw(path, f"{shown(value)} is not an object"))
    lenient = lenient or stand_in is not None
    values: dict[str, Any] = {}
    for name, names, read, required, nullable in _plan(cast(type, kind)):
        found, key = next(
            ((value[key], key) for key in names if value.get(key) is not None), (None, names[0])
        )
        if found is None and not (nullable and key in value):
            if not required or stand_in is not None:
                continue
            if key not in value:
                raise BadJson(Flaw(path + step(key), "is missing"))
        try:
            values[name] = read(found, path + step(key), lenient)
        except BadJson:
            if not lenient or (required and stand_in is None):
                raise
    return dataclasses.replace(stand_in, **values) if stand_in is not None else kind(**values)  # type: ignore[type-var]


def json_field(check: Callable[[Any], Any], *names: str, default: Any = _MISSING, **metadata: Any) -> Any:
    """Declare a dataclass field that is read under these names (its own, if none is given), the first that has a value.

    check takes the JSON value and returns the field's, or raises ValueError with words such as "is not a number".
    """
    return dataclasses.field(default=default, metadata={"check": check, "names": names, **metadata})


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


def _check_depth(text: str, deepest: int) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += 1 if match[0] in "[{" else -1 if match[0] in "]}" else 0
        if depth > deepest:
            raise BadJson(Flaw("$", f"is nested more than {deepest} levels deep"))


def _traps(value: Any, path: str, surrogates: bool) -> Iterator[Flaw]:
    if isinstance(value, _Odd):
        yield Flaw(path, f"{quoted(value.text)} is not a number of JSON's, or too long a one")
    elif isinstance(value, str) and not surrogates and _SURROGATE.search(value):
        yield Flaw(path, "holds half a surrogate pair, which is no text")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _traps(each, f"{path}[{number}]", surrogates)
    elif isinstance(value, dict):
        for key in value.twice if isinstance(value, _Object) else ():
            yield Flaw(path + step(key), "is there twice")
        for key, each in value.items():
            yield from _traps(each, path + step(key), surrogates)


@functools.cache
def _plan(kind: type) -> tuple[tuple[str, tuple[str, ...], _Read, bool, bool], ...]:
    """List each field's name, its names in JSON, what reads it, if it is required, and if null is a value of it."""
    plan = []
    for field in dataclasses.fields(kind):
        check, annotation = field.metadata.get("check"), _annotation(field.type)
        read = (
            _checked(check) if check is not None else _reader(annotation, vars(sys.modules[kind.__module__]))
        )
        required = field.default is _MISSING and field.default_factory is _MISSING
        nullable = check is None and isinstance(annotation, ast.BinOp) and "None" in str(field.type)
        plan.append((field.name, field.metadata.get("names") or (field.name,), read, required, nullable))
    return tuple(plan)


def _annotation(annotation: object) -> ast.expr:
    """Return the annotation's syntax tree: Python 3.9 can't evaluate `X | None`."""
    return ast.parse(cast(str, annotation), mode="eval").body


def _reader(annotation: ast.expr, names: Mapping[str, Any]) -> _Read:
    if isinstance(annotation, ast.BinOp):
        return _either(_reader(annotation.left, names), _reader(annotation.right, names))
    if isinstance(annotation, ast.Subscript):
        origin, inner = cast(ast.Name, annotation.value).id, annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if origin in ("Mapping", "dict"):
            return functools.partial(_mapping, _reader(parts[1], names))
        return functools.partial(_sequence, _reader(parts[0], names), list if origin == "list" else tuple)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return functools.partial(_scalar, (type(None),), "null")
    name = cast(ast.Name, annotation).id
    if name in _SCALARS:
        return _SCALARS[name]
    kind = names[name]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return functools.partial(_member, kind)
    return lambda value, path, lenient: build(kind, value, path, lenient=lenient)


def _checked(check: Callable[[Any], Any]) -> _Read:
    def read(value: Any, path: str, _: bool) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise BadJson(Flaw(path, str(error))) from None

    return read


def _either(one: _Read, other: _Read) -> _Read:
    def read(value: Any, path: str, lenient: bool) -> Any:
        try:
            return one(value, path, lenient)
        except BadJson as error:
            try:
                return other(value, path, lenient)
            except BadJson:
                raise error from None

    return read


def _scalar(kinds: tuple[type, ...], words: str, value: Any, path: str, _: bool) -> Any:
    if type(value) not in kinds:
        raise BadJson(Flaw(path, f"{shown(value)} is not {words}"))
    return value


def _integer(value: Any, path: str, _: bool) -> int:
    if not _is_number(value) or value != int(value):
        raise BadJson(Flaw(path, f"{shown(value)} is not an integer"))
    return int(value)


def _finite(value: Any, path: str, _: bool) -> float:
    if not _is_number(value):
        raise BadJson(Flaw(path, f"{shown(value)} is not a number"))
    return cast(float, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _member(kind: type[enum.Enum], value: Any, path: str, _: bool) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(str(each.value) for each in kind)
        raise BadJson(Flaw(path, f"{shown(value)} is not one of {allowed}")) from None


def _sequence(read: _Read, make: Callable[[list[Any]], Any], value: Any, path: str, lenient: bool) -> Any:
    if not isinstance(value, list):
        raise BadJson(Flaw(path, f"{shown(value)} is not a list"))
    return make(
        [
            found
            for _, found in _entries(
                read, ((f"[{n}]", n, each) for n, each in enumerate(value)), path, lenient
            )
        ]
    )


def _mapping(read: _Read, value: Any, path: str, lenient: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadJson(Flaw(path, f"{shown(value)} is not an object"))
    return dict(_entries(read, ((step(key), key, each) for key, each in value.items()), path, lenient))


def _entries(
    read: _Read, parts: Iterator[tuple[str, Any, Any]], path: str, lenient: bool
) -> Iterator[tuple[Any, Any]]:
    for below, key, value in parts:
        try:
            yield key, read(value, path + below, lenient)
        except BadJson:
            if not lenient:
                raise


_SCALARS: dict[str, _Read] = {
    "str": functools.partial(_scalar, (str,), "a text"),
    "bool": functools.partial(_scalar, (bool,), "true or false"),
    "int": _integer,
    "float": _finite,
    "Any": lambda value, path, lenient: value,
    "object": lambda value, path, lenient: value,
}
