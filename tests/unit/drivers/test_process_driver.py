"""The driver of process machines, with a shell in place of bubblewrap and directories in place of cgroups."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_root
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineState, MachineSpec, Observed
from vac.drivers.processes import launch_plan
from vac.drivers.processes.process_driver import ProcessDriver
from vac.host.cgroups import Groups, GroupUsage, Limits, Watch

pytestmark = pytest.mark.allow_subprocess
PATIENCE = 60
BEGIN = "echo '{\"child-pid\": 1}' >&3; echo hello"
END = "echo '{\"exit-code\": 3}' >&3; exit 3"


class Directories(Groups):
    """Groups that know their processes by what these are called."""

    def __init__(self, home: Path) -> None:
        super().__init__([home])
        self.home = home

    def create(self, name: str, limits: Limits) -> None:
        (self.home / name).mkdir(parents=True)
        (self.home / name / "cgroup.procs").touch()

    def processes(self, name: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and name.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def kill_all(self, name: str, deadline_seconds: float) -> None:
        for process in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        while self.processes(name):
            time.sleep(0.01)

    def remove(self, name: str) -> None:
        for file in (self.home / name).glob("*"):
            file.unlink()
        with contextlib.suppress(FileNotFoundError):
            (self.home / name).rmdir()

    def usage(self, name: str) -> GroupUsage:
        return GroupUsage(1.0, None, None)

    def watch(self, name: str) -> Watch | None:
        for process in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                return Watch(os.pidfd_open(process), select.POLLIN)
        return None

    def _make_home(self, home: Path) -> None: ...

    def _set_limits(self, name: str, limits: Limits) -> None: ...

    def _kill(self, name: str) -> None: ...


class Site:
    """A factory whose machines' commands are given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups = Directories(path / "groups")
        self.driver = self.new_driver()

    def new_driver(self) -> ProcessDriver:
        """As a factory that starts has it."""
        return ProcessDriver(self.groups, None, self.path / "machines")

    def spec(self, command: str) -> MachineSpec:
        directory = self.path / "machines/1_t_m.example.com"
        (directory / "joboutputs").mkdir(parents=True)
        machinetype = Machinetype("t", machine_model="bubblewrap", container_command=command)
        settings = Settings(factory_name="f.example.com", state_dir=self.path)
        return MachineSpec("m.example.com", "u", machinetype, settings, 1, 2**30, directory, self.path)

    def listed(self, driver: ProcessDriver | None = None) -> Observed:
        [found] = (driver or self.driver).list()
        return found

    def wait_for(self, state: EngineState, driver: ProcessDriver | None = None) -> Observed:
        deadline = time.monotonic() + PATIENCE
        while self.listed(driver).state is not state:
            assert time.monotonic() < deadline, state
            time.sleep(0.01)
        return self.listed(driver)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    require_root()
    monkeypatch.setitem(launch_plan.MODELS, "bubblewrap", "tests.unit.drivers.standin_model")
    monkeypatch.setattr(launch_plan, "PATH", f"{launch_plan.PATH}:m.example.com_u")
    with tempfile.TemporaryDirectory(prefix="vac-test-") as name:
        path = Path(name)
        path.chmod(0o777)  # machines look for files here
        site = Site(path)
        yield site
        for group in site.groups.names():
            site.groups.kill_all(group, PATIENCE)
        site.driver.close()


def test_a_machine_runs_ends_and_is_released(site: Site) -> None:
    spec = site.spec(f"{BEGIN}; while [ ! -e {site.path}/go ]; do sleep 0.02; done; {END}")
    site.driver.create(spec)
    assert site.listed().state is EngineState.RUNNING
    (site.path / "go").touch()
    ended = site.wait_for(EngineState.ENDED)
    assert ended.exit_code == 3
    assert abs((ended.ended_time or 0.0) - time.time()) < PATIENCE
    assert (spec.directory / "console.log").read_text() == "hello\n"
    assert (spec.directory / "joboutputs").stat().st_uid == launch_plan.account(spec.settings).pw_uid
    site.driver.destroy(spec.name, spec.uuid)
    assert site.driver.list() == []


def test_a_successor_knows_what_runs_and_how_it_ended(site: Site) -> None:
    site.driver.create(site.spec(f"{BEGIN}; while [ ! -e {site.path}/go ]; do sleep 0.02; done; {END}"))
    assert site.listed(site.new_driver()).state is EngineState.RUNNING
    (site.path / "go").touch()
    site.wait_for(EngineState.ENDED)
    before = time.time()
    found = site.listed(site.new_driver())
    assert (found.state, found.exit_code) == (EngineState.ENDED, 3)
    assert before - PATIENCE < (found.ended_time or 0.0) <= before


def test_a_machine_whose_command_has_not_begun_is_half_made(site: Site) -> None:
    spec = site.spec("sleep 600")

    def create() -> None:
        with pytest.raises(CreationFailed):
            site.driver.create(spec)

    creation = threading.Thread(target=create)
    creation.start()
    other = site.new_driver()
    deadline = time.monotonic() + PATIENCE
    while not site.groups.processes("m.example.com_u"):
        assert time.monotonic() < deadline
    assert site.listed(other).state is EngineState.HALF_MADE
    assert site.driver.list() == [], "its creation goes on"
    other.stop(spec.name, spec.uuid)
    creation.join(PATIENCE)
    assert not creation.is_alive()


def test_a_start_that_may_pass_is_tried_again(site: Site) -> None:
    flag = site.path / "flag"
    fails = f"[ -e {flag} ] || {{ touch {flag}; echo try again; exit 1; }}"
    site.driver.create(site.spec(f"{fails}; {BEGIN}; sleep 600"))
    assert site.listed().state is EngineState.RUNNING


@pytest.mark.parametrize(
    ("command", "reason"),
    [("echo it is broken; exit 1", "it is broken"), ("exit 1", "sh ended at once")],
)
def test_a_failed_start_has_a_reason_and_leaves_nothing(site: Site, command: str, reason: str) -> None:
    with pytest.raises(CreationFailed, match=reason):
        site.driver.create(site.spec(command))
    assert site.driver.list() == []


def test_an_end_by_a_signal_is_told(site: Site) -> None:
    site.driver.create(site.spec(f"{BEGIN}; while [ ! -e {site.path}/go ]; do sleep 0.02; done; kill -9 $$"))
    (site.path / "go").touch()
    found = site.wait_for(EngineState.ENDED)
    assert (found.exit_code, found.signal) == (None, 9)
