"""What several commands need: this factory's configuration and machines, and times as people write them."""

from __future__ import annotations

import argparse
import datetime
import re

from vac.config.load import Configuration, ConfigurationError, load
from vac.config.settings import Settings
from vac.host import facts
from vac.machines import requests
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.slots import read_slots

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def configuration(arguments: argparse.Namespace) -> Configuration:
    """The configuration that `--config` names, or the installed one. ConfigurationError if it is broken."""
    return load(arguments.config, facts.read())


def settings(arguments: argparse.Namespace) -> Settings:
    """[settings]; of a broken configuration what can be understood of it, if that suffices to find the factory."""
    try:
        return configuration(arguments).settings
    except ConfigurationError as error:
        if error.settings is None or not error.settings.vac_space:
            raise
        return error.settings


def find_machine(state: StateDir, name: str) -> Machine | None:
    """The machine in the slot of this host name, whose short form will do, or the slot's one with this uuid."""
    for machine in read_slots(state).values():
        if name and name.lower() in (machine.name, machine.name.partition(".")[0], machine.uuid):
            return machine
    return None


def point_in_time(words: str, now: float) -> float:
    """Unix seconds from `+90m`, from Unix seconds, or from a local time such as `2026-11-21T18:00`.

    ValueError says what is allowed.
    """
    ahead = re.fullmatch(r"\+(\d{1,6})([smhd])", words)
    if ahead:
        return now + int(ahead[1]) * _UNITS[ahead[2]]
    if re.fullmatch(r"\d{9,11}", words):
        return float(words)
    try:
        return datetime.datetime.fromisoformat(words).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{words!r} is no time: write +30m, +2h, +1d, Unix seconds, or a local time like 2026-11-21T18:00"
        ) from None


def tell_factory(state: StateDir) -> str:
    """Wake the factory so that it acts on a request now; what to tell people about that, or nothing."""
    return "" if requests.wake(state) else " (no factory runs on this state_dir: it will when it starts)"
