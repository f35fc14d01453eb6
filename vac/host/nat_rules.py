"""What packet filter rules let VMs do, judged by what `iptables-save` and `nft list ruleset` print.

Judged is what can be without tracing packets: there has to be masquerading, and where a chain of the kernel's ends
in dropping or rejecting, something it leads to has to accept what comes from the bridge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vac.host.rule_match import BRIDGE, NETWORK, Packet, Verdict, matches

_SERVICES = (
    ("udp", 67, "factory's DHCP"),
    ("udp", 53, "factory's name server"),
    ("tcp", 80, "factory's metadata and features"),
)
_LEADS_TO = re.compile(r"(?:-[jg]|\bjump|\bgoto) ([^\s,}]+)")
_ACCEPTS = re.compile(r"-j ACCEPT\b|\baccept\b")
_MASQUERADES = re.compile(r"-j (?:MASQUERADE|SNAT)\b|\b(?:masquerade|snat)\b")
_FOR_PEOPLE = re.compile(
    r' (?:--comment|--log-prefix) [^\s"]+| (?:--comment|--log-prefix|comment|log prefix) "(?:[^"\\]|\\.)*"'
)


@dataclass
class Chain:
    """One chain of rules; hook and policy only of those that the kernel calls itself."""

    hook: str = ""
    policy: str = "accept"
    rules: list[str] = field(default_factory=list)


Table = dict[str, Chain]


class Lacks(NamedTuple):
    """What guests need and rules don't give them, each with what to do."""

    missing: list[str]
    doubtful: list[str]
    """What rules may give, or not: they have conditions that aren't understood."""


def missing_rules(iptables: str | None, nft: str | None) -> Lacks:
    """What guests lack.

    iptables is the output of iptables-save, nft that of `nft list ruleset`; None where there is none.
    """
    lacks = Lacks([], [])
    if iptables is None and nft is None:
        return lacks
    tables = [*_iptables_tables(iptables or ""), *_nft_tables(nft or "")]
    masquerading = [
        _best(table, name, _MASQUERADES, Packet()) for table, name, _ in _hooked(tables, "postrouting")
    ]
    _judge(
        max(masquerading, default=Verdict.NO),
        f"no rule masquerades {NETWORK}: VMs can't reach the outside; restart libvirtd",
        lacks,
    )
    for table, name, chain in _hooked(tables, "forward"):
        if _is_closed(chain):
            problem = (
                f"forwarding from {BRIDGE} isn't accepted: VMs can't reach the outside; restart libvirtd"
            )
            _judge(_best(table, name, _ACCEPTS, Packet()), problem, lacks)
    for table, name, chain in _hooked(tables, "input"):
        if _is_closed(chain):
            for protocol, port, what in _SERVICES:
                problem = f"{protocol} port {port} isn't accepted from {BRIDGE}: VMs can't use the {what}; accept it"
                _judge(_best(table, name, _ACCEPTS, Packet(protocol, port)), problem, lacks)
    return lacks


def _judge(verdict: Verdict, problem: str, lacks: Lacks) -> None:
    if verdict is Verdict.NO and problem not in lacks.missing:
        lacks.missing.append(problem)
    if verdict is Verdict.MAYBE:
        text = f"some rules aren't understood; if none of them helps, {problem}"
        lacks.doubtful.extend([text] if text not in lacks.doubtful else [])


def _iptables_tables(text: str) -> Iterator[Table]:
    for part in text.split("*")[1:]:
        table: Table = {}
        for line in part.splitlines():
            words = line.split(None, 2)
            if line.startswith(":"):
                hook = words[0][1:].lower() if words[1] != "-" else ""
                table[words[0][1:]] = Chain(hook, words[1].lower())
            elif line.startswith("-A ") and words[1] in table:
                table[words[1]].rules.append(_FOR_PEOPLE.sub("", f" {words[2]}"))
        yield table


def _nft_tables(text: str) -> Iterator[Table]:
    text = re.sub(r",\s*\n\s*", ", ", text)  # sets may take several lines
    for part in re.split(r"^table ", text, flags=re.MULTILINE)[1:]:
        if part.split(None, 1)[0] not in ("ip", "inet"):
            continue
        table: Table = {}
        chain = Chain()
        for line in map(str.strip, part.splitlines()):
            base = re.match(r"type \S+ hook (\S+) .*?(?:policy (\S+);)?$", line)
            if line.startswith("chain "):
                chain = table[line.split()[1]] = Chain()
            elif base:
                chain.hook, chain.policy = base[1], base[2] or "accept"
            elif line:
                chain.rules.append(_FOR_PEOPLE.sub("", f" {line}").strip())
        yield table


def _hooked(tables: list[Table], hook: str) -> Iterator[tuple[Table, str, Chain]]:
    """The kernel's chains of this hook."""
    for table in tables:
        for name, chain in table.items():
            if chain.hook == hook:
                yield table, name, chain


def _best(table: Table, name: str, wanted: re.Pattern[str], packet: Packet) -> Verdict:
    """Does a rule of the chain, or of those that it leads the packet to, do what is wanted with it?"""
    best, todo = Verdict.NO, [(name, Verdict.YES)]
    seen = set(todo)
    for chain, led in todo:
        for rule in table[chain].rules:
            verdict = min(led, matches(rule, packet))
            if verdict is Verdict.NO:
                continue
            if wanted.search(rule):
                best = max(best, verdict)
            leads_to: set[tuple[str, Verdict]] = {
                (one, verdict) for one in _LEADS_TO.findall(rule) if one in table
            }
            todo += leads_to - seen
            seen |= leads_to
    return best


def _is_closed(chain: Chain) -> bool:
    """Does it drop or reject packets that none of its rules mentions?"""
    plain = re.compile(r"( -m \S+| --ctstate \S+)* -j (DROP|REJECT)\b|(counter .*\d )?(drop|reject)\b")
    return chain.policy == "drop" or any(plain.match(rule) for rule in chain.rules)
