"""Which packet filter rules keep guests from what they need, by what iptables-save and nft print."""

from __future__ import annotations

import pytest

from vac.host.nat_rules import missing_rules

LIBVIRT_NAT = """*nat
:POSTROUTING ACCEPT [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 169.254.0.0/16 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 169.254.0.0/16 ! -d 169.254.0.0/16 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 169.254.0.0/16 ! -d 169.254.0.0/16 -j MASQUERADE
COMMIT
"""
LIBVIRT_FILTER = """*filter
:INPUT {input} [0:0]
:FORWARD {forward} [0:0]
:OUTPUT ACCEPT [0:0]
:LIBVIRT_INP - [0:0]
:LIBVIRT_FWX - [0:0]
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWO - [0:0]
-A INPUT -j LIBVIRT_INP
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
{more}
-A LIBVIRT_FWI -d 169.254.0.0/16 -o virbr1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr1 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 169.254.0.0/16 -i virbr1 -j ACCEPT
-A LIBVIRT_FWO -i virbr1 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr1 -o virbr1 -j ACCEPT
-A LIBVIRT_INP -i virbr1 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr1 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr1 -p udp -m udp --dport 67 -j ACCEPT
COMMIT
"""
NFT_NAT = """table ip libvirt_network {
    chain forward {
        type filter hook forward priority filter; policy accept;
        jump guest_output
    }
    chain guest_output {
        ip saddr 169.254.0.0/16 iif "virbr1" counter packets 0 bytes 0 accept
    }
    chain guest_nat {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 169.254.0.0/16 ip daddr != 169.254.0.0/16 counter packets 0 bytes 0 masquerade
    }
}
"""
NFT_CLOSED = """table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname "lo" accept
        %s
    }
}
"""
RULES = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n"


def iptables(input_policy: str = "ACCEPT", forward: str = "ACCEPT", more: str = "") -> str:
    return LIBVIRT_NAT + LIBVIRT_FILTER.format(input=input_policy, forward=forward, more=more)


def words(problems: list[str]) -> list[str]:
    """What each is about."""
    return [" ".join(problem.split()[:3]) for problem in problems]


METADATA = ["tcp port 80"]
ALL_SERVICES = ["udp port 67", "udp port 53", "tcp port 80"]


@pytest.mark.parametrize(
    ("text", "nft", "missing"),
    [
        (None, None, []),
        (iptables(), None, []),
        (iptables(forward="DROP"), None, []),
        (iptables("DROP"), None, METADATA),
        (iptables("DROP", more=RULES), None, METADATA),
        (iptables("DROP", more=RULES + "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"), None, METADATA),
        (iptables("DROP", more="-A INPUT -i eth0 -p tcp -m tcp --dport 80 -j ACCEPT"), None, METADATA),
        (iptables("DROP", more="-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT"), None, []),
        (iptables("DROP", more="-A INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT"), None, []),
        (iptables("DROP", more="-A INPUT -i virbr1 -j ACCEPT"), None, []),
        (iptables("DROP", more="-A INPUT -s 169.254.0.0/16 -j ACCEPT"), None, []),
        (iptables(more=RULES + "-A INPUT -j REJECT --reject-with icmp-host-prohibited"), None, METADATA),
        (LIBVIRT_FILTER.format(input="ACCEPT", forward="ACCEPT", more=""), None, ["no rule masquerades"]),
        ("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\n", None, []),
        (
            "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n",
            None,
            ["no rule masquerades"],
        ),
        (LIBVIRT_NAT + "*filter\n:FORWARD DROP [0:0]\n", None, ["forwarding from virbr1"]),
        (LIBVIRT_NAT + "*filter\n:INPUT DROP [0:0]\n", None, ALL_SERVICES),
        (None, NFT_NAT, []),
        (None, "", ["no rule masquerades"]),
        (None, NFT_NAT + NFT_CLOSED % "tcp dport 22 accept", ALL_SERVICES),
        (None, NFT_NAT + NFT_CLOSED % 'iifname "virbr1" accept', []),
        (None, NFT_NAT + NFT_CLOSED % "tcp dport { 22, 80 } accept", ["udp port 67", "udp port 53"]),
        ("", NFT_NAT, []),
    ],
)
def test_what_is_missing_is_named(text: str | None, nft: str | None, missing: list[str]) -> None:
    assert words(missing_rules(text, nft)) == missing
