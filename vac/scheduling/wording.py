"""Words that reasons are made of, for a site's administrator."""

from __future__ import annotations

import math


def seconds(duration: float) -> str:
    """A duration in seconds, such as `43 s`, `12 min` or `2 h 05 min`."""
    whole = max(0, math.ceil(duration))
    if whole < 120:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def count(number: int, noun: str) -> str:
    """`1 processor`, `3 processors`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
