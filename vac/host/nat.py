"""The VMs' NAT network on this host: its bridge's addresses, name server, packet filter rules, and names in /etc/hosts.

Programs of this host are asked: iproute2's `ip`, `iptables-save`, `nft`. Of the rules only those are checked that
sites' firewalls get wrong; libvirt makes the others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vac.host.child_processes import Finished, run

NETWORK = "169.254.0.0/16"
BRIDGE = "virbr1"
HOSTS_FILE = Path("/etc/hosts")
HOSTS_MARK = "# added by Vac"
_IN_PLACE = frozenset([errno.EBUSY, errno.EXDEV])
"""Errors of replacing a file that is mounted, as in containers: it can only be written."""
PROGRAM_SECONDS = 20.0
_TEXT = r'"(?:\\.|[^"\\])*"'
_FOR_PEOPLE = re.compile(rf"--(comment|log-prefix) ({_TEXT}|\S+)|\b(comment|log prefix) {_TEXT}")
_MASQUERADES = re.compile(r"\b(MASQUERADE|SNAT|masquerade|snat)\b")
_LEADS_TO = re.compile(r"(?:-[jg]|\bjump|\bgoto) ([^\s,}]+)")
_ACCEPTS = re.compile(r"\b(ACCEPT|accept)\b")
_CLOSES = re.compile(
    r"(-A \S+ )?( *-m comment|counter( packets \d+ bytes \d+)?)* *(-j )?(DROP|REJECT|drop|reject)\b"
)
_OTHERS = re.compile(
    r"\bicmp|\bip6 |ct ?status|-p udp|\budp dport|state (vmap|(\{ ?)?(RELATED|ESTABLISHED|INVALID))",
    re.IGNORECASE,
)
"""Conditions that a VM's first TCP packet doesn't meet."""
_NEGATED = re.compile(r"! (-p|--ctstate|--state) \S+")
_CONDITION = re.compile(
    r"(?P<not>! )?(?P<name>-[iods]|--dports?|(?:iif|oif)(?:name)?|saddr|daddr|dport)"
    r" (?P<differs>!= )?(?!vmap)(?P<values>\{[^}]*\}|\S+)"
)


class NatProblem(ValueError):
    """Reason why the VMs' network can't be used, and what a site can do, for people."""


@dataclass(frozen=True)
class NatHost:
    """This host, or for tests a network namespace of it."""

    enter: tuple[str, ...] = ()
    """Words before each command."""
    hosts_file: Path = HOSTS_FILE

    def addresses(self) -> list[str] | None:
        """Return the bridge's IPv4 addresses; None if there is no such interface. Raises NatProblem."""
        done = self._run("ip", "-4", "-json", "address", "show", "dev", BRIDGE)
        if done.exit_code is None:
            raise NatProblem(done.failure)
        if done.failure:
            return None
        found = json.loads(done.text or "[]")
        return [address["local"] for link in found for address in link.get("addr_info", ())]

    def add_address(self, address: str) -> None:
        """Give the bridge an address. Raises NatProblem."""
        self._do("ip", "address", "replace", f"{address}/32", "dev", BRIDGE)

    def attach(self, tap: str) -> None:
        """Connect a VM's interface to the bridge. Raises NatProblem."""
        self._do("ip", "link", "set", "dev", tap, "master", BRIDGE, "up")

    def serves_names(self, address: str) -> bool:
        """Tell if a name server listens at this address."""
        number = "".join(f"{int(byte):02X}" for byte in reversed(address.split(".")))
        return f" {number}:0035 " in (self._output("cat", "/proc/net/udp") or "")

    def missing(self) -> list[str]:
        """Return what keeps VMs from the services that they need, as far as can be seen, with what to do."""
        missing = missing_rules(self._output("iptables-save"), self._output("nft", "list", "ruleset"))
        if (self._output("cat", "/proc/sys/net/ipv4/ip_forward") or "").strip() != "1":
            missing.insert(0, "net.ipv4.ip_forward is 0: set it to 1")
        return missing

    def _output(self, *command: str) -> str | None:
        """Return the program's output, None if it isn't there or fails."""
        done = self._run(*command)
        return done.text if not done.failure else None

    def _do(self, *command: str) -> None:
        done = self._run(*command)
        if done.failure:
            raise NatProblem(f"{' '.join(command)}: {done.failure}")

    def _run(self, *command: str) -> Finished:
        return run([*self.enter, *command], time_limit_seconds=PROGRAM_SECONDS)


@dataclass
class _Chain:
    hook: str = ""
    """Of the kernel's own chains."""
    closed: bool = False
    """True if it drops or rejects packets that none of its rules mentions."""
    rules: list[str] = field(default_factory=list)


_Table = dict[str, _Chain]


def missing_rules(iptables: str | None, nft: str | None) -> list[str]:
    """Return the rules that guests lack, each with what to do: masquerading, forwarding, and input to port 80.

    iptables is the output of iptables-save, nft that of `nft list ruleset`; None where there is none. A chain of the
    kernel that is closed needs a rule, there or in a chain that it leads to, that accepts what comes from the bridge.
    Conditions other than interfaces, addresses and ports, such as marks, are taken as met.
    """
    if iptables is None and nft is None:
        return []
    tables = _tables(iptables or "", nft or "")
    missing = []
    chains = [(table, name) for table, name, _ in _hooked(tables, "postrouting")]
    if not any(_has_rule(table, name, _MASQUERADES) for table, name in chains):
        missing.append(f"no rule masquerades {NETWORK}: VMs can't reach the outside; restart libvirtd")
    outside = f"forwarding from {BRIDGE} isn't accepted: VMs can't reach the outside; restart libvirtd"
    pages = f"tcp port 80 isn't accepted from {BRIDGE}: VMs can't use the factory's metadata and features; accept it"
    for hook, port, problem in (("forward", None, outside), ("input", 80, pages)):
        closed = [(table, name) for table, name, chain in _hooked(tables, hook) if chain.closed]
        if not all(_has_rule(table, name, _ACCEPTS, port) for table, name in closed):
            missing.append(problem)
    return missing


def _tables(iptables: str, nft: str) -> list[_Table]:
    nft = re.sub(r",\s*\n\s*", ", ", nft)  # sets may take several lines
    nft = "".join(re.findall(r"^table (?:ip|inet) .*?^\}", nft, re.MULTILINE | re.DOTALL))
    tables: list[_Table] = []
    chain = _Chain()
    for line in (_FOR_PEOPLE.sub("", line.strip()) for line in f"{iptables}\n{nft}".splitlines()):
        if line.startswith(("*", "table ")):
            tables.append({})
        elif found := re.match(r":(\S+) (\S+)|chain (\S+) ", line):
            chain = tables[-1][found[1] or found[3]] = _Chain()
            if found[1] and found[2] != "-":
                chain.hook, chain.closed = found[1].lower(), found[2] == "DROP"
        elif found := re.match(r"type \S+ hook (\S+) .*?(?:policy (\S+);)?$", line):
            chain.hook, chain.closed = found[1], found[2] == "drop"
        elif line and tables:
            appended = re.match(r"-A (\S+) (.*)", line)
            where = tables[-1].setdefault(appended[1], _Chain()) if appended else chain
            where.rules.append(appended[2] if appended else line)
            where.closed |= bool(_CLOSES.match(where.rules[-1]))
    return tables


def _hooked(tables: list[_Table], hook: str) -> list[tuple[_Table, str, _Chain]]:
    return [(table, name, chain) for table in tables for name, chain in table.items() if chain.hook == hook]


def _has_rule(table: _Table, name: str, wanted: re.Pattern[str], port: int | None = None) -> bool:
    """Tell if this chain, or one that it leads to, has such a rule for guests."""
    names = [name]
    for each in names:
        for rule in table[each].rules:
            if _is_for_guests(rule, port):
                if wanted.search(rule):
                    return True
                names += [to for to in _LEADS_TO.findall(rule) if to in table and to not in names]
    return False


def _is_for_guests(rule: str, port: int | None = None) -> bool:
    """Tell if the rule's conditions hold for a VM's first packet: to the outside, or to this port of the factory."""
    if _OTHERS.search(_NEGATED.sub("", rule)):
        return False
    for found in _CONDITION.finditer(rule):
        values = re.findall(r'[^\s,"{}]+', found["values"])
        name, negated = found["name"], bool(found["not"] or found["differs"])
        if name in ("-i", "iif", "iifname"):
            holds = any(map(_is_bridge, values))
        elif name in ("-o", "oif", "oifname"):
            holds = negated != (port is None and (negated or not any(map(_is_bridge, values))))
        elif name in ("-s", "saddr"):
            holds = any(value.startswith("169.254.") for value in values)
        elif name in ("-d", "daddr"):
            holds = port is not None and any(value.startswith("169.254.169.") for value in values)
        else:
            holds = port is not None and any(_has_port(value, port) for value in values)
        if holds == negated:
            return False
    return True


def _is_bridge(name: str) -> bool:
    if name[0] in "@$":  # a set or variable that it may be in
        return True
    return BRIDGE.startswith(name[:-1]) if name[-1] in "+*" else name == BRIDGE


def _has_port(value: str, port: int) -> bool:
    ends = re.split("[:-]", value)
    return all(end.isdecimal() for end in ends) and int(ends[0]) <= port <= int(ends[-1])


def hosts_line(address: str, name: str) -> str:
    """Return the line of /etc/hosts for one machine; name is its full host name."""
    short = name.partition(".")[0]
    return f"{address} {short} {name} {HOSTS_MARK}" if short != name else f"{address} {name} {HOSTS_MARK}"


def update_hosts(lines: Iterable[str], path: Path = HOSTS_FILE) -> None:
    """Give the file these lines of ours, at its end, and no others; those that aren't ours stay. Raises OSError.

    It is replaced as a whole, keeping its mode and owner, unless that would change nothing.
    """
    path = path.resolve()
    content, mode, owner = b"", 0o644, (-1, -1)
    with contextlib.suppress(FileNotFoundError):
        content, found = path.read_bytes(), path.stat()
        mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
    present = content.splitlines(keepends=True)
    others = b"".join(line for line in present if not line.rstrip().endswith(HOSTS_MARK.encode()))
    if others and not others.endswith(b"\n"):
        others += b"\n"
    wanted = others + "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    if wanted == content:
        return
    fresh = path.with_name(f".{path.name}.vac-{os.getpid()}")
    try:
        fresh.write_bytes(wanted)
        os.chown(fresh, *owner)
        fresh.chmod(mode)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if error.errno not in _IN_PLACE:
            raise
        path.write_bytes(wanted)
