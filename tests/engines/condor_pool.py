"""A pool of HTCondor: central manager and schedd on a host of their own, and the root that nodes are made from.

Debian's packages are unpacked into a root once, which takes minutes and 450 MB; it is kept where tiny guests are.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import require_tool
from tests.engines.cloud_image import MIRROR
from tests.engines.guest_images import built, run
from tests.space.hosts import Namespaces
from tests.waiting import wait_for

SUITE = "trixie"
INCLUDE = "minicondor,python3-cffi-backend"
DOMAIN = "example.org"
ACCOUNT = "games"
"""Everything of the pool runs as this one; HTCondor takes no jobs from accounts such as condor."""
CONFIGURATION = f"""
include : /etc/condor/condor_config
LOCAL_CONFIG_DIR =
CONDOR_HOST = cm.{DOMAIN}
use ROLE : CentralManager
use ROLE : Submit
use SECURITY : recommended_v9_0
LOCAL_DIR = /mnt
LOG = /mnt/log
SPOOL = /mnt/spool
LOCK = /mnt/log
RUN = /mnt/log
UID_DOMAIN = {DOMAIN}
TRUST_DOMAIN = {DOMAIN}
SEC_PASSWORD_DIRECTORY = /mnt/passwords.d
SEC_TOKEN_POOL_SIGNING_KEY_FILE = /mnt/passwords.d/POOL
ALLOW_DAEMON = {ACCOUNT}@{DOMAIN}
ALLOW_ADVERTISE_STARTD = vac@{DOMAIN}
ALLOW_ADVERTISE_MASTER = vac@{DOMAIN} {ACCOUNT}@{DOMAIN}
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 2
SCHEDD_INTERVAL = 5
"""
IDLE, RUNNING, COMPLETED = 1, 2, 4
"""Values of a job's JobStatus."""


def condor_root() -> Path:
    """A directory tree with HTCondor, for everybody to read."""
    return built("root", {"packages": f"{SUITE} {INCLUDE}"}, _make)


def _make(target: Path) -> None:
    options = ("--variant=minbase", f"--include={INCLUDE}")
    run(require_tool("debootstrap"), *options, SUITE, str(target), MIRROR)
    for archive in (target / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()


class Pool:
    """The pool's central manager and schedd, on this host, whose name is that of CONFIGURATION."""

    def __init__(self, home: Path, host: Namespaces) -> None:
        self._host = host
        self._home = home
        accounts = (condor_root() / "etc/passwd").read_text()
        self._uid, self._gid = accounts.partition(f"\n{ACCOUNT}:x:")[2].split(":")[:2]
        for name in ("log", "spool", "tmp", "jobs"):
            (home / name).mkdir(parents=True)
        (home / "passwords.d").mkdir(mode=0o700)
        key = home / "passwords.d" / "POOL"
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600)
        (home / "condor_config").write_text(CONFIGURATION)
        with (home / "output").open("wb") as output:
            self._master = subprocess.Popen(self._inside("condor_master", "-f"), stdout=output, stderr=output)
        wait_for(self._has_schedd, "the schedd is in the pool")

    def _has_schedd(self) -> bool:
        with contextlib.suppress(AssertionError):  # the collector isn't there yet
            return bool(self.ads("condor_status", "-schedd"))
        return False

    def run(self, *command: str, given: str = "") -> str:
        """Return the output of one of HTCondor's tools, which has to succeed."""
        done = subprocess.run(
            self._inside(*command), input=given, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def ads(self, *command: str) -> list[dict[str, Any]]:
        """Return the ClassAds that condor_status, condor_q or condor_history print."""
        found: list[dict[str, Any]] = json.loads(self.run(*command, "-json") or "[]")
        return found

    def token(self) -> str:
        """A node's, as the example says."""
        rights = ("ADVERTISE_STARTD", "ADVERTISE_MASTER", "READ")
        words = [word for right in rights for word in ("-authz", right)]
        return self.run("condor_token_create", "-identity", f"vac@{DOMAIN}", *words)

    def submit(self, machinetype: str, script: str) -> int:
        """A job for nodes of this machinetype; its cluster's number. Output comes back to jobs/."""
        described = f"""
executable = /bin/sh
transfer_executable = False
arguments = "-c '{script}'"
initialdir = /mnt/jobs
output = $(ClusterId)
should_transfer_files = YES
request_memory = 32
request_disk = 1MB
requirements = VacMachinetype == "{machinetype}"
queue
"""
        told = self.run("condor_submit", "-terse", "-", given=described)
        return int(told.partition(".")[0])

    def job(self, cluster: int) -> dict[str, Any]:
        """A job's ClassAd, whether it is in the queue or in the history."""
        found = self.ads("condor_q", str(cluster)) or self.ads("condor_history", str(cluster))
        return found[0] if found else {}

    def output(self, cluster: int) -> str:
        """Return a job's output."""
        return (self._home / "jobs" / str(cluster)).read_text()

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The ClassAds of the nodes' partitionable slots by machine's name."""
        found = self.ads("condor_status", "-constraint", "PartitionableSlot")
        return {ad["Name"].partition("@")[2]: ad for ad in found}

    def close(self) -> None:
        """End it."""
        self._master.send_signal(signal.SIGKILL)
        self._master.wait()

    def _inside(self, *command: str) -> list[str]:
        return self._host.inside(
            *(require_tool("bwrap"), "--unshare-user", "--unshare-pid", "--as-pid-1", "--die-with-parent"),
            *(
                "--uid",
                self._uid,
                "--gid",
                self._gid,
                "--ro-bind",
                str(condor_root()),
                "/",
                "--dev",
                "/dev",
                "--proc",
                "/proc",
            ),
            *("--bind", str(self._home), "/mnt", "--bind", str(self._home / "tmp"), "/tmp"),
            *("--ro-bind", "/etc/hosts", "/etc/hosts", "--setenv", "CONDOR_CONFIG", "/mnt/condor_config"),
            *("--", *command),
        )
