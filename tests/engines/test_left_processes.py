"""Singularity machines that a classic factory left running: watched, ended, accounted for, their slots kept."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.driver_contract import usages
from tests.engines.factory_fixture import FactorySite, Kind, factory_site, records
from tests.engines.process_site import Site, group_makers, open_site
from tests.waiting import wait_for
from vac.drivers.base import EngineState, EngineUnavailable, LeftProcess
from vac.drivers.processes.process_driver import ProcessDriver

pytestmark = pytest.mark.engine

UUID = "0a3160d197f3256733a5b6647a96a50b7566394d12740be97b5b4ec41164cc08"
NAME = "f1-00.example.com"


@contextlib.contextmanager
def standing_in(command: str = "Singularity runtime parent", user: str = "nobody") -> Iterator[int]:
    """A process that looks like one of Singularity's, with a child in a session of its own; nothing is left."""
    script = f"exec -a '{command}' sh -c 'setsid sleep 600 & echo; sleep 600; :'"
    group = pwd.getpwnam(user).pw_gid
    process = subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, user=user, group=group, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    wait_for(lambda: len(sleepers(process.pid)) == 2, "its children run")
    below = sleepers(process.pid)
    try:
        yield process.pid
    finally:
        for each in (process.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def sleepers(parent: int) -> list[int]:
    """The process's children that are `sleep`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = entry.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            if name == "sleep" and int(fields.split()[1]) == parent:
                found.append(int(number))
    return found


def left(pid: int) -> LeftProcess:
    return LeftProcess(NAME, pid, time.time() + 1.0, "nobody", 1, 2**31, 100.0)


@pytest.fixture(params=sorted(group_makers()))
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    require_root()
    require_tool("bwrap")
    with open_site(request.param) as site:
        yield site


def test_a_classic_machine_is_adopted_and_ends_as_a_whole(site: Site) -> None:
    with standing_in() as pid:
        below = sleepers(pid)
        site.driver.adopt({}, {UUID: left(pid)})
        assert [(one.name, one.uuid, one.state) for one in site.driver.list()] == [
            (NAME, UUID, EngineState.RUNNING)
        ]
        assert set(site.groups.processes(f"{NAME}_{UUID}")) == {pid, *below}
        used = usages(site.driver)[UUID]
        assert (used.cpu_seconds or 0.0) >= 100.0
        assert used.peak_memory_bytes is None, "the kernel doesn't tell: what was allocated is accounted for"
        successor = ProcessDriver(site.groups)
        successor.adopt({}, {UUID: left(pid)})
        assert [one.state for one in successor.list()] == [EngineState.RUNNING], "vacd started again"
        site.driver.stop(NAME, UUID)
        assert not any(running(each) for each in (pid, *below))
        assert [one.state for one in site.driver.list()] != [EngineState.RUNNING]


def running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_a_process_with_only_the_same_number_is_left_alone(site: Site) -> None:
    with standing_in() as pid, standing_in(command="editor") as other, standing_in(user="daemon") as foreign:
        late = dataclasses.replace(left(pid), noted_time=time.time() - 3600)
        site.driver.adopt({}, {"1": late, "2": left(other), "3": left(foreign), "4": left(2**22 + 1)})
        assert site.driver.list() == []
        assert all(map(running, (pid, other, foreign)))


def test_whose_account_is_gone_is_unknown(site: Site) -> None:
    with standing_in() as pid:
        site.driver.adopt({}, {UUID: dataclasses.replace(left(pid), user="no-such-user")})
        for _ in range(2):
            with pytest.raises(
                EngineUnavailable, match="there is no account no-such-user: singularity_user must"
            ):
                site.driver.list()
        site.driver.adopt({}, {UUID: left(pid)})
        assert [one.state for one in site.driver.list()] == [EngineState.RUNNING]


def plant(site: FactorySite, pid: int) -> Path:
    """A machine's directory and slot as the classic leaves them."""
    site.state.prepare()
    created = int(time.time()) - 3600
    name = site.name.replace(".", "-00.", 1)
    directory = site.state.machines / f"{created}_old_{name}"
    (directory / "jobfeatures").mkdir(parents=True)
    (directory / "joboutputs").mkdir()
    (directory / "jobfeatures/job_id").write_text(UUID)
    (directory / "jobfeatures/shutdowntime_job").write_text(str(created + 86400))
    (directory / "started").touch()
    os.utime(directory / "started", (created, created))
    (directory / "heartbeat").write_text("100.0 90.0 ")
    os.utime(directory / "heartbeat", (created + 60, created + 60))
    (directory / "pid").write_text(str(pid))
    (site.state.slots / name).write_text(f"{created} old singularity")
    return directory


def test_a_classic_machine_keeps_its_slot_and_is_accounted() -> None:
    with factory_site({"t": Kind("exec sleep 600")}, processors=1, start=False) as site, standing_in() as pid:
        directory = plant(site, pid)
        begun = time.time()
        site.start()
        site.wait_for(lambda: (directory / "heartbeat").stat().st_mtime >= begun, "it is seen alive")
        woken = time.time()
        site.wake()
        cycle = site.state.heartbeat("factory")
        site.wait_for(lambda: cycle.stat().st_mtime > woken, "the factory has looked again")
        assert running(pid)
        assert not (directory / "finished").exists()
        assert [machine.uuid for machine in site.running()] == [UUID]
        assert site.vac("destroy", directory.name.rpartition("_")[2]).returncode == 0
        site.wait_for((directory / "finished").exists, "its end is written")
        assert not running(pid)
        assert float(records(site)[UUID]["CpuDuration"]) >= 100
