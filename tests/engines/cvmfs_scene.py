"""A factory beside repositories of which one hangs; run by test_cvmfs.py in a mount namespace of its own.

The one that hangs is a real FUSE file system, squashfuse, whose process is stopped.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import require_tool
from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, factory_site
from tests.engines.process_site import make_tree

CVMFS = Path("/cvmfs")
GOOD, HUNG, EMPTY = (f"{name}.example.org" for name in ("good", "hung", "empty"))
WORK = "cat {} >$JOBOUTPUTS/read; sleep 4; echo 200 done >$JOBOUTPUTS/shutdown_message"
KINDS = {
    "plain": Kind(WORK.format("/etc/passwd")),
    "good": Kind(WORK.format(f"/cvmfs/{GOOD}/etc/motd"), {"cvmfs_repositories": GOOD}),
    "image": Kind(WORK.format("/etc/motd"), {"machine_model": "singularity", "root_image": f"/cvmfs/{GOOD}"}),
    "hung": Kind(WORK.format(f"/cvmfs/{HUNG}/file"), {"cvmfs_repositories": f"{GOOD} {HUNG}"}),
    "hangs": Kind(
        WORK.format("/etc/motd"), {"machine_model": "singularity", "root_image": f"/cvmfs/{HUNG}/x"}
    ),
    "empty": Kind(WORK.format("/etc/motd"), {"cvmfs_repositories": EMPTY}),
}


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def repositories() -> Iterator[subprocess.Popen[bytes]]:
    """The repositories; yields the process that serves the one that is to hang."""
    run("mount", "-t", "tmpfs", "none", CVMFS)
    run("mount", "--make-shared", CVMFS)
    make_tree(CVMFS / GOOD)
    (CVMFS / EMPTY).mkdir()
    (CVMFS / HUNG).mkdir()
    (CVMFS / "source").mkdir()
    (CVMFS / "source/file").write_text("it answers")
    run(require_tool("mksquashfs"), CVMFS / "source", CVMFS / "image", "-quiet", "-no-progress")
    command: list[str | Path] = [
        require_tool("squashfuse"),
        "-f",
        "-o",
        "allow_other",
        CVMFS / "image",
        CVMFS / HUNG,
    ]
    with subprocess.Popen(command) as server:
        try:
            while not (CVMFS / HUNG).is_mount():
                assert server.poll() is None, "squashfuse has ended"
            yield server
        finally:
            server.send_signal(signal.SIGCONT)
            run("umount", "--lazy", CVMFS / HUNG)


def why(site: FactorySite, machinetype: str) -> str:
    return site.vac("why", machinetype).stdout


def has_read(site: FactorySite, machinetype: str) -> bool:
    """Return True if a machine of this type has done its work."""
    return any(life.finished and life.output("read") for life in site.lives(machinetype))


def main() -> None:
    with repositories() as server:
        server.send_signal(signal.SIGSTOP)
        with factory_site(KINDS, machines_per_cycle=AT_ONCE, singularity_user="nobody") as site:
            for name in ("plain", "good", "image"):
                site.wait_for(lambda: has_read(site, name), f"{name} works", 300)  # noqa: B023
            late = f"hung: repository /cvmfs/{HUNG} doesn't answer within 15 s"
            site.wait_for(lambda: late in why(site, "hung"), "the reason is shown")
            empty = f"empty: repository /cvmfs/{EMPTY} is empty, so it isn't mounted"
            assert empty in why(site, "empty")
            told = site.vac("doctor").stdout
            for line in (
                f"PROBLEM  /cvmfs/{HUNG}: doesn't answer within 15 s\n",
                f"PROBLEM  /cvmfs/{EMPTY}: is empty, so it isn't mounted\n",
                f"ok       /cvmfs/{GOOD}\n",
                "ok       /cvmfs in containers\n",
                "PROBLEM  machinetype hung: what it needs below /cvmfs isn't there\n",
                "PROBLEM  machinetype hangs: what it needs below /cvmfs isn't there\n",
                "ok       machinetype image\n",
            ):
                assert line in told, told
            before = len(site.lives("good"))
            site.wait_for(lambda: len(site.lives("good")) > before, "the others go on")
            assert not site.lives("hung")
            assert not site.lives("empty")
            server.send_signal(signal.SIGCONT)
            site.wait_for(lambda: has_read(site, "hung"), "it answers, and is used")
            assert {life.output("read") for life in site.lives("hung")} <= {"it answers", ""}
            assert "answer" not in why(site, "hung")


if __name__ == "__main__":
    main()
