"""The driver of process machines with a shell for bubblewrap and directories for cgroups, its launcher and watch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_root
from tests.driver_contract import usages
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineState, MachineSpec, Observed
from vac.drivers.images import ImageVersion
from vac.drivers.processes import launch_plan, machine_watch
from vac.drivers.processes.launch_plan import STATUS_FILE, read_status, spawn
from vac.drivers.processes.machine_watch import KEPT_BYTES, SLACK_BYTES, MachineWatcher, limit, remove_middle
from vac.drivers.processes.process_driver import ProcessDriver
from vac.host.cgroups import Groups, GroupsV2, Limits, Usage, Watch
from vac.host.filesystems import stamp_of
from vac.host.syscall_filter import compiled

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

    def usage(self, name: str) -> Usage:
        return Usage(1.0)

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
        return ProcessDriver(self.groups, machines=self.path / "machines")

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
    assert ended.usage.exit_code == 3
    assert abs((ended.usage.ended_time or 0.0) - time.time()) < PATIENCE
    assert (spec.directory / "console.log").read_text() == "hello\n"
    assert (spec.directory / "joboutputs").stat().st_uid == launch_plan.account(spec.settings).pw_uid
    site.driver.destroy(spec.name, spec.uuid)
    assert site.driver.list() == []


def test_a_successor_knows_what_runs_and_how_it_ended(site: Site) -> None:
    begun = time.time()
    site.driver.create(site.spec(f"{BEGIN}; while [ ! -e {site.path}/go ]; do sleep 0.02; done; {END}"))
    assert site.listed(site.new_driver()).state is EngineState.RUNNING
    (site.path / "go").touch()
    site.wait_for(EngineState.ENDED)
    before = time.time()
    driver = site.new_driver()
    found = site.listed(driver)
    assert (found.state, found.usage.exit_code) == (EngineState.ENDED, 3)
    assert begun <= (usages(driver)["u"].started_time or 0.0) <= before
    assert before - PATIENCE < (found.usage.ended_time or 0.0) <= before


def test_start_is_the_commands_even_if_its_program_was_slow(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.time()
    spec = site.spec(f"{BEGIN}; while [ ! -e {site.path}/go ]; do sleep 0.02; done; {END}")
    site.driver.create(spec)
    status = spec.directory / launch_plan.STATUS_FILE
    launched = begun - 50
    status.write_text(re.sub('"executing": [0-9.]+', f'"executing": {launched}', status.read_text()))
    driver = site.new_driver()
    assert site.listed(driver).state is EngineState.RUNNING
    assert abs((usages(driver)["u"].started_time or 0.0) - begun) < 25
    (site.path / "go").touch()
    site.wait_for(EngineState.ENDED, driver)
    assert abs((usages(driver)["u"].started_time or 0.0) - begun) < 25
    assert usages(site.new_driver())["u"].started_time in (None, launched), "its processes have gone"
    monkeypatch.setattr(site.groups, "usage", lambda group: Usage(0.0))
    found = site.listed(site.new_driver())
    assert (found.state, found.usage.started_time) == (EngineState.HALF_MADE, launched), (
        "outputs may say it ran"
    )


def test_a_machine_whose_command_has_not_begun_is_half_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = site.spec("sleep 600")

    def create() -> None:
        with pytest.raises(CreationFailed):
            site.driver.create(spec)

    creation = threading.Thread(target=create)
    creation.start()
    other = site.new_driver()
    deadline = time.monotonic() + PATIENCE
    while "machine" not in read_status(spec.directory).told:  # the launcher says so before it enters
        assert time.monotonic() < deadline
    assert site.listed(other).state is EngineState.HALF_MADE
    own, sleep = threading.current_thread(), time.sleep

    def sleep_elsewhere(seconds: float) -> None:
        assert threading.current_thread() is not own, "it stays so: nothing waits for it again"
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep_elsewhere)
    assert site.listed(other).state is EngineState.HALF_MADE
    monkeypatch.undo()
    assert site.driver.list() == [], "its creation goes on"
    other.stop(spec.name, spec.uuid)
    creation.join(PATIENCE)
    assert not creation.is_alive()


def test_a_start_that_may_pass_is_tried_again(site: Site) -> None:
    flag = site.path / "flag"
    fails = f"[ -e {flag} ] || {{ date +%s.%N >{flag}; echo try again; exit 1; }}"
    site.driver.create(site.spec(f"{fails}; {BEGIN}; sleep 600"))
    found = site.listed()
    assert found.state is EngineState.RUNNING
    assert (found.usage.started_time or 0.0) > float(flag.read_text()), "it started at the second attempt"


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
    before = time.time()
    (site.path / "go").touch()
    site.wait_for(EngineState.ENDED)
    while (found := site.listed()).usage.signal is None:  # it can be waited for a moment later
        time.sleep(0.01)
    assert (found.usage.exit_code, found.usage.signal) == (None, 9)
    assert before <= (found.usage.ended_time or 0.0) <= time.time()
    assert site.listed().usage.ended_time == found.usage.ended_time


def test_what_outlives_its_killed_program_ends_the_machine(site: Site) -> None:
    wait = f"while [ ! -e {site.path}/%s ]; do sleep 0.02; done"
    spec = site.spec(f"{BEGIN}; ({wait % 'go'}) & {wait % 'made'}; kill -9 $$")
    site.driver.create(spec)
    (site.path / "made").touch()
    while site.driver._children:
        assert site.listed().state is EngineState.RUNNING
    before = time.time()
    (site.path / "go").touch()
    found = site.wait_for(EngineState.ENDED)
    assert found.usage.signal == 9
    assert (found.usage.ended_time or 0.0) >= before


IMAGE = "/etc/passwd"
MODEL = '''
"""A model whose program is a shell."""
PROGRAMS = ("sh",)
TELLS = True
def command_line(plan):
    if plan["image"].endswith("bad"):
        raise ValueError("the image is bad")
    return ["/bin/sh", "-c", plan["script"]]
'''
LOOK = """
echo '{"exit-code": 7}' >&3
echo $(id -u) $(id -g) $(id -G) $A $HOME
ls /proc/self/fd | tr '\\n' ' '; echo
pwd
od -An -v -tx1 <&4 | tr -d ' \\n'
"""


CONFINED = """
grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status | tr -s '[:space:]' ' '; echo
cat /proc/sys/user/max_user_namespaces; tr -s ' ' </proc/self/uid_map
unshare -Ur unshare -Ur unshare -Ur true && echo three
unshare -Ur unshare -Ur unshare -Ur unshare -Ur true 2>/dev/null || echo not four
"""


def start(tmp_path: Path, image: str, script: str = LOOK, **more: Any) -> tuple[str, int]:
    """Return the program's output and its exit code."""
    require_root()
    (tmp_path / "standin_model.py").write_text(MODEL)
    plan: dict[str, Any] = {
        "machine": "m_u", "model": "bubblewrap", "module": "standin_model", "path": str(tmp_path), "image": image,
        "procs_files": [str(tmp_path / "cgroup.procs")], "uid": 65534, "gid": 65534, "script": script, **more,
        "environment": {"A": "b", "PATH": "/usr/bin:/bin"}, "filter": compiled(False).hex(),
    }  # fmt: skip
    (tmp_path / "cgroup.procs").touch()
    with (tmp_path / "output").open("wb") as output, (tmp_path / STATUS_FILE).open("wb") as status:
        child = spawn(plan, output.fileno(), status.fileno())
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (tmp_path / "output").read_text(), exit_code


def test_the_program_gets_what_is_the_machines_and_nothing_else(tmp_path: Path) -> None:
    said, exit_code = start(tmp_path, IMAGE)
    assert exit_code == 0, said
    listing = "0 1 2 3 4 5 "  # the last being that of ls
    assert said.splitlines() == ["65534 65534 65534 b", listing, "/", compiled(False).hex()]
    assert (tmp_path / "cgroup.procs").read_text() == "0"


def test_a_program_that_takes_no_filter_is_put_under_one(tmp_path: Path) -> None:
    said, exit_code = start(
        tmp_path, IMAGE, CONFINED, inherited_filter=compiled(True).hex(), most_user_namespaces=3
    )
    status, most, users, *rest = said.splitlines()
    assert exit_code == 0, said
    assert status.strip() == "CapEff: 0000000000000000 NoNewPrivs: 0 Seccomp: 2"
    assert (most, users.strip(), *rest) == ("3", "65534 65534 1", "three", "not four")


def test_the_status_tells_how_the_machine_began_and_ended(tmp_path: Path) -> None:
    before = time.time()
    start(tmp_path, IMAGE)
    status = read_status(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / STATUS_FILE).read_text().splitlines()]
    assert lines[0].keys() == {"machine", "model", "pid"}
    assert lines[1:] == [
        {"image_path": IMAGE, "stamp": list(stamp_of(IMAGE))},
        {"executing": status.started_time},
        {"exit-code": 7},
    ]
    assert before <= (status.started_time or 0.0) <= time.time()
    assert status.exit_code == 7
    assert status.told["pid"] == lines[0]["pid"]
    assert status.image == (IMAGE, ImageVersion(IMAGE, stamp_of(IMAGE)))
    assert status.model is not None


def test_a_reason_not_to_launch_is_told(tmp_path: Path) -> None:
    said, exit_code = start(tmp_path, "/bad")
    assert (said, exit_code) == ("", 1)
    assert read_status(tmp_path).told["failure"] == "the image is bad"


MOST = 2 * KEPT_BYTES + SLACK_BYTES


def used(log: Path) -> int:
    return log.stat().st_blocks * 512


def test_the_beginning_and_the_end_of_a_large_log_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    writer = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(writer, b"begin\n")
    for number in range(40):
        os.write(writer, bytes([65 + number % 26]) * 1_000_000)
        limit(log)
        assert used(log) <= MOST + 1_000_000
    os.write(writer, b"end\n")
    os.close(writer)
    remove_middle(log)
    content = log.read_bytes()
    assert content.startswith(b"begin\nAAA")
    assert content.endswith(b"NNN" + b"end\n")
    left_out = 40_000_010 - 2 * KEPT_BYTES
    assert f"\n[{left_out} bytes were left out here]\n".encode() in content
    assert len(content) < 2 * KEPT_BYTES + 100
    assert not (tmp_path / ".console.log.short").exists()


def test_a_log_that_is_not_too_large_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * MOST)
    limit(log)
    remove_middle(log)
    assert log.read_bytes() == b"x" * MOST


def test_a_log_that_was_blown_up_by_its_machine_is_closed_up(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"begin")
    os.truncate(log, 2 * 10**12)
    limit(log)
    remove_middle(log)
    assert log.stat().st_size < 2 * KEPT_BYTES + 100


def test_all_logs_are_limited_and_absent_ones_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_watch, "LOOK_SECONDS", 0.01)
    seen = threading.Event()

    def directories() -> list[Path]:
        if used(large) <= MOST:
            seen.set()
        return [tmp_path / "gone", tmp_path / "own"]

    large = tmp_path / "own/console.log"
    large.parent.mkdir()
    large.write_bytes(b"x" * (MOST + 10_000_000))
    (tmp_path / "cgroup.controllers").touch()
    watcher = MachineWatcher(GroupsV2(tmp_path, "f1"), directories)
    listener = threading.Thread(target=lambda: list(watcher.ends()))
    listener.start()
    assert seen.wait(60)
    watcher.close()
    listener.join(60)
    assert not listener.is_alive()
