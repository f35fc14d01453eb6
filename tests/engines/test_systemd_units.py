"""The systemd units, read by systemd itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require_tool

TOP = Path(__file__).resolve().parents[2]
UNITS = sorted((TOP / "systemd").iterdir()) + sorted((TOP / "packaging" / "accounting").glob("*.[st]*"))
NEEDED_TARGETS = (
    "sysinit",
    "timers",
    "time-set",
    "time-sync",
    "basic",
    "shutdown",
    "network-online",
    "multi-user",
)


@pytest.mark.engine
def test_systemd_finds_no_fault_with_our_units(tmp_path: Path) -> None:
    analyze = require_tool("systemd-analyze")
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, units)
    for name in NEEDED_TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDescription=A stand-in\n")
    for path in ("usr/bin/vacd", "usr/bin/vac", "usr/bin/ssmsend", "usr/bin/sleep", "bin/sh"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch(mode=0o755)
    names = [unit.name for unit in UNITS]
    command = [analyze, "verify", "--man=no", f"--root={tmp_path}", *names]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)
