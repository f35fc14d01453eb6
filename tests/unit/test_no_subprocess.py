"""The guard that keeps unit tests from starting processes, and the tests' usual environment."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import LONGEST_FIRST

WAYS: dict[str, Callable[[], object]] = {
    "subprocess.run": lambda: subprocess.run(["true"], check=True),
    "subprocess.Popen": lambda: subprocess.Popen("true"),
    "os.system": lambda: os.system("true"),  # noqa: S605
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "os.spawnv": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]),
    "os.fork": os.fork,
    "os.forkpty": os.forkpty,
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "multiprocessing": lambda: multiprocessing.get_context("fork").Process(target=print).start(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_unit_test_that_starts_a_process_fails(way: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="allow_subprocess"):
        WAYS[way]()


@pytest.mark.allow_subprocess
def test_a_marked_unit_test_may_start_processes() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0


@pytest.mark.allow_subprocess
def test_signals_that_background_jobs_ignore_work_in_tests() -> None:
    command = "import os, signal, tests.conftest; os.kill(os.getpid(), signal.SIGINT)"
    ignoring = ["sh", "-c", "trap '' INT QUIT; exec \"$@\"", "sh"]
    done = subprocess.run(
        [*ignoring, sys.executable, "-c", command],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert b"KeyboardInterrupt" in done.stderr


@pytest.mark.allow_subprocess
def test_what_the_caller_has_set_does_not_reach_tests() -> None:
    command = (
        "import os, tests.conftest; print(oct(os.umask(0)), os.environ['LC_ALL'], os.environ['no_proxy'])"
    )
    caller = ["sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable, "-c", command]
    environment = {**os.environ, "no_proxy": "", "LC_ALL": "de_DE.UTF-8"}
    done = subprocess.run(
        caller, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0o22 C.UTF-8 127.0.0.1,localhost\n"


def test_files_that_are_run_first_exist() -> None:
    tests = Path(__file__).parents[1]
    assert [name for name in LONGEST_FIRST if not list(tests.rglob(f"{name}.py"))] == []
