"""64 slots filled with Docker machines by the ramp, and what each machine sees of the host and of itself."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from tests.engines.docker_fixture import IMAGE, PrivateDocker
from tests.engines.factory_fixture import FactorySite, Kind, Life, factory_site
from vac.host.privileges import unprivileged_user

pytestmark = pytest.mark.engine

SLOTS = 64
LOOK = """
cd /var/spool/joboutputs
exec 2> /dev/null
grep -E '^(CapEff|CapBnd|NoNewPrivs|Uid):' /proc/self/status > status
cat /etc/machinefeatures/total_cpu /etc/jobfeatures/allocated_cpu /etc/jobfeatures/job_id > features
env > environment
hostname > hostname
cat /etc/resolv.conf > resolv.conf
cat /proc/self/mountinfo > mountinfo
ls -a /run /var/run > run
for f in /etc/machinefeatures/x /etc/jobfeatures/job_id /user_data; do echo x > $f && echo $f; done > written
echo done > done
exec sleep 600
"""
OPTIONS = {
    "machine_model": "docker",
    "root_image": f"docker://{IMAGE}",
    "container_user": "pilot",
    "container_capabilities": "none",
    "container_dns": "192.0.2.1",
}


def test_64_slots_fill_in_two_minutes_with_isolated_machines() -> None:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        kinds = {"docked": Kind(LOOK, OPTIONS)}
        site = stack.enter_context(factory_site(kinds, processors=SLOTS, docker_host=engine.url))
        site.wait_for(lambda: site.occupied() >= SLOTS, "all slots are taken", 900)
        lives = site.lives()
        full = max(life.started or 0.0 for life in lives) - lives[0].created
        print(f"{SLOTS} slots are full after {full:.1f} s")
        one = (lives[0].started or 0.0) - lives[0].created
        print(f"alone, a machine takes {one:.1f} s to start")
        assert lives[-1].created - lives[0].created < 120 + SLOTS * one, "the rest is up to the factory"
        assert len(lives) == SLOTS, "none has ended"
        for life in lives:
            site.wait_for(lambda life=life: life.output("done"), f"{life.name} has looked")  # type: ignore[misc]
            _sees_what_it_must(life)
        _is_for_the_responder_to_read(site)


def _sees_what_it_must(life: Life) -> None:
    status = dict(line.split(":\t", 1) for line in life.output("status").splitlines())
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")
    assert set(status["Uid"].split()) == {"1234"}
    job_id = (life.directory / "jobfeatures" / "job_id").read_text()
    assert life.output("features") == f"11{job_id}"
    assert {
        "MACHINEFEATURES=/etc/machinefeatures",
        "JOBFEATURES=/etc/jobfeatures",
        "JOBOUTPUTS=/var/spool/joboutputs",
    } <= set(life.output("environment").splitlines())
    assert life.output("hostname").strip() == life.name
    resolvers = [line for line in life.output("resolv.conf").splitlines() if line.startswith("nameserver")]
    assert resolvers == ["nameserver 192.0.2.1"]
    assert life.output("written") == ""
    assert "docker.sock" not in life.output("mountinfo") + life.output("run")


def _is_for_the_responder_to_read(site: FactorySite) -> None:
    user = unprivileged_user()
    assert user is not None
    heartbeats = [str(life.directory / "heartbeat") for life in site.lives()]
    for uid, gid, allowed in ((user.pw_uid, user.pw_gid, True), (1234, 1234, False)):
        read = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "cat", *heartbeats]
        done = subprocess.run(read, capture_output=True, check=False)
        assert (done.returncode == 0) is allowed
    assert Path(heartbeats[0]).exists()
