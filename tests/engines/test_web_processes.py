"""The two web processes as they are in service: addresses that come and go, and rights that they haven't."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_root, require_tool
from tests.unit.state_dirs import machinetype_of, new_machine, new_state
from vac.host.privileges import READ_ANY_FILE, unprivileged_user
from vac.machines.creation import Access
from vac.machines.layout import StateDir, slot_address, slot_name

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
FACTORY = "node1.example.org"
METADATA, MJF = "169.254.169.254", "169.254.169.253"
PATIENCE_SECONDS = 60
CLIENT = """
import http.client, json, sys
for line in sys.stdin:
    source, host, method, path, body = json.loads(line)
    try:
        connection = http.client.HTTPConnection(host, 80, 60, source_address=(source, 0))
        connection.request(method, path, body)
        reply = connection.getresponse()
        print(json.dumps([reply.status, reply.read().decode("latin-1")]), flush=True)
        connection.close()
    except OSError as error:
        print(json.dumps([0, str(error)]), flush=True)
"""


class Host:
    """A network of its own with both processes in it, and a client that has any address."""

    def __init__(self, directory: Path) -> None:
        self.state: StateDir = new_state(directory)
        for number in range(2):
            name, address = slot_name(FACTORY, number), slot_address(number)
            content = b"secret of %d" % number
            machinetype = machinetype_of(machine_model="vm-raw")
            new_machine(
                self.state, machinetype, name=name, ip=address, user_data=content, access=Access()
            ).directory.chmod(0o755)
        self.config = directory / "vac.conf"
        self.configure(FACTORY)
        self.keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        while Path(f"/proc/{self.keeper.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.01)
        self.ip("link", "set", "lo", "up")
        self.client = subprocess.Popen(
            self.inside(sys.executable, "-c", CLIENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def configure(self, factory_name: str) -> None:
        self.config.write_text(
            f"[settings]\nvac_space = vac01.example.org\nfactory_name = {factory_name}\n"
            f"state_dir = {self.state.root}\n"
        )

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "--net", f"--target={self.keeper.pid}", *command]

    def ip(self, *words: str) -> None:
        subprocess.run(self.inside("ip", *words), check=True, timeout=PATIENCE_SECONDS)

    def addresses(self, verb: str) -> None:
        for address in (METADATA, MJF, "169.254.169.0", "169.254.169.1"):
            self.ip("addr", verb, f"{address}/32", "dev", "lo")

    def start(self, role: str) -> None:
        command = [sys.executable, "-m", "vac.daemon", "--role", role, "--config", str(self.config)]
        log = (self.state.root / f"{role}.log").open("ab")
        with log:
            self.processes[role] = subprocess.Popen(
                self.inside(*command),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.wait_for_line(role, "serving at")

    def wait_for_line(self, role: str, text: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        log = self.state.root / f"{role}.log"
        while text not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            assert self.processes[role].poll() is None, log.read_text()
            time.sleep(0.05)

    def ask(
        self, host: str, path: str, method: str = "GET", body: str | None = None, source: int = 0
    ) -> tuple[int, str]:
        assert self.client.stdin
        assert self.client.stdout
        self.client.stdin.write(json.dumps([slot_address(source), host, method, path, body]) + "\n")
        self.client.stdin.flush()
        status, content = json.loads(self.client.stdout.readline())
        return status, content

    def line(self, role: str, name: str) -> list[str]:
        for line in Path(f"/proc/{self.processes[role].pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1:]
        return []

    def close(self) -> None:
        running: list[subprocess.Popen[Any]] = [*self.processes.values(), self.client, self.keeper]
        for process in running:
            process.kill()
            process.wait()
        for pipe in (self.client.stdin, self.client.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@pytest.fixture
def host() -> Iterator[Host]:
    require_root()
    for tool in ("unshare", "nsenter", "ip"):
        require_tool(tool)
    with tempfile.TemporaryDirectory(prefix="vac-web-") as directory:  # pytest's are for root alone
        Path(directory).chmod(0o755)
        with contextlib.closing(Host(Path(directory))) as host:
            yield host


def test_machines_are_served_without_rights_wherever_the_addresses_come_from(host: Host) -> None:
    user = unprivileged_user()
    assert user is not None
    for role in ("metadata", "mjf"):
        host.start(role)
        assert host.line(role, "Uid") == [str(user.pw_uid)] * 4
        assert host.line(role, "Groups") == []
        assert int(host.state.pid(role).read_text()) == host.processes[role].pid
    assert int(host.line("metadata", "CapEff")[0], 16) in [1 << number for number in READ_ANY_FILE]
    assert host.line("metadata", "CapPrm") == host.line("metadata", "CapEff")
    assert host.line("metadata", "NoNewPrivs") == ["1"]
    assert host.line("mjf", "CapPrm") == ["0000000000000000"]

    for _ in range(2):  # the network comes, goes and comes again
        host.addresses("add")
        assert host.ask(METADATA, "/latest/user-data") == (200, "secret of 0")
        assert host.ask(METADATA, "/latest/user-data", source=1) == (200, "secret of 1")
        assert host.ask(MJF, "/machinefeatures/total_cpu") == (200, "1")
        assert host.ask(MJF, "/joboutputs/heartbeat", "PUT", "alive")[0] == 201
        host.addresses("del")
        assert host.ask(METADATA, "/latest/user-data")[0] == 0
    outputs = [path / "joboutputs" for path in host.state.machines.iterdir()]
    assert sorted(path.read_text() for one in outputs for path in one.iterdir()) == ["alive"]
    for role, process in host.processes.items():
        before = host.state.heartbeat(role).stat().st_mtime_ns
        end = time.monotonic() + PATIENCE_SECONDS
        while host.state.heartbeat(role).stat().st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


def test_a_process_that_serves_the_wrong_factory_ends_to_be_started_anew(host: Host) -> None:
    host.start("metadata")
    host.configure("node2.example.org")
    assert host.processes["metadata"].wait(PATIENCE_SECONDS) == 0


def test_a_taken_port_is_told(host: Host) -> None:
    program = "import socket; s = socket.create_server(('', 80)); print(flush=True); input()"
    other = subprocess.Popen(
        host.inside(sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout
        other.stdout.readline()
        command = [sys.executable, "-m", "vac.daemon", "--role", "mjf", "--config", str(host.config)]
        done = subprocess.run(
            host.inside(*command), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        other.kill()
    assert done.returncode == 1
    assert "169.254.169.253:80 can't be listened at: Address already in use" in done.stderr
