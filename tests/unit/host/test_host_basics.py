"""Facts of this host: versions of files, mounts, energy, privileges, and the one way to run child processes."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import signal
import time
from pathlib import Path

import pytest

from vac.host import facts, filesystems, privileges
from vac.host.child_processes import Finished, run
from vac.host.facts import EnergyMeter, measure, os_issue
from vac.host.filesystems import Mount, mount_of, mounts, other_paths, parse_mounts, stamp_of

pytestmark = pytest.mark.allow_subprocess


def test_the_kernels_name_and_processors_are_taken() -> None:
    found = facts.read({})
    assert found.name == os.uname().nodename.lower()
    assert (found.processors, found.assumed, found.problem) == (os.cpu_count(), False, "")
    assert found == facts.read({})


@pytest.mark.parametrize(
    ("text", "processors", "problem"),
    [
        ("64", 64, ""),
        (" 7 ", 7, ""),
        ("", None, ""),
        ("0", None, "'0' is not an integer from 1 to 10000"),
        ("many", None, "'many' is not"),
        ("-3", None, "'-3' is not"),
        ("10001", None, "'10001' is not"),
    ],
)
def test_more_processors_can_be_assumed(text: str, processors: int | None, problem: str) -> None:
    found = facts.read({"VAC_ASSUME_PROCESSORS": text})
    assert (found.processors, found.assumed) == (processors or os.cpu_count(), processors is not None)
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)


def test_accounts_are_known_by_uid() -> None:
    assert facts.user_id("root") == 0
    assert facts.user_id("no-such-account-here") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Finished(0, b"  vg-none  \n  vg-here\n"), True),
        (Finished(0, b"  vg-here-not\n"), False),
        (Finished(None, failure="vgs is not installed", missing=True), False),
        (Finished(None, failure="vgs can't be started: Permission denied"), True),
        (Finished(5, failure="vgs failed (5)"), True),
        (Finished(None, failure="vgs took longer than 20 s", late=True), True),
    ],
)
def test_a_volume_group_is_denied_only_when_lvm_says_so(
    monkeypatch: pytest.MonkeyPatch, answer: Finished, expected: bool
) -> None:
    monkeypatch.setattr(facts, "run", lambda *_, **__: answer)
    assert facts.volume_group_exists("vg-here") is expected


def test_lvm_is_asked_once_by_the_facts_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def run(*command: object, **_: object) -> Finished:
        asked.append(command)
        return Finished(0, b"  vg-here\n")

    monkeypatch.setattr(facts, "run", run)
    host = facts.read({})
    assert [host.volume_group_exists("vg-here") for _ in range(3)] == [True] * 3
    assert len(asked) == 1
    facts.read({}).volume_group_exists("vg-here")
    assert len(asked) == 2


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
    assert (found["mem_total_kb"], found["mem_used_kb"]) == (100, 70)
    assert (found["swap_used_kb"], found["swap_free_kb"]) == (5, 45)
    assert (found["load_average"], found["boot_time"], found["os_issue"]) == (0.03, 1795224437, "X Linux 9")
    assert found["root_disk_avail_kb"] > 0


def test_what_can_not_be_read_is_0(tmp_path: Path) -> None:
    found = measure(tmp_path / "none", tmp_path / "none")
    kernel = os.uname().release
    assert found.pop("kernel_version") == found.pop("os_issue") == kernel
    assert set(found.values()) == {0}


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


@pytest.mark.parametrize(("options", "noexec"), [("rw,noexec", True), ("rw,nosuid", False)])
def test_where_no_program_can_be_run_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, noexec: bool
) -> None:
    text = f"1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 254:1 / {tmp_path} {options} - ext4 /dev/vdb rw\n"
    monkeypatch.setattr(facts, "mounts", lambda: [*filesystems.parse_mounts(text)])
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "directory").mkdir()
    for below in ("", "link", "link/none/at/all"):
        assert facts.noexec_mount(tmp_path / below) == (str(tmp_path) if noexec else None)
    assert facts.noexec_mount(tmp_path.parent) is None


def test_a_disk_that_fails_is_not_said_to_be_noexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: object, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "stat", broken)
        found = facts.noexec_mount(tmp_path)
    assert found is None


TEXT = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 8:2 /vac /var/lib/vac rw,nosuid shared:2 master:1 - xfs /dev/sdb1 rw,noquota
41 22 0:40 / /mnt/with\040blank rw - tmpfs none rw,size=1024k
42 22 0:41 / /mnt rw - tmpfs a\011b rw
"""


def test_mountinfo_is_read_with_its_escapes() -> None:
    found = list(parse_mounts(TEXT))
    assert found[1] == Mount(
        "8:2",
        "/vac",
        "/var/lib/vac",
        frozenset(["rw", "nosuid"]),
        frozenset(["shared:2", "master:1"]),
        "xfs",
        "/dev/sdb1",
        frozenset(["rw", "noquota"]),
    )
    assert (found[2].point, found[3].source, found[2].propagation) == ("/mnt/with blank", "a\tb", frozenset())


@pytest.mark.parametrize("end", ["\f", "\r", "\x1c", "\u2028", "\udc85"])
def test_a_mounts_name_may_hold_what_ends_lines_elsewhere(tmp_path: Path, end: str) -> None:
    point = f"/home/user/a{end}b"
    (tmp_path / "mountinfo").write_bytes(os.fsencode(f"{TEXT}43 22 0:42 / {point} rw - fuse x rw\n"))
    assert [mount.point for mount in mounts(tmp_path / "mountinfo")][2:] == ["/mnt/with blank", "/mnt", point]


def test_the_mount_that_holds_a_path_is_the_deepest_and_latest() -> None:
    found = [*parse_mounts(TEXT), *parse_mounts("43 22 0:42 / /mnt rw - tmpfs later rw\n")]
    assert [mount_of(path, found).point for path in ("/var/lib/vac/x", "/var/lib/vacuum", "/")] == [  # type: ignore[union-attr]
        "/var/lib/vac",
        "/",
        "/",
    ]
    assert mount_of("/mnt/x", found).source == "later"  # type: ignore[union-attr]
    assert mount_of("/x", []) is None


@pytest.mark.parametrize(
    ("more", "path", "places"),
    [
        ("", "/var/lib/vac", []),
        ("50 22 8:2 /vac /srv/alias rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", ["/srv/alias"]),
        ("50 22 8:2 / /disk rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", ["/disk/vac"]),
        ("50 22 8:2 /vac/machines/m /srv/m rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", ["/srv/m"]),
        ("50 22 8:2 /vacuum /srv/other rw - xfs /dev/sdb1 rw\n", "/var/lib/vac", []),
        ("50 22 8:1 / /sysroot rw - ext4 /dev/sda1 rw\n", "/root", ["/sysroot/root"]),
        ("50 22 8:1 /root/a /srv/a rw - ext4 /dev/sda1 rw\n", "/root", ["/srv/a"]),
        (
            "50 40 8:3 / /var/lib/vac/machines rw - xfs c rw\n51 22 8:3 /m1 /srv/m1 rw - xfs c rw\n",
            "/var/lib/vac",
            ["/srv/m1"],
        ),
    ],
)
def test_other_ways_to_a_directory_are_found(more: str, path: str, places: list[str]) -> None:
    assert other_paths(path, list(parse_mounts(TEXT + more))) == places


def test_this_host_has_proc() -> None:
    assert any(mount.point == "/proc" and mount.kind == "proc" for mount in mounts())


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    first = stamp_of(file)
    with file.open() as opened:
        assert stamp_of(opened.fileno()) == first == stamp_of(str(file))
    os.utime(file, ns=(5, 5))
    assert stamp_of(file) != first
    assert stamp_of(file).mtime_ns == 5


def shell(script: str, seconds: float | None = 60.0, **more: object) -> Finished:
    return run(["/bin/sh", "-c", script], time_limit_seconds=seconds, **more)  # type: ignore[arg-type]


def test_output_errors_and_exit_code_are_told() -> None:
    done = shell("echo out; echo err >&2")
    assert (done.exit_code, done.output, done.errors, done.failure) == (0, b"out\n", b"err\n", "")
    assert shell("echo out; echo err >&2", merge=True).text == "out\nerr\n"


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("echo first >&2; echo ' no such group' >&2; exit 5", "/bin/sh failed (5): no such group"),
        ("echo said; exit 1", "/bin/sh failed (1): said"),
        ("exit 7", "/bin/sh failed (7)"),
        ("kill -9 $$", "/bin/sh was ended by signal 9"),
    ],
)
def test_a_failure_names_the_program_and_what_it_said_last(script: str, failure: str) -> None:
    assert shell(script).failure == failure


def test_a_program_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    done = run(["no-such-program"], time_limit_seconds=5)
    assert (done.failure, done.missing, done.exit_code) == ("no-such-program is not installed", True, None)
    file = tmp_path / "file"
    file.touch()
    assert run([file], time_limit_seconds=5).failure == f"{file} can't be started: Permission denied"


def test_a_late_program_is_killed_with_its_children() -> None:
    done = shell("sleep 1000 & echo $!; sleep 1000", 0.3)
    assert (done.late, done.exit_code) == (True, None)
    assert done.failure == "/bin/sh took longer than 0.3 s"
    child = Path(f"/proc/{int(done.text)}/stat")
    deadline = time.monotonic() + 60
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while child.read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_daemon_that_is_left_behind_is_not_waited_for() -> None:
    done = shell("setsid sleep 1000 & echo $!")
    os.kill(int(done.text), signal.SIGKILL)
    assert done.exit_code == 0


def test_of_much_output_only_the_beginning_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vac.host.child_processes.MOST_BYTES", 1000)
    done = shell("head -c 3000000 /dev/zero; echo end >&2; exit 1")
    assert (len(done.output), done.failure) == (1000, "/bin/sh failed (1): end")


def test_the_environment_is_given_and_no_input() -> None:
    assert shell("echo $A; pwd; cat", environment={"A": "b"}).text == "b\n/\n"


def test_no_descriptor_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    shell("sleep 1000", 0.1)
    shell("true")
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


TICKS = os.sysconf("SC_CLK_TCK")


def zone(powercap: Path, name: str, kind: str, energy_uj: int, most_uj: int = 10**12) -> Path:
    directory = powercap / name
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in (("name", kind), ("energy_uj", energy_uj), ("max_energy_range_uj", most_uj)):
        (directory / file).write_text(f"{content}\n")
    return directory


def busy(stat: Path, seconds: int) -> None:
    stat.write_text(f"cpu  {seconds * TICKS} 0 0 99999 88888 0 0 0 777 0\ncpu0 1 2 3 4\n")


def test_packages_and_memory_count_once_and_counters_may_wrap(tmp_path: Path) -> None:
    stat, power = tmp_path / "stat", tmp_path / "powercap"
    zone(power, "intel-rapl:0", "package-0", 5_000_000)
    zone(power, "intel-rapl:0:0", "core", 3_000_000)
    zone(power, "intel-rapl:0:1", "dram", 1_000_000)
    zone(power, "intel-rapl-mmio:0", "package-0", 5_000_000)
    zone(power, "intel-rapl:1", "package-1", 9_000_000, most_uj=9_500_000)
    busy(stat, 100)
    meter = EnergyMeter(power, stat)
    assert meter.read() is None
    zone(power, "intel-rapl:0", "package-0", 8_000_000)
    zone(power, "intel-rapl:0:1", "dram", 1_500_000)
    zone(power, "intel-rapl:1", "package-1", 500_000, most_uj=9_500_000)
    busy(stat, 130)
    assert meter.read() == pytest.approx((3.0 + 0.5 + 1.0, 30.0))
    assert meter.read() == (0.0, 0.0)


@pytest.mark.parametrize("energy", [None, "", "secret"])
def test_where_the_kernel_tells_nothing_there_is_nothing(tmp_path: Path, energy: str | None) -> None:
    if energy is not None:
        (zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").write_text(energy)
    meter = EnergyMeter(tmp_path, tmp_path / "stat")
    assert (meter.read(), meter.read()) == (None, None)


def test_nobodys_group_is_never_vacs(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", {"nobody": nobody}.__getitem__)
    user = privileges.unprivileged_user()
    assert user is not None
    assert (user.pw_name, user.pw_uid, user.pw_gid) == ("nobody", 65534, privileges.OWN_GROUP)


@pytest.mark.parametrize(
    ("uids", "gids", "expected"),
    [
        (
            "user:100000:65536\nvac:2000000000:256\n",
            "vac:2000000000:256\n",
            range(2_000_000_000, 2_000_000_256),
        ),
        ("vac:2000000000:256\n", "vac:1000000000:256\n", range(0)),
        ("vac:2000000000:256\n", "", range(0)),
        ("vac:500:100\n", "vac:500:100\n", range(0)),
        ("vacuum:100000:65536\n", "vacuum:100000:65536\n", range(0)),
        ("vac:x:y\n\0\n", "vac\n", range(0)),
        (None, None, range(0)),
    ],
)
def test_numbers_of_vac_are_those_in_subuid_and_subgid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uids: str | None, gids: str | None, expected: range
) -> None:
    paths = tmp_path / "subuid", tmp_path / "subgid"
    for path, text in zip(paths, (uids, gids)):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(privileges, "SUBORDINATE_IDS", paths)
    assert privileges.subordinate_ids() == expected
