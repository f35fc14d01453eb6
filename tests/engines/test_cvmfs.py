"""Repositories of CernVM-FS that answer, hang or are empty, and the machinetypes that need them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.engines.process_site import group_makers
from tests.engines.shared_places import cvmfs_mount_point

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
PRIVATE = ("unshare", "--mount", "--propagation", "private")
VERSION = "v1" if "v1" in group_makers() else "v2"
LATER = """
import subprocess, sys
from pathlib import Path
from tests.engines.process_site import open_site
def run(*command): subprocess.run(command, check=True)
run("mount", "-t", "tmpfs", "none", "/cvmfs")
run("mount", "--make-shared", "/cvmfs")
Path("/cvmfs/a.cern.ch").mkdir()
with open_site(*sys.argv[1:]) as site:
    wait = "while [ ! -e /cvmfs/a.cern.ch/new ]; do sleep 0.02; done; touch /cvmfs/x || echo read-only"
    spec = site.create(site.spec(0, wait + " >$JOBOUTPUTS/x\\n", cvmfs_repositories=("a.cern.ch",)))
    run("mount", "-t", "tmpfs", "none", "/cvmfs/a.cern.ch")
    Path("/cvmfs/a.cern.ch/new").touch()
    site.wait_for_end(spec)
    assert site.output(spec, "x") == "read-only\\n"
"""


@pytest.fixture
def cvmfs() -> Iterator[None]:
    """There is a /cvmfs, for others to mount something at in their own mount namespaces."""
    require_root()
    with cvmfs_mount_point():
        yield


@pytest.mark.usefixtures("cvmfs")
def test_a_hanging_repository_holds_up_only_its_types() -> None:
    for tool in ("squashfuse", "mksquashfs", "apptainer", "bwrap"):
        require_tool(tool)
    scene = [sys.executable, "-m", "tests.engines.cvmfs_scene"]
    subprocess.run([*PRIVATE, *scene], check=True, timeout=1000, cwd=ROOT)


@pytest.mark.usefixtures("cvmfs")
@pytest.mark.parametrize("model", ["bubblewrap", "singularity"])
def test_a_repository_that_is_mounted_later_appears_inside(model: str) -> None:
    subprocess.run(
        [*PRIVATE, sys.executable, "-c", LATER, VERSION, model], check=True, timeout=1000, cwd=ROOT
    )


def test_a_creation_that_hangs_with_its_image_holds_up_no_other() -> None:
    require_root()
    scene = [sys.executable, "-m", "tests.engines.hanging_scene", VERSION]
    subprocess.run([*PRIVATE, *scene], check=True, timeout=1000, cwd=ROOT)
