"""Repositories of CernVM-FS that answer, hang or are empty, and the machinetypes that need them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool

pytestmark = pytest.mark.engine


def test_a_repository_that_hangs_holds_up_only_types_that_need_it() -> None:
    require_root()
    for tool in ("squashfuse", "mksquashfs", "apptainer", "bwrap"):
        require_tool(tool)
    cvmfs = Path("/cvmfs")
    made = not cvmfs.exists()
    cvmfs.mkdir(exist_ok=True)
    private = ["unshare", "--mount", "--propagation", "private"]
    scene = [sys.executable, "-m", "tests.engines.cvmfs_scene"]
    try:
        subprocess.run([*private, *scene], check=True, timeout=280, cwd=Path(__file__).parents[2])
    finally:
        if made:
            cvmfs.rmdir()
