"""Hosts of our own on this one: each with its host name, /etc/hosts and network, all joined by one switch.

Each is a process that holds its namespaces. It ends with the pipe from this process, so that nothing is left even
if this process is killed: with the last process in them the namespaces go, and their interfaces.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SWITCH = 'ip link add switch type bridge && ip link set switch up && echo ready && exec cat "$@"'
HOST = """
name=$1 hosts=$2
shift 2
hostname "$name" && mount --bind "$hosts" /etc/hosts && ip link set lo up && echo ready && exec cat "$@"
"""


class Namespaces:
    """Namespaces and the process that holds them."""

    def __init__(self, kinds: Sequence[str], script: str, *arguments: str) -> None:
        command = ["unshare", *(f"--{kind}" for kind in kinds), "sh", "-c", script, "sh", *arguments]
        self._kinds = kinds
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", f"no namespaces: {' '.join(command)}"

    @property
    def pid(self) -> int:
        """The holder's."""
        return self._holder.pid

    def inside(self, *command: str) -> list[str]:
        """The command line that runs the command in here."""
        return ["nsenter", f"--target={self.pid}", *(f"--{kind}" for kind in self._kinds), "--", *command]

    def run(self, *command: str) -> None:
        """Run a command in here; it has to succeed."""
        subprocess.run(self.inside(*command), check=True, timeout=300)

    def close(self) -> None:
        """Let go of them."""
        self._holder.communicate(timeout=300)


class Network:
    """Hosts and the switch between them."""

    def __init__(self, hosts_file: Path, addresses: Mapping[str, str]) -> None:
        """addresses: by full host name, IPv4 addresses of one /24. hosts_file is written, for all to see."""
        lines = [f"{address} {name} {name.partition('.')[0]}" for name, address in addresses.items()]
        hosts_file.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        self.hosts: dict[str, Namespaces] = {}
        self._switch = Namespaces(["net"], SWITCH)
        self._ports: dict[str, str] = {}
        try:
            for name, address in addresses.items():
                self._add(name, address, hosts_file)
        except BaseException:
            self.close()
            raise

    def _add(self, name: str, address: str, hosts_file: Path) -> None:
        host = self.hosts[name] = Namespaces(["net", "uts", "mount"], HOST, name, str(hosts_file))
        self.connect(name, address, host.pid)

    def connect(self, name: str, address: str, pid: int) -> None:
        """Give the network namespace of a process a cable to the switch, as eth0."""
        port = self._ports[name] = f"port{len(self._ports)}"
        self._switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._switch.run("ip", "link", "set", port, "master", "switch", "up")
        inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
        subprocess.run([*inside, "address", "add", f"{address}/24", "dev", "eth0"], check=True, timeout=300)
        subprocess.run([*inside, "link", "set", "eth0", "up"], check=True, timeout=300)

    def cut_off(self, name: str) -> None:
        """Pull the host's cable."""
        self._switch.run("ip", "link", "set", self._ports[name], "down")

    def rejoin(self, name: str) -> None:
        """Plug it in again."""
        self._switch.run("ip", "link", "set", self._ports[name], "up")

    def close(self) -> None:
        """All hosts and the switch go."""
        for namespaces in (*self.hosts.values(), self._switch):
            namespaces.close()
