"""What the host's /proc and /etc say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vac.host.measures import Measures, connected_networks, measure, os_issue

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth1\t0000000A\t010200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0
virbr1\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
ROUTES_V6 = "\n".join(
    f"{address} {length} {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 {flags} {interface:>8}"
    for address, length, flags, interface in (
        ("20010db8000000000000000000000000", "40", "00000001", "eth0"),
        ("fe800000000000000000000000000000", "40", "00000001", "eth0"),
        ("00000000000000000000000000000000", "00", "00000003", "eth0"),
        ("20010db8000100000000000000000000", "40", "00000003", "eth0"),
        ("20010db8000000000000000000000002", "80", "80200001", "eth0"),
        ("00000000000000000000000000000001", "80", "80200001", "lo"),
        ("ff000000000000000000000000000000", "08", "00000001", "eth0"),
    )
)


def test_connected_networks_are_those_without_a_gateway_and_not_link_local(tmp_path: Path) -> None:
    assert connected_networks(tmp_path) == ()
    (tmp_path / "route").write_text(ROUTES)
    (tmp_path / "ipv6_route").write_text(ROUTES_V6)
    assert [str(network) for network in connected_networks(tmp_path)] == ["192.0.2.0/24", "2001:db8::/64"]


def test_the_kernels_figures_are_read(tmp_path: Path) -> None:
    for name, content in {
        "proc/meminfo": "MemTotal: 100 kB\nMemFree: 30 kB\nSwapTotal: 50 kB\nSwapFree: 45 kB\nHugePages_Total: 0\n",
        "proc/loadavg": "0.01 0.02 0.03 1/100 5\n",
        "proc/stat": "cpu 1 2\nbtime 1795224437\n",
        "etc/os-release": 'NAME="X"\nPRETTY_NAME="X Linux 9"\n',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = measure(tmp_path, tmp_path)
    assert (found.memory_total_kb, found.memory_used_kb) == (100, 70)
    assert (found.swap_used_kb, found.swap_free_kb) == (5, 45)
    assert (found.load_average, found.boot_time, found.os_issue) == (0.03, 1795224437, "X Linux 9")
    assert found.root_avail_kb > 0


def test_what_can_not_be_read_is_0(tmp_path: Path) -> None:
    found = measure(tmp_path / "none", tmp_path / "none")
    assert found == Measures(kernel_version=os.uname().release, os_issue=os.uname().release)


@pytest.mark.parametrize(
    ("files", "issue"),
    [
        ({"os-release": "PRETTY_NAME='A B'\n", "redhat-release": "EL 9\nmore\n"}, "EL 9"),
        ({"redhat-release": "EL 9\n", "redhat-release.vac": "Site's 9\n"}, "Site's 9"),
        ({"redhat-release": "\n", "os-release": "PRETTY_NAME=Plain\n"}, "Plain"),
        ({}, ""),
    ],
)
def test_the_systems_name_is_the_first_that_there_is(
    tmp_path: Path, files: dict[str, str], issue: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert os_issue(tmp_path) == issue
