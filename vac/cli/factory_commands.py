"""`vac why`, `drain`, `undrain`, `finish` and `destroy`: what this host's factory decides, and orders to it."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from vac.accounting import history
from vac.accounting.history import Ended
from vac.cli import common
from vac.cli.common import CommandFailed
from vac.cli.machine_commands import in_slot
from vac.cli.space_commands import prepare
from vac.clock import Clock
from vac.config.settings import Settings
from vac.machines import requests
from vac.machines import status as statuses
from vac.machines.layout import StateDir, disk_problem
from vac.machines.slots import read_slots
from vac.machines.status import STALE_SECONDS, Status
from vac.roles import crash_loop
from vac.text import duration, escaped, local_time
from vac.vacquery.messages import FactoryStatus, Kind, Reason
from vac.vacquery.poll import Poll
from vac.vacquery.responder import dropped_as, read_counters

RECENT_SECONDS = 6 * 3600.0
"""So long `vac why` shows a failed machine though later ones of its type have ended well."""
_LOOK_SECONDS = 1.0
_MOST_NAMES = 8
REASON = "to be rebooted"
AWAY = "is to be rebooted"
REBOOT = ("shutdown", "-r", "now")
_PAUSE_SECONDS = (20.0, 60.0)
"""Random, so that factories which have stood back for each other don't meet again."""
_DRAIN_REPORTED_SECONDS = 120.0
"""Longest wait for this host's factory to report that it drains."""


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    if name == "why":
        parser.add_argument("machinetype", nargs="?", metavar="MACHINETYPE")
        parser.add_argument("-J", "--json", action="store_true", help="as JSON; times are Unix seconds")
    elif name in ("finish", "destroy"):
        help_text = (
            "host name of the machine, short or in full. Give the uuid instead to be sure that a repeated command "
            "doesn't end the slot's next machine"
        )
        parser.add_argument("machine", metavar="NAME", help=help_text)
        parser.set_defaults(action=name)
    elif name == "drain":
        help_text = "+2h, 2026-11-21T18:00 or Unix seconds; default: until undrain"
        parser.add_argument("--until", metavar="TIME", help=help_text)
        parser.add_argument("--reason", metavar="TEXT", default="", help="shown with why nothing is created")
        help_text = (
            "return when no machine is left; alone, it leaves an order to drain that is in force as it is"
        )
        parser.add_argument("--wait", action="store_true", help=help_text)
        help_text = (
            "when no machine is left, reboot this host, which then creates machines again; see also --at-most"
        )
        parser.add_argument("--reboot", action="store_true", help=help_text)
        help_text = (
            "with --reboot: begin when fewer than N others of the space reboot or don't answer; default 1"
        )
        number = common.number(int, 1, 999_999, "a number of factories, 1 or more")
        parser.add_argument("--at-most", type=number, default=1, metavar="N", help=help_text)
    commands = {"why": run_why, "drain": run_drain, "undrain": run_undrain}
    parser.set_defaults(run=commands.get(name, run_end))


def run_drain(arguments: argparse.Namespace) -> None:
    """Leave the order to drain and, with --wait, return when no machine is left; with --reboot, reboot then."""
    if arguments.reboot and arguments.until:
        raise CommandFailed("vac drain: --reboot has no --until", 2)
    now, until = time.time(), None
    if arguments.until:
        try:
            until = common.point_in_time(arguments.until, now)
        except ValueError as problem:
            raise CommandFailed(f"vac drain: --until {problem}", 2) from None
        if until <= now:
            raise CommandFailed(f"vac drain: --until {arguments.until} is in the past", 2)
    settings = common.settings(arguments)
    state, name = StateDir(settings.state_dir), settings.factory_name
    if arguments.reboot:
        _drain_and_reboot(arguments, settings, state)
        return
    order = requests.Drain(now, until, arguments.reason)
    if arguments.wait and until is None and not arguments.reason:
        order = requests.draining(state, now) or order
    requests.drain(state, order)
    print(f"{name} drains{f' until {local_time(order.until)}' if order.until else ''}{wake(state)}")
    if arguments.wait:
        _wait_until_empty(state, name)


def _drain_and_reboot(arguments: argparse.Namespace, settings: Settings, state: StateDir) -> None:
    """Wait for this factory's turn, drain, wait until no machine is left, and reboot.

    A factory whose turn it is says so in its answers, as the reason for draining, before it asks the others. Of more
    than at_most factories at once, the last one to say so sees all others, and stands back: nobody has to coordinate
    them.
    """
    name = settings.factory_name
    if requests.running(state) is None:
        raise CommandFailed(f"vac drain: no factory runs on {state.root}, which could tell the others")
    alone = all(factory == name for factory in settings.factories)
    poll = None if alone else prepare(settings, Kind.FACTORIES, [*settings.factories, name])
    reason = f"{REASON}: {arguments.reason}" if arguments.reason else REASON
    order = requests.Drain(time.time(), None, reason, Clock().boot_id)
    if not _take_turn(state, name, order, poll, arguments.at_most):
        raise CommandFailed("vac drain: the factory doesn't report that it drains; see `vac why`")
    print(f"{name} drains, to be rebooted", flush=True)
    _wait_until_empty(state, name, order)
    print(f"{name} reboots", flush=True)
    if code := subprocess.run(REBOOT, check=False).returncode:
        raise CommandFailed(f"vac drain: {' '.join(REBOOT)} has failed", code)


def _take_turn(state: StateDir, name: str, order: requests.Drain, poll: Poll | None, at_most: int) -> bool:
    """Return once this factory drains and fewer than at_most others are away; False if its factory doesn't react."""
    before = requests.draining(state, time.time())
    said = ""
    while True:
        away = _away(poll, name)
        if len(away) < at_most:
            requests.drain(state, order)
            wake(state)
            told = _drain_is_reported(state, name, order, poll)
            away = _away(poll, name)
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


def _away(poll: Poll | None, but: str = "") -> dict[str, str]:
    """Return the factories but this one that are being rebooted or don't answer, as they do meanwhile, and why."""
    if poll is None:
        return {}
    result = poll.run()
    away = dict.fromkeys(result.missing, "doesn't answer")
    for factory, answers in result.answers.items():
        for status in (answer.status for answer in answers):
            if isinstance(status, FactoryStatus) and f": {REASON}" in (status.creation_blocked or ""):
                away[factory] = AWAY
    away.pop(but, None)
    return away


def _drain_is_reported(state: StateDir, name: str, order: requests.Drain, poll: Poll | None) -> bool:
    """Wait until the factory drains by this order and its answers say so; False if they don't.

    Only then are others asked: of two factories at once, the later one to ask sees the other.
    """
    end = time.monotonic() + _DRAIN_REPORTED_SECONDS
    while time.monotonic() < end:
        status = statuses.read(state)
        drains = status is not None and status.drain == order and order.reason in (status.guard or "")
        if drains and (poll is None or _away(poll).get(name) == AWAY):
            return True
        time.sleep(0.2)
    return False


def _wait_until_empty(state: StateDir, name: str, order: requests.Drain | None = None) -> None:
    """Return when no machine is left. Raises CommandFailed if the order to reboot is no longer in force by then."""
    before = -1
    try:
        while left := [slot for slot, machine in read_slots(state).items() if not machine.finished]:
            if len(left) != before:
                before = len(left)
                names = " ".join(slot.partition(".")[0] for slot in left[:_MOST_NAMES])
                print(f"{before} left: {names}", flush=True)
            time.sleep(_LOOK_SECONDS)
            if order is not None and requests.draining(state, time.time()) != order:
                raise CommandFailed(f"vac drain: {name} was told otherwise meanwhile; it is not rebooted")
    except KeyboardInterrupt:
        until = "" if order is None else " until it is rebooted"
        raise CommandFailed(f"\n{name} goes on draining{until}; `vac undrain` ends that", 130) from None


def run_undrain(arguments: argparse.Namespace) -> None:
    """Take the order to drain back."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    if not requests.undrain(state):
        print(f"{settings.factory_name} was not draining by command")
    else:
        print(f"{settings.factory_name} no longer drains{wake(state)}")
    if settings.draining:
        print("but [settings] draining = yes is in its configuration")


def run_end(arguments: argparse.Namespace) -> None:
    """Leave the request to finish or destroy a machine and wake the factory."""
    settings = common.settings(arguments)
    state = StateDir(settings.state_dir)
    action, machine = arguments.action, in_slot(state, arguments.machine)
    if machine is None or machine.finished:
        what = "has ended already" if machine else f"is no machine of {settings.factory_name}"
        raise CommandFailed(f"vac {action}: {arguments.machine} {what}; `vac machines` lists them")
    requests.ask(state, requests.Request(action, machine.name, machine.uuid))
    now = " now, since grace_secs is 0" if action == "finish" and not settings.grace_secs else ""
    print(f"{machine.name}: asked to {action} machine {machine.uuid}{now}{wake(state)}")


def wake(state: StateDir) -> str:
    """Wake the factory so that it carries out a request now; return what to add if it can't."""
    return "" if requests.wake(state) else " (no factory runs on this state_dir: it will when it starts)"


def run_why(arguments: argparse.Namespace) -> None:
    """Print why nothing is created."""
    state = StateDir(common.settings(arguments).state_dir)
    status = statuses.read(state)
    troubles = [text for text in (disk_problem(state.root), crash_loop(state.root, time.time())) if text]
    if status is None:
        text = f"no factory has run with {state.root} (no {state.status.name} there)"
        if state.status.exists():
            text = f"{state.status} can't be read"
        raise CommandFailed("\n".join(f"vac why: {each}" for each in (text, *troubles)))
    name = arguments.machinetype
    if name and status.machinetype(name) is None:
        known = " ".join(facts.name for facts in status.machinetypes) or "none"
        raise CommandFailed(f"vac why: no machinetype {name} is configured; there are: {known}")
    if state.runs("factory") is False:
        troubles.insert(0, "vacd doesn't run now; all this is as it was then")
    lines = [f"Warning: {text}." for text in troubles]
    now = time.time()
    failures = history.last_failures(state, now - RECENT_SECONDS)
    lines += reasons(status, name, now, read_counters(state), failures)
    if arguments.json:
        shown = [facts.name for facts in status.machinetypes if name in (None, facts.name)]
        content = {
            "factory": status.factory,
            "time": status.time,
            "decision_time": status.decision_time,
            "guard": status.guard,
            "machinetypes": {one: status.passed_over.get(one) for one in shown},
            "reasons": lines,
        }
        print(json.dumps(content, indent=1))
    else:
        print("\n".join(map(escaped, lines)))


def reasons(
    status: Status,
    machinetype: str | None,
    now: float,
    counters: Mapping[str, int] = MappingProxyType({}),
    failures: Mapping[str, Ended] = MappingProxyType({}),
) -> Iterator[str]:
    """Yield lines for people: first what concerns everything, then type by type.

    counters: the responder's; failures: each type's last machine that failed, if it is worth telling.
    """
    age = now - status.time
    if age > STALE_SECONDS:
        yield f"The factory has not reported for {age / 60:.0f} minutes: is vacd running? What it said last:"
    elif status.decision_time is not None:
        yield f"As decided {max(0.0, now - status.decision_time):.0f} s ago:"
    for problem in status.problems:
        yield f"Configuration: {problem}"
    for warning in status.warnings:
        yield f"Warning: {warning}."
    if status.guard:
        yield f"Nothing is created: {status.guard}."
    for kind, troubles in (("Engine", status.engines), ("Pipe", status.pipes)):
        yield from (f"{kind} {name}: {trouble}." for name, trouble in troubles.items() if trouble)
    if status.silent:
        yield f"No answer from {len(status.silent)} of {len(status.factories)} factories: {', '.join(status.silent)}."
    yield from _unusable_answers(status, counters)
    if status.dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in status.dropped.items())
        yield f"Datagrams that the last poll has dropped: {counts}."
    for facts in status.machinetypes:
        if machinetype in (None, facts.name):
            yield from _of_type(status, facts.name, failures.get(facts.name), now)


def _unusable_answers(status: Status, counters: Mapping[str, int]) -> Iterator[str]:
    """Yield signs that keys, clocks or programs differ, rather than that peers are away."""
    for factory, why in status.unusable.items():
        yield f"{factory}: its answer can't be used: {why}."
    for reason in (Reason.SIGNATURE, Reason.STALE):
        count = counters.get(dropped_as(reason), 0)
        if count and status.silent:
            yield f"The responder here has dropped {count} queries since it began: {reason.value}."


def _of_type(status: Status, name: str, failure: Ended | None, now: float) -> Iterator[str]:
    reason = status.passed_over.get(name, None if status.guard else "can be created")
    if reason is not None:
        yield f"{name}: {reason}"
    yield from common.creation_failures(status, name, now)
    if failure is not None:
        machine, ago = failure.machine.partition(".")[0], duration(max(0.0, now - failure.ended))
        yield f"{name}: {machine} failed {ago} ago: {failure.words} (`vac machine {failure.uuid}` tells more)"
