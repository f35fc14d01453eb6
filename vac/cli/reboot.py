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
    others = [factory for factory in settings.factories if factory != name]
    asked = argparse.Namespace(config=arguments.config, factories=others, space=None, timeout=None)
    query = prepare(asked, Kind.FACTORIES) if others else None
    reason = f"{REASON}: {arguments.reason}" if arguments.reason else REASON
    order = requests.Drain(time.time(), None, reason, Clock().boot_id)
    if not _take_turn(state, order, query, arguments.at_most):
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


def _take_turn(state: StateDir, order: requests.Drain, query: Query | None, at_most: int) -> bool:
    """Return once this factory drains and fewer than at_most others are away; False if its factory doesn't react."""
    before = requests.draining(state, time.time())
    said = ""
    while True:
        away = _away(query)
        if len(away) < at_most:
            requests.drain(state, order)
            wake(state)
            told = _is_told(state, order)
            away = _away(query)
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


def _away(query: Query | None) -> dict[str, str]:
    """Return the other factories that are being rebooted or don't answer, as they do meanwhile."""
    if query is None:
        return {}
    result = query.ask()
    away = dict.fromkeys(result.missing, "doesn't answer")
    for factory, answers in result.answers.items():
        for status in (answer.status for answer in answers):
            if isinstance(status, FactoryStatus) and f": {REASON}" in (status.creation_blocked or ""):
                away[factory] = "is to be rebooted"
    return away


def _is_told(state: StateDir, order: requests.Drain) -> bool:
    """Wait until the factory has reported that it drains by this order, and so do its answers; False if it doesn't."""
    end = time.monotonic() + _TOLD_SECONDS
    while time.monotonic() < end:
        status = statuses.read(state)
        if status is not None and status.drain == order and order.reason in (status.guard or ""):
            return True
        time.sleep(0.2)
    return False
