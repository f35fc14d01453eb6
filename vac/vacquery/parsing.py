"""JSON from strangers: an object without NaN, infinity or nesting that could exhaust the stack."""

from __future__ import annotations

import json
from typing import Any, NoReturn

DEEPEST = 200
"""Most brackets in a message; ours have two."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in these bytes; ValueError, with the reason, for anything else."""
    if data.count(b"[") + data.count(b"{") > DEEPEST:
        raise ValueError("too many brackets")
    found = _DECODER.decode(data.decode("utf-8"))
    if type(found) is not dict:
        raise ValueError("not an object")
    return found


def _finite(digits: str) -> float:
    found = float(digits)
    if found - found != 0:
        raise ValueError(f"{digits} is too large a number")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
