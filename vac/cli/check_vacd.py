"""`check-vacd`: a Nagios check that needs no configuration and no rights, and starts fast.

It imports the standard library, the layout of state_dir and the format of its restarts file, nothing else.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vac.machines.layout import StateDir, disk_problem
from vac.roles import crash_loop

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
DEFAULT_SECONDS = 600
FUTURE_SECONDS = 60
"""A heartbeat may be so far in the future: clocks are corrected."""
_GUARDS = ("health", "disk", "engines")
"""Reasons against creating anything (guard_name) that are somebody's to mend."""
DEFAULT_STATE_DIR = Path("/var/lib/vac")


class _Parser(argparse.ArgumentParser):
    """Nagios takes 2, argparse's exit status for mistakes, as critical."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}")
        sys.exit(UNKNOWN)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line; return the exit status for Nagios: 0 ok, 1 warning, 2 critical, 3 used wrongly."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    arguments = make_parser().parse_args(argv)
    limits = (arguments.critical, arguments.seconds, DEFAULT_SECONDS)
    seconds = next(each for each in limits if each is not None)
    status, line = check(StateDir(arguments.state_dir), seconds, time.time(), arguments.warning)
    try:
        print(line, flush=True)
    except OSError:  # nobody reads it, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = _Parser(
        prog="check-vacd",
        description="Nagios check: check that vacd's factory and responder work without errors.",
        epilog="Example: check-vacd -w 180 -c 600",
    )
    parser.add_argument("seconds", nargs="?", type=float, metavar="SECONDS", help="as -c SECONDS")
    help_text = f"critical if a heartbeat is older (default {DEFAULT_SECONDS})"
    parser.add_argument("-c", "--critical", type=float, metavar="SECONDS", help=help_text)
    help_text = "a warning if a heartbeat is older"
    parser.add_argument("-w", "--warning", type=float, metavar="SECONDS", help=help_text)
    parser.add_argument(
        "--state-dir", type=Path, default=DEFAULT_STATE_DIR, help=f"default {DEFAULT_STATE_DIR}"
    )
    return parser


def check(
    state: StateDir, seconds: float, now: float, warning_seconds: float | None = None
) -> tuple[int, str]:
    """Return exit status and line. Heartbeats may be `seconds` old at the time now (Unix seconds)."""
    report = _report(state)
    status, text = CRITICAL, disk_problem(state.root) or _old_heartbeat(state, seconds, now)
    text = text or crash_loop(state.root, now) or _first_line(state.factory_error)
    if text is None:
        limit = seconds if warning_seconds is None else warning_seconds
        status, text = WARNING, _warning(state, report, now, limit)
    if text is None:
        status, text = OK, "Factory + responder ok"
        if report.get("guard_name") == "draining":
            text += f", {report.get('guard')}"
    return status, text.replace("|", "/") + _counts(state)


def _old_heartbeat(state: StateDir, seconds: float, now: float) -> str | None:
    for role in ("factory", "responder"):
        last_time = state.heartbeat_time(role)
        if last_time is None:
            return f"No vacd {role} heartbeat file"
        age = now - last_time
        if age > seconds:
            return f"No vacd {role} heartbeat in {age / 3600:.2f} hours"
        if age < -FUTURE_SECONDS:
            return f"vacd {role} heartbeat is {-age / 3600:.2f} hours in the future: was the clock set back?"
    return None


def _report(state: StateDir) -> dict[str, Any]:
    """Return the content of status.json; nothing if it can't be read."""
    try:
        found = json.loads(state.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _warning(state: StateDir, report: dict[str, Any], now: float, seconds: float) -> str | None:
    """Return the first that is wrong a little: a heartbeat older than the limit, or what status.json says, such as a
    machinetype that fails on this factory alone, an engine's problem, a pipe's, or why nothing can be created.
    """
    old = _old_heartbeat(state, seconds, now)
    if old is not None:
        return old
    try:
        troubles = [*report.get("warnings", [])]
        for kind in ("engines", "pipes"):
            troubles += [f"{name}: {trouble}" for name, trouble in report.get(kind, {}).items() if trouble]
        wanted = [one["target_share"] > 0 for one in report.get("machinetypes", [])]
        if report.get("guard_name") in _GUARDS:
            troubles.append(f"Nothing is created: {report.get('guard')}")
        elif wanted and not any(wanted):
            troubles.append("No machinetype has a share")
    except (TypeError, AttributeError, KeyError):
        return None
    return str(troubles[0]) if troubles else None


def _counts(state: StateDir) -> str:
    """Return machines and processors in words and as performance data; nothing if there are no counts."""
    words = (_first_line(state.counts) or "").split()
    if len(words) != 5:
        return ""
    running, slots, processors, total, hs06 = words
    performance = f"machines={running};;;0;{slots} processors={processors};;;0;{total} hs06={hs06};;;0"
    return f" ({running}/{slots} {processors}/{total}) | {performance}"


def _first_line(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as opened:
            return opened.readline(4096).strip() or None
    except OSError:
        return None
