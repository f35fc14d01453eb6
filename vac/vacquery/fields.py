"""Which values a field of a VacQuery message may have.

Everything that arrives is untrusted: a check takes what JSON gave and returns it as the type that we use, or
raises ValueError. The limits only have to be beyond what any site has; they keep absurd numbers out of sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

Check = Callable[[object], Any]

MOST_TIME = 1 << 36
"""Unix seconds: the year 4147."""
MOST_TEXT = 4096


@dataclasses.dataclass(frozen=True)
class Wire:
    """How a field of a status stands in a message."""

    names: tuple[str, ...]
    """Names of this one value, newest first: all are sent, the first that has a value is read."""
    check: Check
    left_out: bool = False
    """Leave the field out, rather than send null, when there is no value."""


def wired(check: Check, *names: str, left_out: bool = False, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is sent and read under these names (its own, if none is given).

    Without a default a message must have it.
    """
    return dataclasses.field(default=default, metadata={"wire": Wire(names, check, left_out)})


def number(value: object, most: float) -> float:
    """A number from 0 to most."""
    if type(value) is not int and type(value) is not float:
        raise ValueError("not a number")
    if not 0 <= value <= most:
        raise ValueError(f"not from 0 to {most}")
    return value


def whole(value: object, most: int) -> int:
    """A whole number from 0 to most; 5.0, as classic factories send for 5, is one."""
    found = number(value, most)
    if found != math.floor(found):
        raise ValueError("not a whole number")
    return int(found)


def machines(value: object) -> int:
    """A number of machines, slots or machinetypes of one factory."""
    return whole(value, 10_000)


def processors(value: object) -> int:
    """A number of processors of one factory."""
    return whole(value, 100_000)


def hs06(value: object) -> float:
    """HS06 of one factory."""
    return float(number(value, 1e7))


def seconds(value: object) -> int:
    """A duration, or CPU seconds."""
    return int(number(value, MOST_TIME))


def time(value: object) -> int:
    """Unix seconds."""
    return int(number(value, MOST_TIME))


def amount(value: object) -> int:
    """Bytes, KB or inodes."""
    return int(number(value, 1 << 63))


def rate(value: object) -> float:
    """A load average or a percentage."""
    return float(number(value, 1e9))


def text(value: object) -> str:
    """Any text that isn't absurdly long. What can't be encoded (lone surrogates) becomes question marks."""
    if type(value) is not str:
        raise ValueError("not text")
    if len(value) > MOST_TEXT:
        raise ValueError(f"longer than {MOST_TEXT} characters")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def name(value: object) -> str:
    """The name of a space, factory, machine or machinetype: no blanks, nothing unprintable, not empty."""
    found = text(value)
    if not found or len(found) > 255 or " " in found or not found.isprintable():
        raise ValueError("not a name")
    return found
