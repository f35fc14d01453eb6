"""Programs are run with a time limit, bounded output, and errors that name them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from vac.host.child_processes import Finished, run

pytestmark = pytest.mark.allow_subprocess


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
    child = int(done.text)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_daemon_that_is_left_behind_is_not_waited_for() -> None:
    done = shell("setsid sleep 1000 & echo $!")
    os.kill(int(done.text), signal.SIGKILL)
    assert done.exit_code == 0


def test_of_much_output_only_the_beginning_is_kept() -> None:
    done = shell("head -c 3000000 /dev/zero; echo end >&2; exit 1", most_bytes=1000)
    assert (len(done.output), done.failure) == (1000, "/bin/sh failed (1): end")


def test_the_environment_is_given_and_no_input() -> None:
    assert shell("echo $A; pwd; cat", environment={"A": "b"}).text == "b\n/\n"


def test_no_descriptor_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    shell("sleep 1000", 0.1)
    shell("true")
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
