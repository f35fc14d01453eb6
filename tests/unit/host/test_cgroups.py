"""Choice of cgroups and the content of their files, in directories of plain files."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.waiting import wait_for
from vac.host.cgroups import V1_CONTROLLERS as CONTROLLERS
from vac.host.cgroups import (
    CgroupError,
    GroupsV1,
    GroupsV2,
    Limits,
    Usage,
    find_mounts,
    machine_processes,
    open_groups,
)

GIB = 2**30
LIMITED = Limits(
    processors=4, memory_bytes=8 * GIB, memory_limit_bytes=16 * GIB, pids=16384, cpu_quota=400_000
)
UNLIMITED = Limits(processors=200, memory_bytes=8 * GIB, memory_limit_bytes=None, pids=16384)


def line(point: Path, kind: str, options: str) -> str:
    return f"30 24 0:26 / {point} rw,nosuid shared:9 - {kind} {kind} rw,{options}\n"


def v1_mounts(top: Path) -> str:
    for name in ("cpu,cpuacct", "memory", "pids", "systemd"):
        (top / name).mkdir(parents=True, exist_ok=True)
    names = {name: top / name for name in ("cpu,cpuacct", "memory", "pids")}
    lines = [line(path, "cgroup", options) for options, path in names.items()]
    return "".join([*lines, line(top / "systemd", "cgroup", "xattr,name=systemd")])


def v2_mount(top: Path, controllers: str) -> str:
    top.mkdir(parents=True, exist_ok=True)
    (top / "cgroup.controllers").write_text(controllers + "\n")
    return line(top, "cgroup2", "nsdelegate")


@pytest.mark.parametrize(
    ("v1", "controllers", "taken"),
    [
        (False, "cpuset cpu io memory pids", GroupsV2),
        (True, None, GroupsV1),
        (True, "hugetlb", GroupsV1),
        (True, "cpu memory pids", GroupsV2),
        (False, "", GroupsV2),
    ],
)
def test_v2_is_taken_if_it_controls_memory_or_there_is_no_v1(
    tmp_path: Path, v1: bool, controllers: str | None, taken: type
) -> None:
    text = v1_mounts(tmp_path / "v1") if v1 else ""
    text += v2_mount(tmp_path / "unified", controllers) if controllers is not None else ""
    (tmp_path / "mountinfo").write_text(line(tmp_path, "ext4", "discard") + text)
    assert type(open_groups("f1.example.com", tmp_path / "mountinfo")) is taken


def test_host_without_cgroups_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(line(tmp_path, "ext4", "discard"))
    with pytest.raises(CgroupError, match="no cgroups are mounted"):
        open_groups("f1.example.com", tmp_path / "mountinfo")


def test_missing_v1_hierarchies_are_named(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match="with pids is mounted"):
        GroupsV1(dict.fromkeys(("cpu", "cpuacct", "memory"), tmp_path), [], "f1.example.com")


def test_mount_points_with_blanks_are_understood(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(line(Path("/a\\040b"), "cgroup2", "nsdelegate"))
    assert find_mounts(tmp_path / "mountinfo").v2 == Path("/a b")


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (
            LIMITED,
            {
                "cpu.weight": "400",
                "cpu.max": "400000 100000",
                "memory.low": str(8 * GIB),
                "memory.max": str(16 * GIB),
                "pids.max": "16384",
            },
        ),
        (UNLIMITED, {"cpu.weight": "10000", "memory.max": "max"}),
    ],
)
def test_v2_limits(tmp_path: Path, limits: Limits, files: dict[str, str]) -> None:
    v2_mount(tmp_path, "cpuset cpu io memory pids")
    groups = GroupsV2(tmp_path, "f1.example.com")
    groups.create("m_u", limits)
    group = tmp_path / "vac/f1.example.com/m_u"
    assert {name: (group / name).read_text() for name in files} == files
    for each in (tmp_path, tmp_path / "vac", tmp_path / "vac/f1.example.com"):
        assert (each / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    for each in (tmp_path / "vac", tmp_path / "vac/f1.example.com"):
        assert (each / "memory.low").read_text() == "max", "or the kernel would protect no machine's memory"


def test_v2_without_controllers_sets_no_limits(tmp_path: Path) -> None:
    v2_mount(tmp_path, "hugetlb")
    groups = GroupsV2(tmp_path, "f1.example.com")
    groups.create("m_u", LIMITED)
    assert not list((tmp_path / "vac/f1.example.com/m_u").iterdir())


def test_v2_moves_the_delegated_groups_own_process_to_a_leaf(tmp_path: Path) -> None:
    v2_mount(tmp_path, "cpu memory pids")
    service = tmp_path / "vac.slice/vac-machines.service"
    service.mkdir(parents=True)
    (service / "cgroup.controllers").write_text("memory pids\n")
    (service / "cgroup.procs").write_text("4711\n")
    groups = GroupsV2(tmp_path, "f1.example.com")
    groups.create("m_u", LIMITED)
    assert groups.procs_files("m_u") == (service / "f1.example.com/m_u/cgroup.procs",)
    assert (service / "init/cgroup.procs").read_text() == "4711"
    assert (service / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert not (service / "memory.low").exists(), "that is systemd's to set"
    assert not (tmp_path / "vac").exists()


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (
            LIMITED,
            {
                "cpu,cpuacct/vac/f1/m_u/cpu.shares": "4096",
                "cpu,cpuacct/vac/f1/m_u/cpu.cfs_quota_us": "400000",
                "memory/vac/f1/m_u/memory.soft_limit_in_bytes": str(8 * GIB),
                "memory/vac/f1/m_u/memory.limit_in_bytes": str(16 * GIB),
                "pids/vac/f1/m_u/pids.max": "16384",
            },
        ),
        (UNLIMITED, {"cpu,cpuacct/vac/f1/m_u/cpu.shares": "204800"}),
    ],
)
def test_v1_limits(tmp_path: Path, limits: Limits, files: dict[str, str]) -> None:
    (tmp_path / "mountinfo").write_text(v1_mounts(tmp_path))
    groups = open_groups("f1", tmp_path / "mountinfo")
    groups.create("m_u", limits)
    assert {name: (tmp_path / name).read_text() for name in files} == files
    unlimited = limits.memory_limit_bytes is None
    assert (tmp_path / "memory/vac/f1/m_u/memory.limit_in_bytes").exists() is not unlimited
    entered = {str(each.relative_to(tmp_path)) for each in groups.procs_files("m_u")}
    assert entered == {f"{each}/vac/f1/m_u/cgroup.procs" for each in ("pids", "memory", "cpu,cpuacct")}


@pytest.mark.parametrize(
    ("version", "file", "text"),
    [
        ("v1", "memory/vac/f1/m_u/memory.memsw.limit_in_bytes", str(16 * GIB)),
        ("v2", "vac/f1/m_u/memory.swap.max", "0"),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("limits", [LIMITED, UNLIMITED])
def test_memory_limit_covers_swap_where_the_kernel_counts_that(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    file: str,
    text: str,
    counted: bool,
    limits: Limits,
) -> None:
    mounts = v1_mounts(tmp_path) if version == "v1" else v2_mount(tmp_path, "cpu memory pids")
    (tmp_path / "mountinfo").write_text(mounts)
    groups = open_groups("f1", tmp_path / "mountinfo")
    exists = Path.exists
    kernels = {tmp_path / file} if counted else set()
    monkeypatch.setattr(Path, "exists", lambda path: path in kernels or exists(path))
    groups.create("m_u", limits)
    monkeypatch.undo()
    limited = counted and limits.memory_limit_bytes is not None
    assert ((tmp_path / file).read_text() if (tmp_path / file).exists() else None) == (
        text if limited else None
    )


def test_v1_leaves_vacd_service_in_systemds_hierarchies_too(tmp_path: Path) -> None:
    text = v1_mounts(tmp_path) + v2_mount(tmp_path / "unified", "")
    (tmp_path / "mountinfo").write_text(text)
    for each in ("systemd", "unified", "memory"):
        (tmp_path / each / "vac.slice/vac-machines.service").mkdir(parents=True)
    groups = open_groups("f1", tmp_path / "mountinfo")
    groups.create("m_u", LIMITED)
    entered = [str(each.relative_to(tmp_path)) for each in groups.procs_files("m_u")]
    assert entered == [
        "pids/vac/f1/m_u/cgroup.procs",
        "memory/vac.slice/vac-machines.service/f1/m_u/cgroup.procs",
        "cpu,cpuacct/vac/f1/m_u/cgroup.procs",
        "systemd/vac.slice/vac-machines.service/f1/m_u/cgroup.procs",
        "unified/vac.slice/vac-machines.service/f1/m_u/cgroup.procs",
    ]


def test_a_machines_processes_are_found_by_its_uuid(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(v1_mounts(tmp_path) + v2_mount(tmp_path / "unified", ""))
    for group, processes in {"f1/a_u1": "7 8", "f2/b_u2": "9"}.items():
        (tmp_path / "pids/vac" / group).mkdir(parents=True)
        (tmp_path / "pids/vac" / group / "cgroup.procs").write_text(processes)
    assert machine_processes("u1", tmp_path / "mountinfo") == [7, 8]
    assert machine_processes("u2", tmp_path / "mountinfo") == [9]
    assert machine_processes("u3", tmp_path / "mountinfo") == []


def test_group_that_was_left_half_made_is_found_and_removed(tmp_path: Path) -> None:
    mounts = {controller: tmp_path / controller for controller in CONTROLLERS}
    groups = GroupsV1(mounts, [], "f1")
    (tmp_path / "pids/vac/f1/m_u").mkdir(parents=True)
    assert groups.names() == ["m_u"]
    groups.remove("m_u")
    assert groups.names() == []
    groups.remove_if_empty()
    assert not (tmp_path / "pids/vac").exists()


def test_usage_v1(tmp_path: Path) -> None:
    mounts = {controller: tmp_path / controller for controller in CONTROLLERS}
    for name, text in {
        "cpuacct/vac/f1/m_u/cpuacct.usage": "1500000000",
        "memory/vac/f1/m_u/memory.usage_in_bytes": "4096",
        "memory/vac/f1/m_u/memory.max_usage_in_bytes": "8192",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    groups = GroupsV1(mounts, [], "f1")
    assert groups.usage("m_u") == Usage(1.5, 4096, 8192)
    assert groups.usage("none") == Usage()


def test_usage_v2_without_memory_peak_of_older_kernels(tmp_path: Path) -> None:
    v2_mount(tmp_path, "cpu memory pids")
    group = tmp_path / "vac/f1/m_u"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
    (group / "memory.current").write_text("4096\n")
    groups = GroupsV2(tmp_path, "f1")
    assert groups.usage("m_u") == Usage(2.5, 4096)
    assert groups.usage("none") == Usage()


@pytest.mark.parametrize(("load", "busy"), [(1e6, 2), (0.0, None)], ids=["loaded", "idle"])
def test_tasks_that_the_load_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, busy: int | None
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    v2_mount(tmp_path, "cpu memory pids")
    groups = (GroupsV2(tmp_path, "f1"), GroupsV1(dict.fromkeys(CONTROLLERS, tmp_path), [], "f1"))
    over = threading.Event()
    sleeps = threading.Thread(target=over.wait)
    sleeps.start()
    stat = Path(f"/proc/{sleeps.native_id}/stat")
    wait_for(lambda: stat.read_text().split(") ")[1].startswith("S"), "it sleeps")
    for place in (tmp_path / "vac/f1/m_u", tmp_path / "vac/f1/m_u/inside"):
        place.mkdir(parents=True)
        for listing in ("cgroup.threads", "tasks"):
            (place / listing).write_text(f"{threading.get_native_id()}\n{sleeps.native_id}\n{2**22 + 1}\n")
    assert [each.usage("m_u").busy_tasks for each in groups] == [busy, busy]
    over.set()
    sleeps.join()


@pytest.mark.parametrize("failure", [errno.ENOENT, errno.ENODEV])
def test_usage_of_a_group_that_goes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    v2_mount(tmp_path / "v2", "cpu memory pids")
    two = GroupsV2(tmp_path / "v2", "f1")
    one = GroupsV1(dict.fromkeys(CONTROLLERS, tmp_path), [], "f1")

    def fail(path: Path) -> str:
        raise OSError(failure, "gone", str(path))

    monkeypatch.setattr(Path, "read_text", fail)
    assert one.usage("m_u") == two.usage("m_u") == Usage()


def test_factories_on_one_host_see_only_their_own_groups(tmp_path: Path) -> None:
    v2_mount(tmp_path, "cpu memory pids")
    one, two = GroupsV2(tmp_path, "f1"), GroupsV2(tmp_path, "f2")
    one.create("m_u", LIMITED)
    assert (one.names(), two.names()) == (["m_u"], [])


def test_group_of_the_same_name_is_refused(tmp_path: Path) -> None:
    v2_mount(tmp_path, "cpu memory pids")
    groups = GroupsV2(tmp_path, "f1")
    groups.create("m_u", LIMITED)
    with pytest.raises(CgroupError, match="m_u: File exists"):
        groups.create("m_u", LIMITED)
