"""vacd with stand-ins for its roles, which tell a test by datagrams what happens to them.

The plan is JSON in the environment: `reports`, the path of the test's socket, for each role its behaviour,
and optionally `timing`, `stuck_seconds`, `orphan_seconds`, `state_dir` and `purposes`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vac.daemon import role_process, role_supervisor, supervisor
from vac.daemon.command import main as vacd
from vac.roles import EXIT_OTHER_AT_WORK, EXIT_TO_RESTART, Role, RoleOptions

PLAN = "VAC_TEST_PLAN"
NOBODY = 65534

logger = logging.getLogger("vac.standin")


class Reporter:
    """Tells the test; connected while the process still has the right to."""

    def __init__(self, role: str, path: str) -> None:
        self._role = role
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.connect(path)

    def __call__(self, event: str, **details: Any) -> None:
        report = {"role": self._role, "pid": os.getpid(), "event": event, **details}
        self._socket.send(json.dumps(report).encode())


def good(options: RoleOptions, report: Reporter) -> int:
    """Ready at once, ends when told to, logs when woken."""
    events: queue.Queue[str] = queue.Queue()
    options.listen(lambda: events.put("stop"), lambda: events.put("wake"))
    options.ready()
    if options.listening is not None:
        with options.listening.accept()[0] as connection:
            connection.sendall(b"%d" % os.getpid())
    report("ready", environ=dict(os.environ), configs=[str(path) for path in options.configs])
    while events.get() == "wake":
        logger.info("woken")
        report("woken")
    report("stopped")
    return 0


def unprivileged(options: RoleOptions, report: Reporter) -> int:
    """The same as a user who may not open log files."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    return good(options, report)


def ready_when_woken(options: RoleOptions, report: Reporter) -> int:
    """A role with a long first cycle."""
    stop = threading.Event()
    options.listen(stop.set, options.ready)
    report("running")
    stop.wait()
    return 0


def needing(options: RoleOptions, report: Reporter) -> int:
    """Each time it is woken it needs the role `web` for something else, at last for nothing."""
    plan = json.loads(os.environ[PLAN])
    stop, purposes = threading.Event(), iter(plan.get("purposes", ["this", "that", "that", ""]))

    def wake() -> None:
        options.need("web", next(purposes))
        report("said")

    options.listen(stop.set, wake)
    options.ready()
    report("ready")
    stop.wait()
    return 0


def lively(options: RoleOptions, report: Reporter) -> int:
    """Says all the time that it is alive."""
    stop = threading.Event()
    options.listen(stop.set, lambda: report("woken"))
    options.ready()
    report("ready")
    while not stop.wait(0.05):
        options.alive()
    return 0


def hanging(options: RoleOptions, report: Reporter) -> int:
    """A role that does nothing, not even when told to stop."""
    options.listen(lambda: report("told to stop"), lambda: None)
    options.ready()
    report("ready")
    threading.Event().wait()
    return 0


def failing(options: RoleOptions, report: Reporter) -> int:
    """A role with a bug, and hostile text in it."""
    report("failing")
    raise RuntimeError("a bug\n<6>vacd: all is well")


def superfluous(options: RoleOptions, report: Reporter) -> int:
    """Finds another at its work."""
    report("superfluous")
    return EXIT_OTHER_AT_WORK


def beginning_anew(options: RoleOptions, report: Reporter) -> int:
    """Ends since its configuration is another one."""
    report("beginning anew")
    return EXIT_TO_RESTART


def leaving(options: RoleOptions, report: Reporter) -> int:
    """A role with a child that lives until its standard input ends, when the test closes the FIFO."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with Path(os.environ["VAC_TEST_FIFO"]).open() as fifo, subprocess.Popen(command, stdin=fifo) as child:
        report("child", child=child.pid)
        return good(options, report)


BEHAVIOURS = {
    behaviour.__name__: behaviour
    for behaviour in (
        *(good, unprivileged, ready_when_woken, needing),
        *(lively, hanging, failing, superfluous, beginning_anew, leaving),
    )
}


def main(options: RoleOptions) -> int:
    """Run the role's behaviour."""
    plan = json.loads(os.environ[PLAN])
    role = sys.argv[sys.argv.index("--role") + 1]
    if "state_dir" in plan:
        options.uses(Path(plan["state_dir"]))
    return BEHAVIOURS[plan.get(role, "good")](options, Reporter(role, plan["reports"]))


def run(plan: Mapping[str, Any]) -> int:
    """vacd, or the role that --role names."""
    role_process.ORPHAN_SECONDS = plan.get("orphan_seconds", role_process.ORPHAN_SECONDS)
    for name, seconds in plan.get("timing", {}).items():
        module = supervisor if name == "log_check" else role_supervisor
        setattr(module, f"{name.upper()}_SECONDS", seconds)
    stuck_seconds = plan.get("stuck_seconds")
    roles = [
        Role("factory", __spec__.name, must_be_ready=True, stuck_seconds=stuck_seconds),
        Role("responder", __spec__.name, stuck_seconds=stuck_seconds),
        Role("web", __spec__.name, on_demand=True, listens="purposes" in plan),
    ]

    def command(role: Role, arguments: argparse.Namespace) -> list[str]:
        configs = [part for path in arguments.config for part in ("--config", str(path))]
        return [sys.executable, "-m", __spec__.name, "--role", role.name, *configs]

    return vacd(roles=roles, command=command)


if __name__ == "__main__":
    sys.exit(run(json.loads(os.environ[PLAN])))
