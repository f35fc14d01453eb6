"""What the kernel has of the VMs' NAT network: addresses of its bridge, packet filter rules, name server.

Programs of this host are asked: iproute2's `ip`, `iptables-save`, `nft`.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vac.host.hosts_file import FULL_HOSTS
from vac.host.nat_rules import Lacks, missing_rules
from vac.host.rule_match import BRIDGE

PROGRAM_SECONDS = 20.0


class NatProblem(Exception):
    """A program that is needed isn't there or fails; the text is for people."""


@dataclass(frozen=True)
class NatHost:
    """This host, or for tests a network name space of it."""

    enter: tuple[str, ...] = ()
    """Words before each command."""
    hosts_file: Path = FULL_HOSTS

    def addresses(self) -> list[str] | None:
        """The bridge's IPv4 addresses; None if there is no such interface. Raises NatProblem."""
        done = self._run("ip", "-4", "-json", "address", "show", "dev", BRIDGE)
        if done.returncode != 0:
            return None
        found = json.loads(done.stdout or "[]")
        return [address["local"] for link in found for address in link.get("addr_info", ())]

    def add_address(self, address: str) -> None:
        """Give the bridge an address. Raises NatProblem."""
        self._do("ip", "address", "replace", f"{address}/32", "dev", BRIDGE)

    def attach(self, tap: str) -> None:
        """Connect a VM's interface to the bridge. Raises NatProblem."""
        self._do("ip", "link", "set", "dev", tap, "master", BRIDGE, "up")

    def serves_names(self, address: str) -> bool:
        """Does a name server listen at this address?"""
        number = "".join(f"{int(byte):02X}" for byte in reversed(address.split(".")))
        return f" {number}:0035 " in (self._output("cat", "/proc/net/udp") or "")

    def forwards(self) -> bool:
        """Does the kernel forward packets?"""
        return (self._output("cat", "/proc/sys/net/ipv4/ip_forward") or "").strip() == "1"

    def missing(self) -> list[str]:
        """What keeps VMs from the services that they need, as far as can be seen."""
        return self.lacks().missing

    def lacks(self) -> Lacks:
        """The same, with what perhaps does."""
        lacks = missing_rules(self._output("iptables-save"), self._output("nft", "list", "ruleset"))
        if not self.forwards():
            lacks.missing.insert(0, "net.ipv4.ip_forward is 0: set it to 1")
        return lacks

    def _output(self, *command: str) -> str | None:
        """None if it isn't there or fails."""
        try:
            done = self._run(*command)
        except NatProblem:
            return None
        return done.stdout if done.returncode == 0 else None

    def _do(self, *command: str) -> None:
        done = self._run(*command)
        if done.returncode != 0:
            raise NatProblem(f"{' '.join(command)}: {done.stderr.strip()}")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self.enter, *command],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROGRAM_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise NatProblem(f"{command[0]} is not installed") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise NatProblem(f"{' '.join(command)}: {error}") from error
