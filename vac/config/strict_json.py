"""JSON from far away: read without what JSON parsers let through, each in its own way, and without traps.

Duplicate keys, NaN, numbers of thousands of digits, halves of surrogate pairs and bottomless nesting are
flaws; each is named with its JSON path. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from vac.text import quoted

MOST_FLAWS = 100
MOST_DIGITS = 30
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Flaw:
    """Something in a document that is wrong (serious) or that is ignored."""

    path: str
    """JSON path, such as $.machinetypes[0].user_data."""
    text: str
    """What was found and what would be right; no values of user_data_option_XXX."""
    serious: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class Refused(Exception):
    """The document as a whole can't be used."""

    def __init__(self, *flaws: Flaw) -> None:
        super().__init__("; ".join(map(str, flaws[:3])))
        self.flaws = flaws


class _Odd(NamedTuple):
    """Stands for a number that isn't one."""

    text: str


class _Written(float):
    """A number with a point or an exponent that remembers how it was written."""

    text: str


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys were there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: list[str] = []
        if len(self) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twice = [key for key, count in Counter(keys).items() if count > 1]


def read(content: bytes, largest_bytes: int, deepest: int) -> Any:
    """The document as JSON's own types, or Refused if it isn't JSON, or JSON with traps."""
    if len(content) > largest_bytes:
        raise Refused(Flaw("$", f"is larger than {largest_bytes} bytes"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(Flaw("$", f"is not UTF-8: byte {error.start}")) from None
    if text.lstrip().startswith("<"):
        raise Refused(Flaw("$", "is HTML or XML instead of JSON, perhaps an error or login page"))
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += 1 if match[0] in "[{" else -1 if match[0] in "]}" else 0
        if depth > deepest:
            raise Refused(Flaw("$", f"is nested more than {deepest} levels deep"))
    try:
        tree = json.loads(
            text, object_pairs_hook=_Object, parse_int=_integer, parse_float=_number, parse_constant=_Odd
        )
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"is not JSON: {error.msg}"
        raise Refused(Flaw("$", f"{what} (line {error.lineno}, column {error.colno})")) from None
    traps = first(_traps(tree, "$"))
    if traps:
        raise Refused(*traps)
    return tree


def _integer(text: str) -> int | _Odd:
    return int(text) if len(text) <= MOST_DIGITS else _Odd(text)


def _number(text: str) -> float | _Odd:
    value = _Written(text)
    value.text = text
    return value if math.isfinite(value) else _Odd(text)


def written(number: int | float) -> str:
    """A number of a document as text, as it was written there."""
    return number.text if isinstance(number, _Written) else str(number)


def _traps(value: Any, path: str) -> Iterator[Flaw]:
    """What JSON parsers let through, each in its own way."""
    if isinstance(value, _Odd):
        yield Flaw(path, f"{quoted(value.text)} is not a number of JSON's, or too long a one")
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield Flaw(path, "holds half a surrogate pair, which is no text")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _traps(each, f"{path}[{number}]")
    elif isinstance(value, _Object):
        for key in value.twice:
            yield Flaw(path + step(key), "is there twice")
        for key, each in value.items():
            yield from _traps(each, path + step(key))


def step(key: str) -> str:
    """How a key continues a JSON path; what isn't a plain name is quoted."""
    return f".{key}" if re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,60}", key) else f"[{json.dumps(key[:60])}]"


def kind_of(value: Any) -> str:
    """What a JSON value is, in a word."""
    kinds = {bool: "true or false", str: "a text", list: "a list", type(None): "null", _Object: "an object"}
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """A JSON value in a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return quoted(value) if isinstance(value, str) else kind_of(value)


def first(flaws: Iterator[Flaw] | list[Flaw]) -> tuple[Flaw, ...]:
    """The first flaws, the serious ones before the others, and how many more there are."""
    every = sorted(flaws, key=lambda flaw: not flaw.serious)
    if len(every) <= MOST_FLAWS:
        return tuple(every)
    rest = Flaw("$", f"and {len(every) - MOST_FLAWS} more flaws", serious=every[MOST_FLAWS].serious)
    return (*every[:MOST_FLAWS], rest)
