"""Running vacd with stand-in roles, and waiting for what it and they say."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.standin import PLAN

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300.0


class Datagrams:
    """A socket that keeps what it receives until somebody waits for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE_SECONDS)

    def next(self) -> bytes:
        return self.socket.recv(65536)


class Vacd:
    """One vacd of one test."""

    def __init__(self, directory: Path, reports: Datagrams, notifications: Datagrams) -> None:
        self.directory = directory
        self.log_dir = directory / "log"
        self.log_dir.mkdir()
        self.notifications = notifications
        self.process: subprocess.Popen[bytes] | None = None
        self._pidfds: dict[int, int] = {}
        self._reports = reports
        self._kept: list[dict[str, Any]] = []

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.faults.standin", "--log-dir", str(self.log_dir), *arguments]

    def environment(self, factory: str, responder: str, plan: dict[str, Any]) -> dict[str, str]:
        plan = {"reports": str(self._reports.path), "factory": factory, "responder": responder, **plan}
        search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, PLAN: json.dumps(plan), "PYTHONPATH": search}

    def start(
        self,
        *arguments: str,
        factory: str = "good",
        responder: str = "good",
        environ: dict[str, str] | None = None,
        **plan: Any,
    ) -> None:
        environment = {**self.environment(factory, responder, plan), **(environ or {})}
        self.process = subprocess.Popen(self.command(*arguments), env=environment, cwd=ROOT)

    def wait_for(self, role: str, event: str) -> dict[str, Any]:
        """The first such report that nobody has waited for yet."""
        while True:
            for report in self._kept:
                if (report["role"], report["event"]) == (role, event):
                    self._kept.remove(report)
                    return report
            report = json.loads(self._reports.next())
            for name in {"pid", "child"} & set(report):
                self.own(report[name])
            self._kept.append(report)

    def wait_for_notification(self, text: str) -> list[str]:
        """The lines sent to the service manager up to one that begins with the text."""
        lines: list[str] = []
        while not any(line.startswith(text) for line in lines):
            lines += self.notifications.next().decode().split("\n")
        return lines

    def own(self, pid: int) -> None:
        """Remember a process that must not be left behind."""
        if pid not in self._pidfds:
            with contextlib.suppress(ProcessLookupError):
                self._pidfds[pid] = os.pidfd_open(pid)

    def kill_leftovers(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for pidfd in self._pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_SECONDS)

    def log(self, name: str = "vacd") -> str:
        return (self.log_dir / name).read_text()


def open_files(pid: int) -> list[str]:
    """Return what a process has open for longer than it takes to look."""
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    return targets


def wait_for_end(pidfd: int) -> None:
    """Wait until the process of a pidfd has ended, reaped or not."""
    ready, _, _ = select.select([pidfd], [], [], PATIENCE_SECONDS)
    assert ready, "the process still runs"


@pytest.fixture
def vacd(tmp_path: Path) -> Iterator[Vacd]:
    reports, notifications = Datagrams(tmp_path / "reports"), Datagrams(tmp_path / "notify")
    vacd = Vacd(tmp_path, reports, notifications)
    with reports.socket, notifications.socket:
        yield vacd
        vacd.kill_leftovers()
