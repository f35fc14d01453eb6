"""The VMs' network on this host: packet filter rules, and our lines in /etc/hosts."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.host import nat
from vac.host.nat import missing_rules

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
    """First words of each problem."""
    return [" ".join(problem.split()[:3]) for problem in problems]


METADATA = ["tcp port 80"]


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
        (LIBVIRT_NAT + "*filter\n:INPUT DROP [0:0]\n", None, METADATA),
        (None, NFT_NAT, []),
        (None, "", ["no rule masquerades"]),
        (None, NFT_NAT + NFT_CLOSED % "tcp dport 22 accept", METADATA),
        (None, NFT_NAT + NFT_CLOSED % 'iifname "virbr1" accept', []),
        (None, NFT_NAT + NFT_CLOSED % "tcp dport { 22, 80 } accept", []),
        ("", NFT_NAT, []),
        (None, NFT_NAT + (NFT_CLOSED % "").replace("table inet", "table ip6"), []),
    ],
)
def test_what_is_missing_is_named(text: str | None, nft: str | None, missing: list[str]) -> None:
    assert words(missing_rules(text, nft)) == missing


FILTER = LIBVIRT_NAT + "*filter\n:INPUT DROP [0:0]\n:VMS - [0:0]\n"


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        ("-i virbr+ -j ACCEPT", []),
        ("-i vnet+ -j ACCEPT", METADATA),
        ("! -i eth0 -j ACCEPT", []),
        ("! -i virbr1 -j ACCEPT", METADATA),
        ("! -i virbr+ -j ACCEPT", METADATA),
        ("-s 169.254.0.0/15 -j ACCEPT", []),
        ("! -s 10.0.0.0/8 -j ACCEPT", []),
        ("-s 10.0.0.0/8 -j ACCEPT", METADATA),
        ("! -s 169.254.0.0/16 -j ACCEPT", METADATA),
        ("-j ACCEPT", []),
        ('-m comment --comment "accept nothing -i eth0" -j ACCEPT', []),
        ("-i virbr1 -p udp -j ACCEPT", METADATA),
        ("-i virbr1 ! -p udp -j ACCEPT", []),
        ("-i virbr1 -m conntrack --ctstate NEW -j ACCEPT", []),
        ("-i virbr1 -m conntrack ! --ctstate INVALID -j ACCEPT", []),
        ("-i virbr1 -m conntrack --ctstatus DNAT -j ACCEPT", METADATA),
        ("-p udp -m udp --dport 53:67 -j ACCEPT", METADATA),
        ("-p udp -m multiport --dports 22,60:70 -j ACCEPT", METADATA),
        ("-p tcp -m tcp ! --dport 22 -j ACCEPT", []),
        ("-i virbr1 -d 169.254.169.0/24 -j ACCEPT", []),
        ("-i virbr1 -d 10.1.2.3/32 -j ACCEPT", METADATA),
        ("-i virbr1 -p icmp -j ACCEPT", METADATA),
        ("-i virbr1 -j VMS|VMS -j ACCEPT", []),
        ("-i eth0 -j VMS|VMS -j ACCEPT", METADATA),
        ("! -i eth0 -g VMS|VMS -p tcp -m tcp --dport 80 -j ACCEPT", []),
        ('-i virbr1 -j LOG --log-prefix "accept "', METADATA),
    ],
)
def test_iptables_rules_are_read_with_their_conditions(rules: str, missing: list[str]) -> None:
    lines = [f"-A {rule}" if rule.startswith("VMS") else f"-A INPUT {rule}" for rule in rules.split("|")]
    found = missing_rules(FILTER + "\n".join(lines), None)
    assert words(found) == missing


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ('iifname { "virbr1", "lo" } accept', []),
        ('iifname { "eth0", "lo" } accept', METADATA),
        ('iifname "virbr*" counter packets 5 bytes 300 accept', []),
        ('iifname != "eth0" accept', []),
        ('iifname != { "eth0", "virbr1" } accept', METADATA),
        ('meta iifname "virbr1" accept comment "drop nothing"', []),
        ('iif "virbr1" ct state new accept', []),
        ("ip saddr { 10.0.0.0/8, 169.254.0.0/16 } accept", []),
        ("ip saddr != 10.0.0.0/8 accept", []),
        ("ip6 saddr fe80::/64 accept", METADATA),
        ('iifname "virbr1" udp dport { 53, 67-68 } accept', METADATA),
        ('iifname "virbr1" udp dport { 53,\n        67 } accept', METADATA),
        ('iifname "virbr1" meta l4proto { tcp, udp } th dport { 53, 67, 80 } accept', []),
        ("ct status dnat accept", METADATA),
        ("meta l4proto { icmp, ipv6-icmp } accept", METADATA),
        ("ct state vmap { established : accept, related : accept, invalid : drop }", METADATA),
        ('log prefix "no accept " drop', METADATA),
    ],
)
def test_nft_rules_are_read_with_sets_wildcards_and_negation(rule: str, missing: list[str]) -> None:
    found = missing_rules(None, NFT_NAT + NFT_CLOSED % rule)
    assert words(found) == missing


@pytest.mark.parametrize(
    ("text", "nft"),
    [
        (FILTER + "-A INPUT -m set --match-set vms src -j ACCEPT", None),
        (FILTER + "-A INPUT -i virbr1 -m mark --mark 0x1 -j VMS\n-A VMS -j ACCEPT", None),
        (FILTER + "-A INPUT -s 169.254.169.0/24 -j ACCEPT", None),
        (None, NFT_NAT + NFT_CLOSED % 'iifname vmap { "virbr1" : accept, "eth0" : drop }'),
        (None, NFT_NAT + NFT_CLOSED % "iifname @inside accept"),
        (None, NFT_NAT + NFT_CLOSED % "meta mark 0x00000001 accept"),
    ],
)
def test_conditions_that_are_not_checked_count_as_met(text: str | None, nft: str | None) -> None:
    assert missing_rules(text, nft) == []


WORDS = st.sampled_from(
    [
        *' ,{}"!@$*+',
        " -i ",
        " iifname ",
        " -s ",
        " ip saddr ",
        " --dports ",
        " tcp dport ",
        " vmap {",
        "accept",
    ]
)


@given(st.lists(WORDS | st.text(max_size=4), max_size=8).map("".join))
def test_any_text_is_a_rule_that_helps_or_not(rule: str) -> None:
    assert len(missing_rules(FILTER + f"-A INPUT {rule}", NFT_NAT + NFT_CLOSED % rule)) <= 3


def test_masquerading_for_others_only_does_not_count() -> None:
    postrouting = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING "
    others = ("! -s 169.254.0.0/16 -j MASQUERADE", "-s 10.0.0.0/8 -j MASQUERADE", "-o virbr1 -j MASQUERADE")
    for rule in others:
        assert words(missing_rules(postrouting + rule, None)) == ["no rule masquerades"]
    for rule in ("! -s 10.0.0.0/8 -j MASQUERADE", "! -o lo -j SNAT --to-source 192.0.2.1"):
        assert missing_rules(postrouting + rule, None) == []


THEIRS = "127.0.0.1 localhost\n# a comment \\ with %s\n\n::1 ip6-localhost"
LINES = [nat.hosts_line(f"169.254.169.{number}", f"node1-0{number}.example.org") for number in range(2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(THEIRS)
    path.chmod(0o640)
    return path


def test_a_line_has_short_and_full_name() -> None:
    assert LINES[0] == "169.254.169.0 node1-00 node1-00.example.org # added by Vac"


def test_ours_come_to_theirs_once_and_go_again(path: Path) -> None:
    nat.update_hosts(LINES, path)
    assert path.read_text() == THEIRS + "\n" + "".join(f"{line}\n" for line in LINES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    inode = path.stat().st_ino
    nat.update_hosts(LINES, path)
    assert path.stat().st_ino == inode
    nat.update_hosts(LINES[1:], path)
    nat.update_hosts([], path)
    assert path.read_text() == THEIRS + "\n"
    assert os.listdir(path.parent) == ["hosts"]  # noqa: PTH208


def test_strange_bytes_survive(path: Path) -> None:
    path.write_bytes(b"10.0.0.1 caf\xe9\r\n10.0.0.2 x # added by Vacuum\n")
    nat.update_hosts(LINES, path)
    nat.update_hosts([], path)
    assert path.read_bytes() == b"10.0.0.1 caf\xe9\r\n10.0.0.2 x # added by Vacuum\n"


def test_a_link_stays_a_link_and_a_missing_file_is_made(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to("elsewhere")
    nat.update_hosts(LINES, link)
    assert link.is_symlink()
    assert path.with_name("elsewhere").read_text().count("added by Vac") == 2


def test_a_file_that_is_mounted_is_written_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    nat.update_hosts(LINES, path)
    assert path.read_text().startswith(THEIRS)
    assert path.read_text().count("added by Vac") == 2
    assert os.listdir(path.parent) == ["hosts"]  # noqa: PTH208


def test_another_error_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        nat.update_hosts(LINES, path)
    assert path.read_text() == THEIRS
    assert os.listdir(path.parent) == ["hosts"]  # noqa: PTH208
