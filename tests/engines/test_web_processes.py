"""The two web processes as they are in service: addresses that come and go, and rights that they haven't."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.engines.web_fixture import FACTORY, PATIENCE_SECONDS, ROOT, WebSite
from vac.host.privileges import READ_ANY_FILE, unprivileged_user
from vac.machines.slots import discard

pytestmark = pytest.mark.engine
METADATA, MJF = "169.254.169.254", "169.254.169.253"
HALF_BODIES = f"""
import socket
own = []
for size in (20, 20, 30):
    own.append(socket.create_connection(("{MJF}", 80), 60, source_address=("169.254.169.0", 0)))
    head = "PUT /joboutputs/x HTTP/1.1", "Expect: 100-continue", f"Content-Length: {{size << 20}}", "", ""
    own[-1].sendall("\\r\\n".join(head).encode())
    print(own[-1].recv(12).decode(), flush=True)
    if size == 20:
        own[-1].sendall(b"x" * (1 << 20))
input()
"""


class Host(WebSite):
    """In a network that has only the loopback interface."""

    def __init__(self, directory: Path) -> None:
        self.keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        while Path(f"/proc/{self.keeper.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.01)
        enter = ["nsenter", "--net", f"--target={self.keeper.pid}"]
        super().__init__(directory, enter, [b"secret of 0", b"secret of 1"])
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        subprocess.run(self.inside("ip", *words), check=True, timeout=PATIENCE_SECONDS)

    def addresses(self, verb: str) -> None:
        for address in (METADATA, MJF, "169.254.169.0", "169.254.169.1"):
            self.ip("addr", verb, f"{address}/32", "dev", "lo")

    def opened(self, role: str) -> list[str]:
        """Return the files that the process has open."""
        found = []
        for entry in Path(f"/proc/{self.processes[role].pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
        return found

    def close(self) -> None:
        super().close()
        self.keeper.kill()
        self.keeper.wait()


@pytest.fixture
def host() -> Iterator[Host]:
    require_root()
    for tool in ("unshare", "nsenter", "ip"):
        require_tool(tool)
    with tempfile.TemporaryDirectory(prefix="vac-web-") as directory:  # pytest's are for root alone
        Path(directory).chmod(0o755)
        with contextlib.closing(Host(Path(directory))) as host:
            yield host


def test_machines_are_served_without_rights(host: Host) -> None:
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


def test_bodies_under_way_are_few_and_lie_in_the_state_directory(host: Host) -> None:
    host.start("mjf")
    host.addresses("add")
    words = host.inside(sys.executable, "-c", HALF_BODIES)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout
        answers = [sender.stdout.readline().strip() for _ in range(3)]
        assert answers == ["HTTP/1.1 100", "HTTP/1.1 100", "HTTP/1.1 403"]
        assert host.ask(MJF, "/joboutputs/heartbeat", "PUT", "alive", source=1)[0] == 201
        end = time.monotonic() + PATIENCE_SECONDS
        while sum(path.startswith(f"{host.state.root}/mjf/") for path in host.opened("mjf")) < 2:
            assert time.monotonic() < end, host.opened("mjf")
            time.sleep(0.05)
        sender.kill()


def test_vacd_starts_them_once_a_type_of_vms_is_configured(host: Host) -> None:
    host.configure(
        FACTORY, "[machinetype c]\nmachine_model = bubblewrap\nroot_image = /none\nuser_data = none\n"
    )
    for machine in host.machines:
        discard(host.state, machine)
    files = host.state.machinetype_files("v")
    files.mkdir(parents=True)
    (files / "user_data").write_text("#!/bin/sh\n")
    host.start_vacd()
    host.wait_for_line("vacd", "factory is ready")
    assert "metadata" not in host.log("vacd")
    host.configure(
        FACTORY,
        f"libvirt_uri = qemu+unix:///system?socket={host.state.root}/none\n[machinetype v]\ntarget_share = 1\n"
        "machine_model = vm-raw\nroot_image = /none\nuser_data = user_data\n",
    )
    host.processes["vacd"].send_signal(signal.SIGUSR1)
    for role in ("metadata", "mjf"):
        host.wait_for_line("vacd", f"vacd-{role}")
        host.wait_for_line("vacd", f"{role} is ready")
    assert host.log("vacd").count("serving at") == 2
    host.processes["vacd"].send_signal(signal.SIGTERM)
    assert host.processes["vacd"].wait(PATIENCE_SECONDS) == 0


def test_they_are_restarted_for_another_factory_name(host: Host) -> None:
    for machine in host.machines:
        discard(host.state, machine)
    vms = (
        f"libvirt_uri = qemu+unix:///system?socket={host.state.root}/none\n[machinetype v]\ntarget_share = 1\n"
        "machine_model = vm-raw\nroot_image = /none\n"
    )
    host.configure(FACTORY, vms)
    host.start_vacd()
    for role in ("metadata", "mjf"):
        host.wait_for_line("vacd", f"{role} is ready")
    host.configure(f"other-{FACTORY}", vms)
    host.processes["vacd"].send_signal(signal.SIGHUP)
    for role in ("responder", "metadata", "mjf"):
        host.wait_for_line("vacd", f"{role}: restarting")
    host.processes["vacd"].send_signal(signal.SIGTERM)
    assert host.processes["vacd"].wait(PATIENCE_SECONDS) == 0


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
            host.inside(*command), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        other.kill()
    assert done.returncode == 1
    assert "can't listen at 169.254.169.253:80: Address already in use" in done.stderr
