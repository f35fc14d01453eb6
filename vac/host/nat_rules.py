"""What packet filter rules let VMs do, judged by what `iptables-save` and `nft list ruleset` print.

Judged is what can be without tracing packets: there has to be masquerading, and where a chain of the kernel's ends
in dropping or rejecting, something it leads to has to accept what comes from the bridge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

NETWORK = "169.254.0.0/16"
BRIDGE = "virbr1"
_SERVICES = (
    ("udp", 67, "factory's DHCP"),
    ("udp", 53, "factory's name server"),
    ("tcp", 80, "factory's metadata and features"),
)
_LEADS_TO = re.compile(r"(?:-[jg]|\bjump|\bgoto) (\S+)")
_NOT_FIRST = re.compile(r"RELATED|established| -o |oif")
"""Of rules for other packets than a guest's first one, or for its way out."""


@dataclass
class Chain:
    """One chain of rules; hook and policy only of those that the kernel calls itself."""

    hook: str = ""
    policy: str = "accept"
    rules: list[str] = field(default_factory=list)


Table = dict[str, Chain]


def missing_rules(iptables: str | None, nft: str | None) -> list[str]:
    """What guests need and rules don't give them, each with what to do.

    iptables is the output of iptables-save, nft that of `nft list ruleset`; None where there is none.
    """
    if iptables is None and nft is None:
        return []
    tables = [*_iptables_tables(iptables or ""), *_nft_tables(nft or "")]
    problems = []
    if not any(_is_masquerade(rule) for _, rules in _hooked(tables, "postrouting") for rule in rules):
        problems.append(f"no rule masquerades {NETWORK}: VMs can't reach the outside; restart libvirtd")
    for chain, rules in _hooked(tables, "forward"):
        if _is_closed(chain) and not any(_opens(rule) for rule in rules):
            problems.append(
                f"forwarding from {BRIDGE} isn't accepted: VMs can't reach the outside; restart libvirtd"
            )
    for chain, rules in _hooked(tables, "input"):
        if _is_closed(chain):
            problems += [
                f"{protocol} port {port} isn't accepted from {BRIDGE}: VMs can't use the {what}; accept it"
                for protocol, port, what in _SERVICES
                if not any(_opens(rule, protocol, port) for rule in rules)
            ]
    return list(dict.fromkeys(problems))


def _iptables_tables(text: str) -> Iterator[Table]:
    for part in text.split("*")[1:]:
        table: Table = {}
        for line in part.splitlines():
            words = line.split(None, 2)
            if line.startswith(":"):
                hook = words[0][1:].lower() if words[1] != "-" else ""
                table[words[0][1:]] = Chain(hook, words[1].lower())
            elif line.startswith("-A ") and words[1] in table:
                table[words[1]].rules.append(f" {words[2]}")
        yield table


def _nft_tables(text: str) -> Iterator[Table]:
    for part in re.split(r"^table ", text, flags=re.MULTILINE)[1:]:
        table: Table = {}
        chain = Chain()
        for line in map(str.strip, part.splitlines()):
            base = re.match(r"type \S+ hook (\S+) .*?(?:policy (\S+);)?$", line)
            if line.startswith("chain "):
                chain = table[line.split()[1]] = Chain()
            elif base:
                chain.hook, chain.policy = base[1], base[2] or "accept"
            elif line:
                chain.rules.append(line)
        yield table


def _hooked(tables: list[Table], hook: str) -> Iterator[tuple[Chain, list[str]]]:
    """The kernel's chains of this hook, each with its rules and those of all chains that it leads to."""
    for table in tables:
        for name, chain in table.items():
            if chain.hook == hook:
                names, rules = [name], []
                for each in names:
                    rules += table[each].rules
                    targets = [found for rule in table[each].rules for found in _LEADS_TO.findall(rule)]
                    names += dict.fromkeys(one for one in targets if one in table and one not in names)
                yield chain, rules


def _is_closed(chain: Chain) -> bool:
    """Does it drop or reject packets that none of its rules mentions?"""
    plain = re.compile(r"( -m \S+| --ctstate \S+)* -j (DROP|REJECT)\b|(counter .*\d )?(drop|reject)\b")
    return chain.policy == "drop" or any(plain.match(rule) for rule in chain.rules)


def _is_masquerade(rule: str) -> bool:
    if not re.search(r"-j (MASQUERADE|SNAT)\b|\b(masquerade|snat)\b", rule):
        return False
    return NETWORK in rule or not re.search(r" -s |saddr", rule)


def _opens(rule: str, protocol: str = "", port: int | None = None) -> bool:
    """Does it accept packets from the bridge to this port, or all of them where no port is given?"""
    if not re.search(r"-j ACCEPT|\baccept$", rule):
        return False
    if _NOT_FIRST.search(rule) if port is not None else re.search(r"RELATED|established", rule):
        return False
    interface = re.search(r'(?:-i|iif|iifname) "?([^\s"]+)"?', rule)
    source = re.search(r"(?:-s|saddr) (\S+)", rule)
    if (interface and interface[1] != BRIDGE) or (source and source[1] != NETWORK):
        return False
    ports = re.search(r"--dports? (\S+)|\bdport (\{[^}]*\}|\S+)", rule)
    if ports:
        return str(port) in re.findall(r"\d+", ports[0]) and protocol in rule
    return bool(interface or source) and not re.search(r"-p |icmp|ip protocol", rule)
