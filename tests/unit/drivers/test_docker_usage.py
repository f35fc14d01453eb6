"""Finding and reading the cgroups of containers, in the layouts of engines and kernels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vac.drivers.base import Usage
from vac.drivers.docker import usage as docker_usage
from vac.drivers.docker.usage import UsageMeter, parse_net_dev
from vac.host import connections
from vac.host.cgroups import EngineGroup, Mounts, find_engine_group

ID = "bc681720a870"
TABLES = Path(__file__).parents[2] / "data/proc_net"


@pytest.mark.parametrize(
    ("hierarchies", "path", "group"),
    [
        ("v1 v2", "docker/ID", "docker/ID"),
        ("v1", "vac.slice/docker-ID.scope", "vac.slice/docker-ID.scope"),
        ("v2", "vac.slice/docker-ID.scope", "vac.slice/docker-ID.scope"),
        ("v2", "vac.slice/docker-ID.scope/inner/deeper", "vac.slice/docker-ID.scope"),
        ("v2", "machine.slice/libpod-ID.scope/container", "machine.slice/libpod-ID.scope"),
        ("v1", "libpod_parent/libpod-ID", "libpod_parent/libpod-ID"),
    ],
)
def test_a_containers_group_is_found_in_every_layout(
    tmp_path: Path, hierarchies: str, path: str, group: str
) -> None:
    path, group = path.replace("ID", ID), group.replace("ID", ID)
    v1 = [f"3:cpu,cpuacct:/{path}", f"2:memory:/{path}"] if "v1" in hierarchies else []
    v2 = [f"0::/{path}"] if "v2" in hierarchies else []
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("\n".join([*v1, *v2, ""]))
    mounts = Mounts({"cpuacct": Path("/c/cpuacct"), "memory": Path("/c/memory")}, Path("/c/v2"))
    assert find_engine_group(7, ID, mounts, tmp_path) == EngineGroup(
        Path("/c/v2", group) if v2 else None,
        (Path("/c/cpuacct", group), Path("/c/memory", group)) if v1 else None,
    )


def test_a_process_that_is_not_the_containers_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/user.slice/session-1.scope\n")
    assert find_engine_group(7, ID, Mounts({}, Path("/c/v2")), tmp_path) is None
    with pytest.raises(FileNotFoundError):
        find_engine_group(8, ID, Mounts({}, Path("/c/v2")), tmp_path)
    meter = UsageMeter()
    meter.add(ID, os.getpid(), own_network=False)
    assert not meter.knows(ID)
    assert meter.read([ID]) == {}
    meter.close()


def test_usage_is_read_from_v1_and_v2_and_none_when_the_group_is_gone(tmp_path: Path) -> None:
    (tmp_path / "cpuacct.usage").write_text("1500000000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("100\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text("200\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (tmp_path / "memory.current").write_text("300\n")
    usages = [
        EngineGroup(None, (tmp_path, tmp_path)).usage(),
        EngineGroup(tmp_path, None).usage(),
    ]
    found = [(each.cpu_seconds, each.memory_bytes, each.peak_memory_bytes) for each in usages if each]
    assert found == [(1.5, 100, 200), (2.5, 300, None)]
    gone = tmp_path / "gone"
    assert EngineGroup(gone, None).usage() is EngineGroup(None, (gone, gone)).usage() is None


def test_network_bytes_are_those_of_all_interfaces_but_lo() -> None:
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo:     999       2    0    0    0     0          0         0      999       0    0    0\n"
        "  eth0:     200       2    0    0    0     0          0         0       30       0    0    0\n"
        "  eth1:1000       2    0    0    0     0          0         0        4       0    0    0\n"
    )
    assert parse_net_dev(text) == (1200, 34)


@pytest.mark.parametrize(
    ("own_network", "addresses"),
    [(True, {"10.0.2.10", "192.168.0.2", "192.168.0.3", "2001:db8::1", "8.8.8.8"}), (False, {"192.168.0.2"})],
)
def test_contacts_are_the_name_spaces_or_those_of_the_containers_own_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_network: bool, addresses: set[str]
) -> None:
    for directory in (tmp_path / "net", tmp_path / "7/net"):
        shutil.copytree(TABLES, directory)
    (tmp_path / "7/cgroup").write_text(f"0::/docker/{ID}\n")
    (tmp_path / "7/fd").mkdir()
    (tmp_path / "7/fd/3").symlink_to("socket:[13]")
    (tmp_path / "cgroup.procs").write_text("7\n")
    monkeypatch.setattr(docker_usage, "PROC", tmp_path)
    monkeypatch.setattr(connections, "PROC", tmp_path)
    monkeypatch.setattr(docker_usage, "find_engine_group", lambda *_: EngineGroup(tmp_path, None))
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    meter = UsageMeter()
    meter.add(ID, 7, own_network)
    assert {contact.address for contact in meter.contacts()[ID]} == addresses
    (tmp_path / "7/cgroup").write_text("0::/another\n")
    assert not own_network or meter.contacts() == {}, "the number has been given to another process"
    meter.close()


def test_a_container_that_was_never_seen_has_no_usage() -> None:
    meter = UsageMeter()
    assert meter.read(["x"]).get("x", Usage()) == Usage()
    meter.close()
    meter.close()
