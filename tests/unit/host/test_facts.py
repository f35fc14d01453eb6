"""What this host says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vac.host import facts, filesystems
from vac.host.child_processes import Finished
from vac.host.facts import Measures, measure, os_issue


def test_the_kernels_name_and_processors_are_taken() -> None:
    found = facts.read({})
    assert found.name == os.uname().nodename.lower()
    assert (found.processors, found.assumed, found.problem) == (os.cpu_count(), False, "")
    assert found.same(facts.read({}))


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
