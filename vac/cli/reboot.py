"""`vac drain --reboot`: drain, reboot this host, and have it create machines again; few factories of a space at a time.

A factory whose turn it is says so in its answers, as the reason for draining, before it asks the others. Of more than
at_most factories at once, the last one to say so sees all others, and stands back: nobody has to coordinate them.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time

from vac.cli import common
from vac.cli.factory_commands import wait_until_empty, wake
from vac.cli.space_commands import Query, prepare
from vac.clock import Clock
from vac.machines import requests
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.vacquery.messages import FactoryStatus, Kind

REASON = "to be rebooted"
AWAY = "is to be rebooted"
REBOOT = ("shutdown", "-r", "now")
_PAUSE_SECONDS = (20.0, 60.0)
"""Random, so that factories which have stood back for each other don't meet again."""
_TOLD_SECONDS = 120.0
"""Longest wait for this host's factory to report that it drains."""


def run(arguments: argparse.Namespace) -> int:
    """Wait for this factory's turn, drain, wait until no machine is left, and reboot."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    name = settings.factory_name
    if requests.running(state) is None:
        print(f"vac drain: no factory runs on {state.root}, which could tell the others", file=sys.stderr)
        return 1
    alone = all(factory == name for factory in settings.factories)
    asked = argparse.Namespace(
        config=arguments.config, factories=[*settings.factories, name], space=None, timeout=None
    )
    query = None if alone else prepare(asked, Kind.FACTORIES)
    reason = f"{REASON}: {arguments.reason}" if arguments.reason else REASON
    order = requests.Drain(time.time(), None, reason, Clock().boot_id)
    if not _take_turn(state, name, order, query, arguments.at_most):
        print("vac drain: the factory doesn't report that it drains; see `vac why`", file=sys.stderr)
        return 1
    print(f"{name} drains, to be rebooted", flush=True)
    try:
        as_asked = wait_until_empty(state, order)
    except KeyboardInterrupt:
        print(f"\n{name} goes on draining until it is rebooted; `vac undrain` ends that", file=sys.stderr)
        return 130
    if not as_asked:
        print(f"vac drain: {name} was told otherwise meanwhile; it is not rebooted", file=sys.stderr)
        return 1
    print(f"{name} reboots", flush=True)
    return subprocess.run(REBOOT, check=False).returncode


def _take_turn(state: StateDir, name: str, order: requests.Drain, query: Query | None, at_most: int) -> bool:
    """Return once this factory drains and fewer than at_most others are away; False if its factory doesn't react."""
    before = requests.draining(state, time.time())
    said = ""
    while True:
        away = _away(query, name)
        if len(away) < at_most:
            requests.drain(state, order)
            wake(state)
            told = _is_told(state, name, order, query)
            away = _away(query, name)
            if told and len(away) < at_most:
                return True
            if before is None or before.boot_id:
                requests.undrain(state)
            else:
                requests.drain(state, before)
            wake(state)
            if not told:
                return False
        words = ", ".join(f"{factory} {why}" for factory, why in sorted(away.items()))
        if words != said:
            said = words
            print(f"waits, since at most {at_most} may be away: {words}", flush=True)
        time.sleep(random.uniform(*_PAUSE_SECONDS))


def _away(query: Query | None, name: str) -> dict[str, str]:
    """Return the factories but this one that are being rebooted or don't answer, as they do meanwhile."""
    return {factory: why for factory, why in _ask(query).items() if factory != name}


def _ask(query: Query | None) -> dict[str, str]:
    """Return what is told by and of factories that are away, this one among them."""
    if query is None:
        return {}
    result = query.ask()
    away = dict.fromkeys(result.missing, "doesn't answer")
    for factory, answers in result.answers.items():
        for status in (answer.status for answer in answers):
            if isinstance(status, FactoryStatus) and f": {REASON}" in (status.creation_blocked or ""):
                away[factory] = AWAY
    return away


def _is_told(state: StateDir, name: str, order: requests.Drain, query: Query | None) -> bool:
    """Wait until the factory drains by this order and its answers say so; False if they don't.

    Only then are others asked: of two factories at once, the later one to ask sees the other.
    """
    end = time.monotonic() + _TOLD_SECONDS
    while time.monotonic() < end:
        status = statuses.read(state)
        drains = status is not None and status.drain == order and order.reason in (status.guard or "")
        if drains and (query is None or _ask(query).get(name) == AWAY):
            return True
        time.sleep(0.2)
    return False
