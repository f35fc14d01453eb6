"""Text for people: untrusted text on one line, URLs without secrets, times, durations and counts. Pure.

Names and messages come from machines, peers and pipes; none may forge a line of a log, move a terminal's cursor or
carry a secret into a place that others can read.
"""

from __future__ import annotations

import math
import re
import time
from typing import Callable

LONGEST_QUOTED = 80
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s?#\"'<>]*@(?!sha256:)")
_QUERY = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")


def printable(text: str) -> str:
    """Return the text on one line, with question marks for what would change lines, colours or direction."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def escaped(text: str) -> str:
    """Return the text on one line, with line ends and terminal sequences written as `\\n` and `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, longest: int) -> str:
    """Return at most `longest` characters, the last of them an ellipsis if some were cut off."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def untrusted(text: str, longest: int) -> str:
    """Return a text of others for people: printable, without URLs' secrets, shortened."""
    return shortened(without_url_secrets(printable(text[: 10 * longest])), longest)


def without_url_secrets(text: str) -> str:
    """Mask user, password, query string and fragment of each URL in the text.

    Tokens and signed URLs carry their secret in the query string. Different URLs may become equal: never a key.
    """
    return _QUERY.sub(r"\1?…", _USER.sub(r"\1***@", text))


def quoted(text: str) -> str:
    """Return a value in quotes for a message: on one line, not too long, without URLs' secrets."""
    masked = without_url_secrets(text)
    return repr(masked if len(masked) <= LONGEST_QUOTED else masked[: LONGEST_QUOTED - 3] + "...")


def count(number: int, noun: str) -> str:
    """Return `1 processor`, `3 processors`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return a duration, rounded up, as `43 s`, `12 min` or `2 h 05 min`."""
    whole = math.ceil(min(max(seconds, 0), 1e12))
    if whole < 120:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def local_time(seconds: float, form: str = "%Y-%m-%d %H:%M:%S %Z") -> str:
    """Return Unix seconds as this host's local time, with the zone's name."""
    return _moment(time.localtime, seconds, form)


def utc_time(seconds: float, form: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """Return Unix seconds as UTC."""
    return _moment(time.gmtime, seconds, form)


def _moment(convert: Callable[[float], time.struct_time], seconds: float, form: str) -> str:
    """Return the time in this form; a number beyond the calendar as it is, since it may come from others."""
    try:
        return time.strftime(form, convert(seconds))
    except (OverflowError, ValueError, OSError):
        return f"@{seconds:g}"
