"""The responder as the process that it is in service: without rights, and silent to strangers."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.unit.vacquery.recorded import FACTORY, SPACE, make_state
from vac.host.privileges import unprivileged_user
from vac.vacquery.messages import Kind, Query, encode_query
from vac.vacquery.responder import read_counters

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
STRANGER = "203.0.113.77"
CLIENT = """
import socket, subprocess, sys
stranger, port, query = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
outside.bind((stranger, 0))
inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
inside.settimeout(300)
outside.sendto(query, ("127.0.0.1", port))
inside.sendto(query, ("127.0.0.1", port))
answered = [inside.recvfrom(9000) for _ in range(8)]
outside.setblocking(False)
try:
    outside.recvfrom(9000)
except BlockingIOError:
    print("not a byte")
"""


class Service:
    """A responder process in a network of its own, in which the stranger's address is local."""

    def __init__(self, directory: Path) -> None:
        self.state = make_state(directory / "state")
        self.configuration = directory / "vac.conf"
        self.configuration.write_text(
            f"[settings]\nvac_space = {SPACE}\nfactory_name = {FACTORY}\nstate_dir = {self.state.root}\n"
            "vacquery_allow = 192.0.2.0/24\n"
        )
        setup = f'ip link set lo up && ip addr add {STRANGER}/32 dev lo && exec "$@"'
        command = [
            sys.executable,
            "-m",
            "vac.daemon",
            "--role",
            "responder",
            "--config",
            str(self.configuration),
        ]
        self.process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", setup, "sh", *command],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def wait_until_it_serves(self, user: pwd.struct_passwd) -> None:
        """Its socket is bound before it gives up its rights; what comes from then on is answered."""
        end = time.monotonic() + 300
        while self.line("Uid") != [str(user.pw_uid)] * 4:
            assert time.monotonic() < end, "the responder didn't start"
            assert self.process.poll() is None
            time.sleep(0.02)

    def ask(self, query: str) -> str:
        """Return the client's output after asking from a foreign address and then from loopback."""
        client = [sys.executable, "-c", CLIENT, STRANGER, "995", query]
        done = subprocess.run(
            ["nsenter", "--net", f"--target={self.process.pid}", *client],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
        )
        return done.stdout

    def line(self, name: str) -> list[str]:
        """The words of a line of the process' /proc/PID/status."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1:]
        return []


@pytest.fixture
def service() -> Iterator[Service]:
    require_root()
    for tool in ("unshare", "nsenter", "ip"):
        require_tool(tool)
    with tempfile.TemporaryDirectory(prefix="vac-responder-") as directory:  # pytest's are for root alone
        Path(directory).chmod(0o755)
        service = Service(Path(directory))
        yield service
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()


def test_it_serves_without_rights_and_ignores_foreign_addresses(service: Service) -> None:
    user = unprivileged_user()
    assert user is not None
    service.wait_until_it_serves(user)
    assert (service.line("Groups"), service.line("CapEff")) == ([], ["0000000000000000"])
    query = encode_query(Query(Kind.MACHINES, SPACE, "c" * 64), time.time()).decode()
    assert service.ask(query) == "not a byte\n"
    heartbeat = service.state.heartbeat("responder")
    before = heartbeat.stat().st_mtime_ns
    end = time.monotonic() + 300
    while read_counters(service.state).get("dropped: source not allowed") != 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert heartbeat.stat().st_mtime_ns > before
    assert int(service.state.pid("responder").read_text()) == service.process.pid
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(300) == 0
