"""Does a packet filter rule, as `iptables-save` or `nft list ruleset` prints it, take a guest's first packet?

Read are interfaces, addresses, protocols, ports and connection states, with sets, ranges, wildcards and negation. A
rule that has anything else in it may take the packet or not.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Callable

NETWORK = "169.254.0.0/16"
BRIDGE = "virbr1"
_GUESTS = IPv4Network(NETWORK)
_FACTORY = IPv4Network("169.254.169.252/30")
_CONDITION = re.compile(
    r"(?P<iptables_not>! )?(?P<option>-[iosdp]|--dports?|--ctstate|--state|--ctstatus) (?P<option_value>\S+)"
    r"|(?P<field>(?:meta )?(?:iifname|iif|oifname|oif|l4proto)|ip (?:saddr|daddr|protocol)|(?:tcp|udp|th) dport"
    r'|ct (?:state|status)) (?P<nft_not>!= )?(?P<field_value>\{[^}]*\}|"[^"]*"|\S+)'
)
_KINDS = {
    name: kind
    for kind, names in {
        "from": "-i iifname iif",
        "to": "-o oifname oif",
        "source": "-s saddr",
        "destination": "-d daddr",
        "protocol": "-p l4proto protocol",
        "port": "--dport --dports dport",
        "state": "--ctstate --state state",
        "status": "--ctstatus status",
    }.items()
    for name in names.split()
}
_TARGET = re.compile(r"-[jg] \S+|\b(?:accept|drop|reject|masquerade|snat|jump|goto|return)\b")
_MEANS_NOTHING = re.compile(
    r"-m (?:comment|tcp|udp|conntrack|state|multiport)\b|counter(?: packets \d+ bytes \d+)?|meta nfproto ipv4"
)
_OTHERS = re.compile(r"\bicmp|\bip6 |nfproto ipv6")
_VALUES_MAP = re.compile(r"(.*)\bvmap \{([^}]*)\}")


class Verdict(enum.IntEnum):
    """Whether a rule takes a packet; the least of several conditions counts."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True)
class Packet:
    """A guest's first packet: to the factory's port, or, without port, of any kind to the outside."""

    protocol: str = ""
    port: int | None = None


def matches(rule: str, packet: Packet) -> Verdict:
    """Does the rule, without comments, take it?"""
    mapped = _VALUES_MAP.search(rule)
    if mapped:
        for_others = "ct state" in mapped[1] and "new" not in mapped[2]
        return Verdict.NO if for_others else Verdict.MAYBE
    conditions = _TARGET.split(rule, maxsplit=1)[0]
    if _OTHERS.search(conditions):
        return Verdict.NO
    rest = _MEANS_NOTHING.sub("", _CONDITION.sub("", conditions))
    found = [Verdict.MAYBE if rest.strip() else Verdict.YES]
    for kind, negated, values in _conditions(conditions):
        verdict = _TESTS[kind](values, packet)
        if kind == "to" and negated:
            verdict = Verdict.NO if packet.port is not None else Verdict.YES
        elif negated:
            verdict = Verdict(Verdict.YES - verdict)
        found.append(verdict)
    return min(found)


def _conditions(text: str) -> Iterator[tuple[str, bool, Sequence[str]]]:
    for found in _CONDITION.finditer(text):
        negated = bool(found["iptables_not"] or found["nft_not"])
        values = re.findall(r'[^\s,"{}]+', found["option_value"] or found["field_value"])
        words = (found["option"] or found["field"]).split()
        if words[0] in ("tcp", "udp"):
            yield "protocol", False, words[:1]
        yield _KINDS[words[-1]], negated, values


def _any_of(test: Callable[[str, Packet], Verdict]) -> Callable[[Sequence[str], Packet], Verdict]:
    """One value of several has to be right; names of sets and variables tell nothing."""

    def tested(values: Sequence[str], packet: Packet) -> Verdict:
        verdicts = [Verdict.MAYBE if value[0] in "@$" else test(value, packet) for value in values]
        return max(verdicts, default=Verdict.MAYBE)

    return tested


def _is_bridge(name: str) -> bool:
    return BRIDGE.startswith(name[:-1]) if name[-1] in "+*" else name == BRIDGE


def _from(name: str, _: Packet) -> Verdict:
    return Verdict.YES if _is_bridge(name) else Verdict.NO


def _to(name: str, packet: Packet) -> Verdict:
    return Verdict.NO if packet.port is not None or _is_bridge(name) else Verdict.YES


def _source(value: str, _: Packet) -> Verdict:
    return _within(_GUESTS, value)


def _destination(value: str, packet: Packet) -> Verdict:
    return Verdict.NO if packet.port is None else _within(_FACTORY, value)


def _within(wanted: IPv4Network, value: str) -> Verdict:
    try:
        given = IPv4Network(value, strict=False)
    except ValueError:
        return Verdict.MAYBE
    if not given.overlaps(wanted):
        return Verdict.NO
    return Verdict.YES if given.supernet_of(wanted) else Verdict.MAYBE


def _protocol(value: str, packet: Packet) -> Verdict:
    return Verdict.YES if value in ("all", packet.protocol) else Verdict.NO


def _port(value: str, packet: Packet) -> Verdict:
    if packet.port is None:
        return Verdict.NO
    ends = re.split("[:-]", value)
    if not all(end.isdecimal() for end in ends):
        return Verdict.MAYBE
    return Verdict.YES if int(ends[0]) <= packet.port <= int(ends[-1]) else Verdict.NO


def _state(value: str, _: Packet) -> Verdict:
    return Verdict.YES if value.lower() == "new" else Verdict.NO


_TESTS: dict[str, Callable[[Sequence[str], Packet], Verdict]] = {
    "from": _any_of(_from),
    "to": _any_of(_to),
    "source": _any_of(_source),
    "destination": _any_of(_destination),
    "protocol": _any_of(_protocol),
    "port": _any_of(_port),
    "state": _any_of(_state),
    "status": lambda _values, _packet: Verdict.NO,
}
