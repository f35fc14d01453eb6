"""`make demo` keeps its word: machines come and go, records are left, and nothing else; trouble is explained."""

from __future__ import annotations

import contextlib
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

DEMO = [sys.executable, str(Path(__file__).parents[2] / "examples" / "demo" / "demo.py"), "--seconds", "40"]
IN_A_CHROOT = ("unshare", "--mount", "sh", "-ec", 'mount --rbind / "$0"; exec chroot "$0" "$@"')
"""A host whose kernel refuses user namespaces."""
PATIENCE_SECONDS = 300.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that machines' accounts can reach, as they can't pytest's."""
    require_root()
    with tempfile.TemporaryDirectory(prefix="vac-test-demo-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextlib.contextmanager
def running(place: Path, *enter: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, for 40 s, with all that it leaves below place."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(place)}
    process = subprocess.Popen([*enter, *DEMO], stdout=subprocess.PIPE, text=True, env=environment)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate()


@pytest.fixture
def demo(place: Path) -> Iterator[subprocess.Popen[str]]:
    with running(place) as process:
        yield process


def factory_of(place: Path) -> str:
    """The name of the demo's factory."""
    (conf,) = place.glob("*/demo.conf")
    return conf.read_text().partition("factory_name = ")[2].split()[0]


def wait_for_line(demo: subprocess.Popen[str], words: str) -> str:
    """Read until a line with these words comes; give that."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if words in line:
            return line
    pytest.fail(f"the demo has ended without {words!r}")


def test_it_shows_machines_their_shares_and_their_records(demo: subprocess.Popen[str], place: Path) -> None:
    output, _ = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 0, output
    assert re.search(r"^  demo-\w+-00 +\S+ +Running +\d+ s$", output, re.MULTILINE)
    assert re.search(r"^  empty-queue +share 2: +[1-9]\d* machines,.*held back", output, re.MULTILINE)
    _, ending, summary = output.partition("Processor time of each machinetype, and its target:")
    assert ending
    for line in (
        r"lhcb-prod +\d+ %  target  25 %",
        r"empty-queue +–   no work: its share went to the others",
    ):
        assert re.search(rf"^  {line}$", summary, re.MULTILINE), summary
    had = re.search(r"^  atlas-prod +(\d+) %  target  75 %$", summary, re.MULTILINE)
    machine = re.search(r"^Of \d+ machines with work one more or less is (\S+) points", summary, re.MULTILINE)
    assert had is not None and machine is not None, summary
    assert abs(int(had[1]) - 75) <= 3 + 2 * float(machine[1]), summary
    told = re.search(r"^(\d+) accounting records are in (\S+), for example:$", summary, re.MULTILINE)
    assert told is not None and int(told[1]) == len(list(Path(told[2]).glob("*/*"))) > 0
    assert "APEL-individual-job-message: v0.3" in output
    assert [each.name for each in place.iterdir()] == [Path(told[2]).relative_to(place).parts[0]]
    nothing_is_left_of(place, factory_of(place))


def test_ctrl_c_removes_everything(demo: subprocess.Popen[str], place: Path) -> None:
    wait_for_line(demo, "Running")
    factory = factory_of(place)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 130, output
    assert not list(place.iterdir())
    nothing_is_left_of(place, factory)


def test_a_host_without_user_namespaces_is_told_first(place: Path) -> None:
    root = place / "root"
    root.mkdir()
    with running(place, *IN_A_CHROOT, str(root)) as demo:
        output, _ = demo.communicate(timeout=PATIENCE_SECONDS)
    first, *more = output.splitlines()
    assert first.startswith("The demo can't run on this host: bubblewrap in an unprivileged user namespace: ")
    assert "No permissions to creat" in first
    assert "not in a chroot" in " ".join(more)
    assert demo.returncode == 1
    assert list(place.iterdir()) == [root]


def test_why_a_machine_could_not_be_made_is_told_at_once(demo: subprocess.Popen[str], place: Path) -> None:
    wait_for_line(demo, "Running")
    place.chmod(0o700)
    told = wait_for_line(demo, "could not be made")
    assert re.match(r"\S+: a machine could not be made: .*every directory above it must be searchable", told)


def nothing_is_left_of(directory: Path, factory: str) -> None:
    """No process, no mount and no cgroup."""
    place = str(directory).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert place not in (process / "cmdline").read_bytes(), process
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert not list(open_groups(factory).names())
