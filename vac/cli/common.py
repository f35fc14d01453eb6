"""Shared by several commands: their failure, this factory's configuration, times as people write them."""

from __future__ import annotations

import argparse
import datetime
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vac.config.load import Configuration, ConfigurationError, load
from vac.config.settings import Settings
from vac.host import facts

if TYPE_CHECKING:
    from vac.machines.status import Status

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class CommandFailed(Exception):
    """A command ends with this message on standard error and this exit code."""

    def __init__(self, text: object, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


def configuration(arguments: argparse.Namespace) -> Configuration:
    """Return the configuration that `--config` names, or the installed one. Raises ConfigurationError."""
    return load(arguments.config, facts.read())


def settings(arguments: argparse.Namespace) -> Settings:
    """Return [settings]; of a broken configuration the part that is right, if that suffices to find the factory.

    Raises ConfigurationError.
    """
    try:
        return configuration(arguments).settings
    except ConfigurationError as error:
        if error.settings is None or not error.settings.vac_space:
            raise
        return error.settings


def point_in_time(words: str, now: float, *, ago: bool = False) -> float:
    """Return Unix seconds from `+90m` (ago: from `90m`), from Unix seconds, or from a local time such as
    `2026-11-21T18:00`.

    Raises ValueError, which says what is allowed.
    """
    sign = "" if ago else "+"
    distance = re.fullmatch(rf"{re.escape(sign)}(\d{{1,6}})([smhd])", words)
    if distance:
        return now + int(distance[1]) * _UNITS[distance[2]] * (-1 if ago else 1)
    if re.fullmatch(r"\d{9,11}", words):
        return float(words)
    try:
        return datetime.datetime.fromisoformat(words).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{words!r} is no time: write {sign}30m, {sign}2h, {sign}1d, Unix seconds, or a local time like "
            "2026-11-21T18:00"
        ) from None


def number(kind: Callable[[str], float], least: float, most: float, words: str) -> Callable[[str], Any]:
    """Return a type of arguments: a number within these bounds; words say what is allowed."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return parse


def creation_failures(status: Status, machinetype: str | None, now: float) -> Iterator[str]:
    """Yield why the last creation of this type, or of each, failed, unless one has succeeded since."""
    for name, failed in status.failed.items():
        if machinetype in (None, name):
            yield f"{name}: the last creation failed {now - failed.time:.0f} s ago: {failed.reason}"
