"""Groups of processes in the cgroups that this host has; v2 also where it offers no controllers."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import cgroups_named, require_root
from tests.engines.process_site import group_makers
from tests.waiting import wait_for
from vac.drivers.processes.machine_watch import MachineWatcher
from vac.host.cgroups import CgroupError, Groups, Limits

pytestmark = pytest.mark.engine

LIMITS = Limits(processors=1, memory_bytes=64 * 2**20, memory_limit_bytes=128 * 2**20, pids=100)
ESCAPE = """
import os, sys, time
for entrance in sys.argv[1:]:
    with open(entrance, "w") as file:
        file.write("0")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
print("entered", flush=True)
time.sleep(600)
"""
SPIN = """
for number in range(2):
    os.fork()
os.nice(19)
def spin():
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    while True:
        os.read(descriptor, 1 << 20)
for number in range(2):
    threading.Thread(target=spin).start()
spin()
"""
RUN_AWAY = """
import os, sys
for entrance in sys.argv[1:]:
    with open(entrance, "w") as file:
        file.write("0")
for _ in range(5):
    os.fork()
while True:
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        pass
"""


@pytest.fixture(params=sorted(group_makers()))
def groups(request: pytest.FixtureRequest) -> Iterator[Groups]:
    require_root()
    factory = f"test-{secrets.token_hex(4)}.example.com"
    groups = group_makers()[request.param](factory)
    yield groups
    for name in groups.names():
        groups.kill_all(name, 60)
        groups.remove(name)
    groups.remove_if_empty()
    assert not cgroups_named(factory)


@contextlib.contextmanager
def entered(groups: Groups, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the group, with a grandchild that has left its session."""
    arguments = [sys.executable, "-c", ESCAPE, *map(str, groups.procs_files(name))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"entered\n"
            wait_for(lambda: len(groups.processes(name)) == 2, "both processes are in the group")
            yield child
        finally:
            groups.kill_all(name, 60)


def test_everything_in_a_group_is_killed_and_its_usage_stays(groups: Groups) -> None:
    groups.create("m_u", LIMITS)
    assert not groups.populated("m_u")
    with entered(groups, "m_u") as child:
        groups.kill_all("m_u", 60)
        assert not groups.populated("m_u")
        assert child.wait(60) == -9
    used = groups.usage("m_u").cpu_seconds
    assert used is not None
    assert used > 0
    groups.remove("m_u")
    assert groups.names() == []


def test_tasks_beside_processors_are_counted(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    groups.create("m_u", LIMITS)
    with entered(groups, "m_u"):
        wait_for(lambda: groups.usage("m_u").busy_tasks is None, "those that sleep don't count")
        script = "import os, threading\n" + ESCAPE.split("if os.fork")[0] + SPIN
        arguments = [sys.executable, "-c", script, *map(str, groups.procs_files("m_u"))]
        with subprocess.Popen(arguments):
            wait_for(lambda: groups.usage("m_u").busy_tasks == 12, "all are counted, threads too")
            groups.kill_all("m_u", 60)


def test_processes_that_run_away_by_forking_are_killed(groups: Groups) -> None:
    groups.create("m_u", LIMITS)
    with subprocess.Popen([sys.executable, "-c", RUN_AWAY, *map(str, groups.procs_files("m_u"))]):
        wait_for(lambda: len(groups.processes("m_u")) >= 10, "many are in the group")
        groups.kill_all("m_u", 60)
        assert not groups.populated("m_u")


def test_a_killer_that_dies_leaves_no_process_frozen(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def die(process: int, number: int) -> None:
        raise Died

    groups.create("m_u", LIMITS)
    with entered(groups, "m_u") as child:
        with monkeypatch.context() as patched, contextlib.suppress(Died):
            patched.setattr(os, "kill", die)
            groups.kill_all("m_u", 60)
        child.terminate()
        assert child.wait(60) < 0


def test_groups_made_inside_are_emptied_and_removed(groups: Groups) -> None:
    groups.create("m_u", LIMITS)
    inner = groups.procs_files("m_u")[0].parent / "inner"
    inner.mkdir()
    arguments = [sys.executable, "-c", ESCAPE, str(inner / "cgroup.procs")]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL):
        wait_for(lambda: groups.populated("m_u"), "the group inside counts")
        groups.kill_all("m_u", 60)
    groups.remove("m_u")
    assert not inner.exists()
    assert groups.names() == []


def test_populated_group_is_not_removed(groups: Groups) -> None:
    groups.create("m_u", LIMITS)
    with entered(groups, "m_u"):
        with pytest.raises(CgroupError, match="m_u: Device or resource busy"):
            groups.remove("m_u")
        groups.kill_all("m_u", 60)


def test_the_end_of_a_groups_last_process_is_an_event(groups: Groups) -> None:
    groups.create("found_u", LIMITS)
    ends: list[str] = []
    watcher = MachineWatcher(groups, lambda: ())
    listener = threading.Thread(target=lambda: ends.extend(watcher.ends()))
    with entered(groups, "found_u"):
        watcher.add("none_u")
        listener.start()
        wait_for(lambda: ends == ["none_u"], "it is listening, and what isn't there has ended")
        groups.create("added_u", LIMITS)
        with entered(groups, "added_u"):
            watcher.add("added_u")
            os.kill(groups.processes("added_u")[0], 9)
            assert not groups.wait_until_empty("added_u", 0.1)
            assert ends == ["none_u"], "its other process lives"
            groups.kill_all("added_u", 60)
            wait_for(lambda: ends[1:] == ["added_u"], "its end is told")
        groups.kill_all("found_u", 60)
        wait_for(lambda: ends[1:] == ["added_u", "found_u"], "its end is told")
    watcher.close()
    listener.join(60)
    assert not listener.is_alive()
