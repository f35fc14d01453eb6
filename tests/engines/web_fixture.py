"""The two web processes in a network of its own, and a client in it that has any address."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import unmount_below
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.unit.state_dirs import machinetype_of, new_machine, new_state
from vac.config.settings import Settings
from vac.machines.layout import StateDir, slot_address, slot_name
from vac.machines.machine import Machine

ROOT = Path(__file__).parents[2]
SHORT = f"n{secrets.token_hex(3)}"
"""A name of this process's own: libvirt names cgroups of the host's after machines."""
FACTORY = f"{SHORT}.example.org"
PATIENCE_SECONDS = 300.0
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


def settings_for(engine: PrivateLibvirt, host_processors: int) -> Settings:
    """Return the settings of a factory that has VMs on this hypervisor."""
    return Settings(
        vac_space="vac01.example.org",
        factory_name=FACTORY,
        host_processors=host_processors,
        libvirt_uri=engine.uri,
        vm_domain_type="qemu",
    )


class WebSite:
    """A factory's state directory with two VMs, and what serves it. enter: words before each command."""

    def __init__(self, directory: Path, enter: Sequence[str], user_data: Sequence[bytes]) -> None:
        self.state: StateDir = new_state(directory)
        self.enter = [*enter]
        self.machines = [self._machine(number, content) for number, content in enumerate(user_data)]
        self.config = directory / "vac.conf"
        self.configure(FACTORY)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client: subprocess.Popen[str] | None = None

    def _machine(self, number: int, user_data: bytes) -> Machine:
        return new_machine(
            self.state,
            machinetype_of(machine_model="vm-raw"),
            name=slot_name(FACTORY, number),
            uuid=str(uuid.uuid4()),
            ip=slot_address(number),
            user_data=user_data,
        )

    def configure(self, factory_name: str, more: str = "") -> None:
        """Write the configuration; more goes to its end, where [settings] still are."""
        self.config.write_text(
            f"[settings]\nvac_space = vac01.example.org\nfactory_name = {factory_name}\n"
            f"state_dir = {self.state.root}\n{more}"
        )

    def inside(self, *command: str) -> list[str]:
        """The words of a command that runs in the network."""
        return [*self.enter, *command]

    def start(self, role: str) -> None:
        """Start one of the processes and wait until it serves."""
        self._start(role, "--role", role)
        self.wait_for_line(role, "serving at")

    def start_vacd(self) -> None:
        """Start all of vacd."""
        self._start("vacd")

    def _start(self, name: str, *words: str) -> None:
        command = self.inside(sys.executable, "-m", "vac.daemon", *words, "--config", str(self.config))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.state.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        self.processes[name] = process

    def log(self, name: str) -> str:
        """Return a process's log."""
        return (self.state.root / f"{name}.log").read_text()

    def wait_for_line(self, role: str, text: str) -> None:
        """Wait until the process has logged this."""
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.log(role):
            assert time.monotonic() < end, self.log(role)
            assert self.processes[role].poll() is None, self.log(role)
            time.sleep(0.05)

    def ask(
        self, host: str, path: str, method: str = "GET", body: str | None = None, source: int = 0
    ) -> tuple[int, str]:
        """A request from a slot's address."""
        if self.client is None:
            command = self.inside(sys.executable, "-c", CLIENT)
            self.client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.client.stdin
        assert self.client.stdout
        self.client.stdin.write(json.dumps([slot_address(source), host, method, path, body]) + "\n")
        self.client.stdin.flush()
        status, content = json.loads(self.client.stdout.readline())
        return status, content

    def line(self, role: str, name: str) -> list[str]:
        """The words of a line of the process' /proc/PID/status."""
        for line in Path(f"/proc/{self.processes[role].pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1:]
        return []

    def close(self) -> None:
        """End everything."""
        running: list[subprocess.Popen[Any]] = [*self.processes.values()]
        if self.client is not None:
            running.append(self.client)
        for process in running:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        unmount_below(self.state.root)
