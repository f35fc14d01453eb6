"""What this host says of itself."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from vac.host import facts


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
        (subprocess.CompletedProcess([], 0, stdout=b"  vg-none  \n  vg-here\n"), True),
        (subprocess.CompletedProcess([], 0, stdout=b"  vg-here-not\n"), False),
        (FileNotFoundError(2, "no vgs"), False),
        (PermissionError(13, "not root"), True),
        (subprocess.CalledProcessError(5, "vgs"), True),
        (subprocess.TimeoutExpired("vgs", 20), True),
    ],
)
def test_a_volume_group_is_denied_only_when_lvm_says_so(
    monkeypatch: pytest.MonkeyPatch, answer: Any, expected: bool
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    assert facts.volume_group_exists("vg-here") is expected
