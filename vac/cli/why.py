"""`vac why [MACHINETYPE]`: in words, why nothing, or nothing of this type, is being created now."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from vac.cli import common
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Status, TypeFacts
from vac.text import escaped
from vac.vacquery.messages import Reason
from vac.vacquery.responder import dropped_as, read_counters

STALE_SECONDS = 180.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser(
        "why", help="why nothing, or nothing of a machinetype, is being created now"
    )
    command.add_argument("machinetype", nargs="?", metavar="MACHINETYPE")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the reasons; 1 if the factory has never said any, or the machinetype isn't configured."""
    state = StateDir(common.settings(arguments).state_dir)
    status = statuses.read(state)
    if status is None:
        print(
            f"vac why: no factory has run with {state.root} (no {state.status.name} there)", file=sys.stderr
        )
        return 1
    if arguments.machinetype and status.machinetype(arguments.machinetype) is None:
        known = " ".join(facts.name for facts in status.machinetypes) or "none"
        print(
            f"vac why: no machinetype {arguments.machinetype} is configured; there are: {known}",
            file=sys.stderr,
        )
        return 1
    for line in reasons(status, arguments.machinetype, time.time(), read_counters(state)):
        print(escaped(line))
    return 0


def reasons(
    status: Status, machinetype: str | None, now: float, counters: Mapping[str, int] = MappingProxyType({})
) -> Iterator[str]:
    """Lines for people: first what concerns everything, then type by type. counters: the responder's."""
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
    yield from _distrust(status, counters)
    if status.dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in status.dropped.items())
        yield f"Datagrams that the last poll has dropped: {counts}."
    for facts in status.machinetypes:
        if machinetype in (None, facts.name):
            yield from _of_type(status, facts, now)


def _distrust(status: Status, counters: Mapping[str, int]) -> Iterator[str]:
    """Signs that keys or clocks differ, or programs, and not that peers are away."""
    for factory, why in status.unusable.items():
        yield f"{factory}: its answer can't be used: {why}."
    for reason in (Reason.SIGNATURE, Reason.STALE):
        count = counters.get(dropped_as(reason), 0)
        if count and status.silent:
            yield f"The responder here has dropped {count} queries since it began: {reason.value}."


def _of_type(status: Status, facts: TypeFacts, now: float) -> Iterator[str]:
    reason = status.passed_over.get(facts.name)
    if reason is None and status.guard is None:
        reason = "can be created"
    if reason is not None:
        yield f"{facts.name}: {reason}"
    yield from failures(status, facts.name, now)


def failures(status: Status, machinetype: str | None, now: float) -> Iterator[str]:
    """What went wrong with the last creation of this type, or of each, unless one has succeeded since."""
    for name, failed in status.failed.items():
        if machinetype in (None, name):
            yield f"{name}: the last creation failed {now - failed.time:.0f} s ago: {failed.reason}"
