"""`check-vacd`: a Nagios check that needs no configuration and no rights, and starts fast.

It imports the standard library, the layout of state_dir and the format of its restarts file, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from vac.machines.layout import StateDir, disk_problem
from vac.roles import crash_loop

OK, WARNING, CRITICAL = 0, 1, 2
DEFAULT_SECONDS = 600
_GUARDS = ("health", "disk", "engines")
"""Reasons against creating anything (guard_name) that are somebody's to mend."""
DEFAULT_STATE_DIR = Path("/var/lib/vac")


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line; return the exit status for Nagios: 0 ok, 1 warning, 2 critical."""
    arguments = make_parser().parse_args(argv)
    status, line = check(StateDir(arguments.state_dir), arguments.seconds, time.time())
    print(line)
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog="check-vacd",
        description="Nagios check: check that vacd's factory and responder work without errors.",
    )
    parser.add_argument(
        "seconds",
        nargs="?",
        type=float,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help=f"greatest age of a heartbeat (default {DEFAULT_SECONDS})",
    )
    parser.add_argument(
        "--state-dir", type=Path, default=DEFAULT_STATE_DIR, help=f"default {DEFAULT_STATE_DIR}"
    )
    return parser


def check(state: StateDir, seconds: float, now: float) -> tuple[int, str]:
    """Return exit status and line. Heartbeats may be `seconds` old at the time now (Unix seconds)."""
    status, text = CRITICAL, _problem(state, seconds, now)
    if text is None:
        status, text = WARNING, _warning(state)
    if text is None:
        status, text = OK, "Factory + responder ok"
    return status, text.replace("|", "/") + _counts(state)


def _problem(state: StateDir, seconds: float, now: float) -> str | None:
    problem = disk_problem(state.root)
    if problem is not None:
        return problem
    for role in ("factory", "responder"):
        try:
            age = now - state.heartbeat(role).stat().st_mtime
        except OSError:
            return f"No vacd {role} heartbeat file"
        if age > seconds:
            return f"No vacd {role} heartbeat in {age / 3600:.2f} hours"
    return crash_loop(state.root, now) or _first_line(state.factory_error)


def _warning(state: StateDir) -> str | None:
    """Return the first that status.json says to be wrong: a warning, such as a machinetype that fails on this factory
    alone, an engine's problem, a pipe's, or what keeps everything from being created.
    """
    try:
        status = json.loads(state.status.read_text(encoding="utf-8"))
        troubles = [*status.get("warnings", [])]
        for kind in ("engines", "pipes"):
            troubles += [f"{name}: {trouble}" for name, trouble in status.get(kind, {}).items() if trouble]
        if status.get("guard_name") in _GUARDS:
            troubles.append(f"Nothing is created: {status.get('guard')}")
    except (OSError, ValueError, TypeError, AttributeError):
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
