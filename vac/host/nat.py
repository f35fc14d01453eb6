"""What the kernel has of the VMs' NAT network: addresses of its bridge, packet filter rules, name server.

Programs of this host are asked: iproute2's `ip`, `iptables-save`, `nft`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vac.host.hosts_file import FULL_HOSTS

NETWORK = "169.254.0.0/16"
BRIDGE = "virbr1"
PROGRAM_SECONDS = 20.0


class NatProblem(Exception):
    """A program that is needed isn't there or fails; the text is for people."""


@dataclass(frozen=True)
class NatHost:
    """This host, or for tests a network name space of it."""

    enter: tuple[str, ...] = ()
    """Words before each command."""
    proc: Path = Path("/proc")
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
        return f" {number}:0035 " in (self.proc / "net" / "udp").read_text(encoding="ascii")

    def forwards(self) -> bool:
        """Does the kernel forward packets?"""
        return (self.proc / "sys/net/ipv4/ip_forward").read_text(encoding="ascii").strip() == "1"

    def missing(self) -> list[str]:
        """What keeps VMs from the services that they need, as far as can be seen."""
        try:
            problems = missing_rules(self._output("iptables-save"), self._output("nft", "list", "ruleset"))
            return problems if self.forwards() else ["net.ipv4.ip_forward is 0: set it to 1", *problems]
        except OSError:
            return []

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


def missing_rules(iptables: str | None, nft: str | None) -> list[str]:
    """What guests need and packet filter rules don't give them, each with what to do.

    iptables is the output of iptables-save, nft that of `nft list ruleset`; None where there is none.
    Judged is what can be judged without tracing packets: masquerading must be there; where a chain drops or
    rejects, there must be an acceptance for the bridge or the network.
    """
    if iptables is None and nft is None:
        return []
    rules = [line.strip() for line in f"{iptables or ''}\n{nft or ''}".splitlines()]
    problems = []
    if not any(_is_masquerade(rule) for rule in rules):
        problems.append(f"no rule masquerades {NETWORK}: VMs can't reach the outside; restart libvirtd")
    if _closed(rules, "FORWARD", "forward") and not any(
        _accepts(rule) and (f"-i {BRIDGE}" in rule or _is_ours_nft(rule)) and not _port(rule)
        for rule in rules
    ):
        problems.append(
            f"forwarding from {BRIDGE} isn't accepted: VMs can't reach the outside; restart libvirtd"
        )
    if _closed(rules, "INPUT", "input"):
        problems += [
            f"{protocol} port {port} isn't accepted from {BRIDGE}: VMs can't use the {what}; accept it"
            for protocol, port, what in _SERVICES
            if not any(_opens(rule, protocol, port) for rule in rules)
        ]
    return problems


_SERVICES = (
    ("udp", 67, "factory's DHCP"),
    ("udp", 53, "factory's name server"),
    ("tcp", 80, "factory's metadata and features"),
)
_ELSEWHERE = re.compile(r"RELATED|established|-A (FORWARD|OUTPUT|LIBVIRT_FW|LIBVIRT_OUT)| -o |oifname")
"""Of rules for other packets than a guest's first one to this host."""


def _is_masquerade(rule: str) -> bool:
    if not re.search(r"-j (MASQUERADE|SNAT)\b|\b(masquerade|snat)\b", rule):
        return False
    return NETWORK in rule or not re.search(r"(^| )-s |saddr", rule)


def _closed(rules: Sequence[str], chain: str, hook: str) -> bool:
    """Does the chain, or one with that hook, drop or reject packets that no rule of it mentions?"""
    if f":{chain} DROP " in "\n".join(rules):
        return True
    plain = re.compile(rf"-A {chain}( -m \S+| --ctstate \S+)* -j (DROP|REJECT)\b")
    if any(plain.match(rule) for rule in rules):
        return True
    inside = False
    for rule in rules:
        if rule.startswith("type ") and " hook " in rule:
            inside = f" hook {hook} " in rule
            if inside and "policy drop" in rule:
                return True
        elif rule.startswith(("chain ", "table ")):
            inside = False
        elif inside and re.match(r"(counter packets \d+ bytes \d+ |log .* )?(drop|reject)\b", rule):
            return True
    return False


def _accepts(rule: str) -> bool:
    return rule.endswith("-j ACCEPT") or bool(re.search(r"\baccept$", rule))


def _is_ours_nft(rule: str) -> bool:
    return f'iifname "{BRIDGE}"' in rule or f"ip saddr {NETWORK}" in rule


def _port(rule: str) -> str:
    found = re.search(r"--dports? (\S+)|\bdport (\{[^}]*\}|\S+)", rule)
    return (found[1] or found[2]) if found else ""


def _opens(rule: str, protocol: str, port: int) -> bool:
    """Does it accept packets to this port from the bridge, whatever else it accepts?"""
    if not _accepts(rule) or _ELSEWHERE.search(rule):
        return False
    interfaces = re.search(r'(?:-i |iifname )"?([^\s"]+)"?', rule)
    if interfaces and interfaces[1] != BRIDGE:
        return False
    source = re.search(r"(?:-s |saddr )(\S+)", rule)
    if source and source[1] != NETWORK:
        return False
    numbers = re.findall(r"\d+", _port(rule))
    if numbers:
        return str(port) in numbers and protocol in rule
    return bool(interfaces or source) and not re.search(r"-p |icmp|ip protocol", rule)
