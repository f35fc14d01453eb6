"""`make demo` keeps its word: machines come and go, records are left, and nothing else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root
from vac.host.cgroups import open_groups

pytestmark = [pytest.mark.engine]

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "demo.py"
FACTORY = "demo.vac.example.org"


@pytest.fixture
def place() -> Iterator[Path]:
    """Where machines' accounts can get at, as they can't at pytest's directories."""
    with tempfile.TemporaryDirectory(prefix="vac-test-demo-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def demo(place: Path) -> Iterator[subprocess.Popen[str]]:
    """It, for twenty seconds, with what it leaves below place."""
    require_root()
    command = [sys.executable, str(DEMO), "--seconds", "20"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(place)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_it_shows_machines_and_leaves_their_records(demo: subprocess.Popen[str], place: Path) -> None:
    output, _ = demo.communicate(timeout=200)
    assert demo.returncode == 0, output
    assert re.search(r"^  demo-00 +\S+ +Running +\d+ s$", output, re.MULTILINE)
    assert re.search(r"^  empty-queue +share 2: +[1-9]\d* machines,.*held back", output, re.MULTILINE)
    told = re.search(r"^(\d+) accounting records are in (\S+), for example:$", output, re.MULTILINE)
    assert told is not None and int(told[1]) == len(list(Path(told[2]).glob("*/*"))) > 0
    assert "APEL-individual-job-message: v0.3" in output
    assert [each.name for each in place.iterdir()] == [Path(told[2]).relative_to(place).parts[0]]
    nothing_is_left_of(place)


def test_ctrl_c_removes_everything(demo: subprocess.Popen[str], place: Path) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if "Running" in line:
            break
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=200)
    assert demo.returncode == 130, output
    assert not list(place.iterdir())
    nothing_is_left_of(place)


def nothing_is_left_of(directory: Path) -> None:
    """No process, no mount and no cgroup."""
    place = str(directory).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert place not in (process / "cmdline").read_bytes(), process
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert not list(open_groups(FACTORY).names())
