"""What this host's kernel says of its state: disk, load, memory, release, directly connected networks.

All comes from statvfs and text files of /proc and /etc; what can't be read is 0 or empty.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Union

Network = Union[IPv4Network, IPv6Network]
_ROUTE_UP, _ROUTE_GATEWAY, _ROUTE_REJECT = 0x1, 0x2, 0x200


@dataclass(frozen=True)
class Measures:
    """The host at one moment. Sizes are in KB (1024 bytes), times Unix seconds."""

    root_avail_kb: int = 0
    root_avail_inodes: int = 0
    state_avail_kb: int = 0
    state_avail_inodes: int = 0
    load_average: float = 0.0
    """Over 15 minutes."""
    kernel_version: str = ""
    os_issue: str = ""
    boot_time: int = 0
    memory_total_kb: int = 0
    memory_used_kb: int = 0
    swap_used_kb: int = 0
    swap_free_kb: int = 0


def measure(state_dir: Path, root: Path = Path("/")) -> Measures:
    """Ask the kernel now. root: where /proc and /etc are found, for tests."""
    memory = _memory(root / "proc/meminfo")
    root_kb, root_inodes = _free(root)
    state_kb, state_inodes = _free(state_dir)
    kernel = os.uname().release
    load = _text(root / "proc/loadavg").split()
    return Measures(
        root_avail_kb=root_kb,
        root_avail_inodes=root_inodes,
        state_avail_kb=state_kb,
        state_avail_inodes=state_inodes,
        load_average=float(load[2]) if len(load) > 2 else 0.0,
        kernel_version=kernel,
        os_issue=os_issue(root / "etc") or kernel,
        boot_time=_boot_time(root / "proc/stat"),
        memory_total_kb=memory.get("MemTotal", 0),
        memory_used_kb=memory.get("MemTotal", 0) - memory.get("MemFree", 0),
        swap_used_kb=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        swap_free_kb=memory.get("SwapFree", 0),
    )


def os_issue(etc: Path = Path("/etc")) -> str:
    """First line of redhat-release.vac or redhat-release, else PRETTY_NAME of os-release, else nothing."""
    for name in ("redhat-release.vac", "redhat-release"):
        first = _text(etc / name).partition("\n")[0].strip()
        if first:
            return first
    found = re.search(r"^PRETTY_NAME=(.*)$", _text(etc / "os-release"), re.MULTILINE)
    return found.group(1).strip().strip("\"'") if found else ""


def connected_networks(net: Path = Path("/proc/net")) -> tuple[Network, ...]:
    """Networks that this host reaches without a gateway; link-local ones (also the VMs' own) are left out."""
    networks = [*_networks_v4(_text(net / "route")), *_networks_v6(_text(net / "ipv6_route"))]
    return tuple(dict.fromkeys(network for network in networks if not network.is_link_local))


def _networks_v4(routes: str) -> list[Network]:
    found: list[Network] = []
    for line in routes.splitlines()[1:]:
        columns = line.split()
        flags = int(columns[3], 16)
        address, mask = (socket.ntohl(int(columns[index], 16)) for index in (1, 7))
        if flags & _ROUTE_UP and not flags & (_ROUTE_GATEWAY | _ROUTE_REJECT) and mask:
            found.append(IPv4Network((IPv4Address(address & mask), f"{mask:b}".count("1"))))
    return found


def _networks_v6(routes: str) -> list[Network]:
    found: list[Network] = []
    for line in routes.splitlines():
        columns = line.split()
        address, length, flags = (
            IPv6Address(bytes.fromhex(columns[0])),
            int(columns[1], 16),
            int(columns[8], 16),
        )
        usable = flags & _ROUTE_UP and not flags & (_ROUTE_GATEWAY | _ROUTE_REJECT)
        if usable and 0 < length < 128 and columns[9] != "lo" and not address.is_multicast:
            found.append(IPv6Network((address, length), strict=False))
    return found


def _free(path: Path) -> tuple[int, int]:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0, 0
    return found.f_bavail * found.f_frsize // 1024, found.f_favail


def _memory(meminfo: Path) -> dict[str, int]:
    return {name: int(kb) for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", _text(meminfo), re.MULTILINE)}


def _boot_time(stat: Path) -> int:
    found = re.search(r"^btime (\d+)$", _text(stat), re.MULTILINE)
    return int(found.group(1)) if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
