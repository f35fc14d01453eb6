"""A factory as systemd runs it, with the units that get installed. Run by test_guests in a guest, never on a host.

One factory serves all tests, in their order: the one that stops vac-machines comes last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.factory_fixture import AT_ONCE, ROOT, FactorySite, Kind, factory_site
from vac.machines.machine import Machine

CGROUPS = Path("/sys/fs/cgroup")
DELEGATED = CGROUPS / "vac.slice/vac-machines.service"
PATIENCE_SECONDS = 600.0
WATCHDOG_SECONDS = 10
PIDS = 64
ESCAPE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        for number in range(3):
            os.close(number)
        open("/tmp/joboutputs/daemon", "w").close()
        time.sleep(100000)
    os._exit(0)
time.sleep(100000)
"""
KINDS = {
    "steady": Kind("exec sleep 100000"),
    "daemon": Kind(f"exec python3 -c '{ESCAPE}'"),
    "bomb": Kind("mkfifo $JOBOUTPUTS/go; read word <$JOBOUTPUTS/go; exec perl -e 'fork while 1'"),
    "eater": Kind("tail /dev/zero; echo $? >$JOBOUTPUTS/code; exec sleep 100000"),
}
LAUNCHER = f"""#!/bin/sh
PYTHONPATH={ROOT} VAC_ASSUME_PROCESSORS={len(KINDS)} exec {sys.executable} -m vac.daemon "$@"
"""
DROP_INS = Path("/run/systemd/system/vacd.service.d")
WATCHDOG = DROP_INS / "watchdog.conf"
Running = dict[str, tuple[str, int]]
"""By machinetype: the machine's uuid and its first process."""


@pytest.fixture(scope="module")
def site() -> Iterator[FactorySite]:
    """vacd.service has been started, and one machine of each kind runs."""
    assert "vac.home=" in Path("/proc/cmdline").read_text(), "only for a guest: it installs Vac"
    vacd = Path("/usr/bin/vacd")
    vacd.write_text(LAUNCHER)
    vacd.chmod(0o755)
    config = Path("/etc/vac.d/test.conf")
    config.parent.mkdir(exist_ok=True)
    with factory_site(KINDS, processors=len(KINDS), start=False) as site:
        site.config = config
        site.configure(KINDS, machines_per_cycle=AT_ONCE, pids_per_processor=PIDS)
        DROP_INS.mkdir(parents=True)
        (DROP_INS / "slow.conf").write_text("[Service]\nTimeoutStartSec=infinity\n")
        systemctl("daemon-reload")
        systemctl("enable", "--now", "vac-machines", "vacd")
        all_run(site)
        yield site
        systemctl("disable", "--now", "vacd", "vac-machines")


def systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}{journal()}"


def shown(unit: str, name: str) -> str:
    """A property of a unit."""
    command = ["systemctl", "show", "--value", f"--property={name}", unit]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def microseconds(name: str) -> int:
    """A time of vacd's, on the clock that never jumps."""
    return int(shown("vacd", f"{name}Monotonic") or 0)


def journal() -> str:
    command = ["journalctl", "--no-pager", "-n", "60", "-o", "cat"]
    return "\n" + subprocess.run(command, capture_output=True, text=True, check=True).stdout


def group(site: FactorySite, machine: Machine) -> Path:
    return DELEGATED / site.name / f"{machine.name}_{machine.uuid}"


def processes(group: Path) -> frozenset[int]:
    with contextlib.suppress(FileNotFoundError):
        return frozenset(int(line) for line in (group / "cgroup.procs").read_text().split())
    return frozenset()


def running(site: FactorySite) -> Running:
    return {
        each.machinetype: (each.uuid, min(found))
        for each in site.running()
        if (found := processes(group(site, each)))
    }


def all_run(site: FactorySite) -> Running:
    try:
        site.wait_for(
            lambda: len(running(site)) == len(KINDS), "a machine of each kind runs", PATIENCE_SECONDS
        )
    except AssertionError as error:
        raise AssertionError(f"{error}{journal()}") from None
    return running(site)


def looked(site: FactorySite) -> None:
    """Wait until the present vacd has seen which machines there are."""
    status = site.state.status
    status.unlink()
    site.wait_for(
        lambda: status.exists() and not site.status().slot_states, "it knows all machines", PATIENCE_SECONDS
    )


def machine(site: FactorySite, kind: str) -> Machine:
    (found,) = site.running(kind)
    return found


def test_vacd_is_started_when_it_says_so_and_reloads(site: FactorySite) -> None:
    assert shown("vacd", "ActiveState") == "active"
    systemctl("reload", "vacd")
    log = subprocess.run(["journalctl", "-u", "vacd"], capture_output=True, text=True, check=True).stdout
    assert "vacd-factory: configuration: machinetypes" in log
    assert shown("vacd", "ActiveState") == "active"
    assert "factory" in shown("vacd", "StatusText")
    assert shown("vac-machines", "ActiveState") == "active"


def test_machines_have_limits_below_the_delegated_cgroup(site: FactorySite) -> None:
    own = group(site, machine(site, "steady"))
    limits = {name: (own / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.weight")}
    assert limits == {"memory.max": str(128 * 2**20), "pids.max": str(PIDS), "cpu.weight": "100"}
    assert (own / "memory.low").read_text().strip() == str(64 * 2**20)
    for process in processes(own):
        assert Path(f"/proc/{process}/cgroup").read_text().strip() == f"0::/{own.relative_to(CGROUPS)}"
    for each in (DELEGATED.parent, DELEGATED, DELEGATED / site.name):
        assert not processes(each), "or else the kernel would not have given controllers to what is below"
    assert len(processes(DELEGATED / "init")) == 1


def test_memory_limit_is_the_end_of_what_was_too_big_alone(site: FactorySite) -> None:
    eater = machine(site, "eater")
    code = eater.directory / "joboutputs/code"
    site.wait_for(lambda: code.exists() and code.read_text(), "its memory is full", PATIENCE_SECONDS)
    assert code.read_text() == "137\n"
    assert "oom_kill 0" not in (DELEGATED / "memory.events").read_text()
    systemctl("daemon-reload")
    assert shown("vac-machines", "ActiveState") == "active"
    assert (machine(site, "eater").uuid, shown("vac-machines", "NRestarts")) == (eater.uuid, "0")


def test_fork_bomb_stays_within_its_machine_and_ends_with_it(site: FactorySite) -> None:
    bomb = machine(site, "bomb")
    own = group(site, bomb)
    (bomb.directory / "joboutputs/go").write_text("now\n")
    site.wait_for(
        lambda: not (own / "pids.events").read_text().startswith("max 0"), "it is full", PATIENCE_SECONDS
    )
    assert int((own / "pids.peak").read_text()) <= PIDS
    assert site.vac("destroy", bomb.name).returncode == 0
    site.wait_for(lambda: not own.exists(), "all of it has gone", PATIENCE_SECONDS)
    all_run(site)


def test_daemon_ends_with_its_machine(site: FactorySite) -> None:
    daemon = machine(site, "daemon")
    own = group(site, daemon)
    site.wait_for((daemon.directory / "joboutputs/daemon").exists, "it is a daemon", PATIENCE_SECONDS)
    inside = processes(own)
    sessions = {Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[3] for each in inside}
    assert len(sessions) > 1
    assert site.vac("destroy", daemon.name).returncode == 0
    site.wait_for(lambda: not own.exists(), "its cgroup has gone", PATIENCE_SECONDS)
    assert not [each for each in inside if Path(f"/proc/{each}").exists()]


def test_stop_of_vacd_keeps_machines_and_leaves_nothing_else(site: FactorySite) -> None:
    before, created = all_run(site), len(site.lives())
    systemctl("stop", "vacd")
    assert not (CGROUPS / "system.slice/vacd.service").exists()
    assert running(site) == before
    WATCHDOG.write_text(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\nTimeoutAbortSec=1\n")
    systemctl("daemon-reload")
    systemctl("start", "vacd")
    looked(site)
    assert running(site) == before
    assert len(site.lives()) == created


def test_vacd_that_hangs_is_started_anew_and_machines_stay(site: FactorySite) -> None:
    def signs_of_life() -> float:
        return (microseconds("WatchdogTimestamp") - microseconds("ActiveEnterTimestamp")) / 1e6

    before = all_run(site)
    site.wait_for(lambda: signs_of_life() > WATCHDOG_SECONDS, "it tells that it lives", PATIENCE_SECONDS)
    restarts, supervisor = int(shown("vacd", "NRestarts")), shown("vacd", "MainPID")
    os.kill(int(supervisor), signal.SIGSTOP)
    site.wait_for(
        lambda: int(shown("vacd", "NRestarts")) > restarts and shown("vacd", "ActiveState") == "active",
        "systemd has ended it and started another",
        PATIENCE_SECONDS,
    )
    assert shown("vacd", "MainPID") != supervisor
    looked(site)
    assert running(site) == before


def test_restart_of_vacd_keeps_machines(site: FactorySite) -> None:
    before, begun = all_run(site), microseconds("ExecMainStartTimestamp")
    WATCHDOG.unlink()
    systemctl("daemon-reload")
    systemctl("restart", "vacd")
    assert microseconds("ExecMainStartTimestamp") > begun
    looked(site)
    assert running(site) == before


def test_stop_of_vac_machines_ends_all_machines(site: FactorySite) -> None:
    before = all_run(site)
    inside = [each for one in site.running() for each in processes(group(site, one))]
    systemctl("stop", "vac-machines")
    assert not DELEGATED.exists()
    assert not [each for each in inside if Path(f"/proc/{each}").exists()]
    assert shown("vacd", "ActiveState") == "inactive", "or else it would make others at once"
    systemctl("start", "vacd")
    after = all_run(site)
    assert not {uuid for uuid, _ in before.values()} & {uuid for uuid, _ in after.values()}
    assert shown("vac-machines", "ActiveState") == "active"
