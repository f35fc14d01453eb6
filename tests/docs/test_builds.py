"""README's steps with packages and pip, done for real from a clone of HEAD; it fetches packages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.docs.pages import ROOT, blocks

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the checkout's HEAD."""
    target = tmp_path / "clone"
    subprocess.run([require_tool("git"), "clone", "--quiet", ROOT, target], check=True)
    return target


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_make_builds_a_package(kind: str, clone: Path) -> None:
    require_root()
    subprocess.run(["make", kind], cwd=clone, check=True)
    assert list((clone / "build" / kind).glob(f"*.{kind}"))


def test_pip_installs_commands_units_sample_and_completion(clone: Path, tmp_path: Path) -> None:
    """README's block, with other places for /opt/vac, /usr/bin and /etc; test_commands.py makes the accounts."""
    text = (ROOT / "README.md").read_text()
    line = text[: text.index("### Install with pip")].count("\n") + 1
    block = next(block for block in blocks(ROOT / "README.md") if block.line > line)
    lines = [re.sub(r"\s+# .*", "", one) for one in block.text.splitlines() if "/opt/vac" in one]
    for place in ("usr/bin", "usr/share/bash-completion/completions", "etc/systemd/system"):
        (tmp_path / place).mkdir(parents=True)
    moved = re.sub("(?<=[ >])/(?=usr|etc)", f"{tmp_path}/", "\n".join(lines))
    moved = moved.replace("/opt/vac", f"{tmp_path}/opt").replace("/path/to/this/clone", str(clone))
    subprocess.run(["sh", "-ec", moved], check=True)
    shown = subprocess.run(
        [tmp_path / "usr/bin/vac", "--version"], text=True, capture_output=True, check=True
    )
    assert shown.stdout.startswith("Vac ")
    assert (tmp_path / "etc/systemd/system/vacd.service").exists()
    assert (tmp_path / "etc/vac.d/site.conf.sample").exists()
    assert "complete" in (tmp_path / "usr/share/bash-completion/completions/vac").read_text()
