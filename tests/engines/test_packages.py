"""The Debian package below systemd, in a guest: services start, a machine runs and outlives upgrade and removal."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import require_root, require_tool
from tests.engines.guests import PATIENCE_SECONDS, ROOT, run_in_guest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(PATIENCE_SECONDS + 300)]


def test_the_debian_package_below_systemd() -> None:
    require_root()
    require_tool("dh")
    built = subprocess.run(
        [str(ROOT / "packaging" / "build"), "deb"], stdout=subprocess.PIPE, text=True, check=True
    )
    package = built.stdout.splitlines()[-1]
    ran = run_in_guest([str(ROOT / "packaging" / "try_systemd"), package], systemd=True)
    print(ran.output)
    assert ran.status == 0, f"exit status {ran.status}:\n{ran.output}\nconsole:\n{ran.console}"
