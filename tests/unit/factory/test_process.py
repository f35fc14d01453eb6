"""The process vacd-factory: how it begins, is told to stop, and leaves when an engine hangs for good."""

from __future__ import annotations

import fcntl
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_driver import FakeEngine
from tests.simulated import Configured, World, simulate_host
from tests.unit.factory.conftest import MakeWorld
from tests.waiting import wait_for
from vac.config.settings import Settings
from vac.context.downloads import DownloadFailed
from vac.context.signatures import SignatureRefused
from vac.drivers.base import Driver, Fetch
from vac.drivers.engine import ActionKind, Engine
from vac.factory import process
from vac.factory.loop import Factory, Stuck
from vac.factory.state import Message, Wake
from vac.host.filesystems import stamp_of
from vac.machines import layout
from vac.machines.layout import StateDir, StateDirBusy, lock_name
from vac.machines.machine import load
from vac.roles import EXIT_OTHER_AT_WORK, EXIT_TO_RESTART, RoleOptions

PATIENCE_SECONDS = 60.0
CONFIGURATION = """
[settings]
vac_space = space.example.org
factory_name = f1.example.com
state_dir = {state_dir}
total_processors = 1
overload_per_processor = 1000000
[machinetype t]
target_share = 1
machine_model = docker
root_image = docker://image
container_command = /bin/pilot
fizzle_seconds = 100
"""


class Left(BaseException):
    """In place of os._exit."""


class Process:
    """main() in a thread of its own, with a simulated engine in real time."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        simulate_host(monkeypatch)
        monkeypatch.setattr(process, "driver_for", self._driver)
        monkeypatch.setattr(process, "RETRY_SECONDS", 0.05)
        monkeypatch.setattr(layout, "RUN_DIRECTORY", place)
        monkeypatch.setattr(StateDir, "mount_nosuid", lambda state: "no mounts in unit tests")
        self.state = StateDir(place / "state")
        self.file = place / "vac.conf"
        self.engine = FakeEngine(time.time)
        self.ready = threading.Event()
        self.stop: Callable[[], None] = lambda: None
        self.wake: Callable[[], None] = lambda: None
        self.status: int | None = None

    def _driver(self, machine_model: str, settings: Settings, fetch: Fetch) -> Driver:
        self.fetch = fetch
        return self.engine.driver()

    def configure(self, text: str = CONFIGURATION) -> None:
        self.file.write_text(text.format(state_dir=self.state.root))

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        self.status = process.main(RoleOptions((self.file,), ready=self.ready.set, listen=self._listen))

    def _listen(self, stop: Callable[[], None], wake: Callable[[], None]) -> None:
        self.stop, self.wake = stop, wake

    def wait_for_machine(self) -> None:
        """Until the factory has written that it runs."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self.engine.changed:
            assert self.engine.changed.wait_for(lambda: self.engine.machines, PATIENCE_SECONDS)
        directory = next(iter(self.engine.machines.values())).spec.directory
        while not (directory / "heartbeat").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    one = Process(tmp_path, monkeypatch)
    yield one
    one.stop()


def finish(one: Process, thread: threading.Thread) -> None:
    one.stop()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_it_fills_its_slot_and_leaves_its_machine_at_its_stop(started: Process) -> None:
    started.configure()
    thread = started.start()
    started.wait_for_machine()
    assert started.ready.is_set()
    assert started.state.version.read_text() == "VERSION=4.0.0\n"
    finish(started, thread)
    assert started.status == 0
    (machine,) = started.engine.machines.values()
    assert machine.end_time() is None

    started.ready.clear()
    again = started.start()
    assert started.ready.wait(PATIENCE_SECONDS)
    finish(started, again)
    assert list(started.engine.machines) == [machine.spec.uuid]
    found = load(machine.spec.directory)
    assert found is not None
    assert found.started_time is not None
    assert not found.finished


def test_drivers_get_images_checked_and_through_the_cache(started: Process, tmp_path: Path) -> None:
    started.configure()
    thread = started.start()
    started.wait_for_machine()
    finish(started, thread)
    image = tmp_path / "boot.iso"
    image.write_bytes(b"unsigned")
    assert started.fetch(str(image)) == (image, stamp_of(image))
    with pytest.raises(SignatureRefused, match="8 bytes; a signed image has more than"):
        started.fetch(str(image), "/CN=signer")
    with pytest.raises(DownloadFailed):
        started.fetch("http://127.0.0.1:9/boot.iso", "/CN=signer")


def test_vms_ends_are_not_done_one_after_another(started: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, object]] = []

    def engine(*arguments: Any, **keywords: Any) -> Engine:
        made.append((arguments[0], keywords["apart"]))
        return Engine(*arguments, **keywords)

    monkeypatch.setattr(process, "Engine", engine)
    started.configure(CONFIGURATION.replace("docker://image", "/boot.iso").replace("docker", "cernvm3"))
    thread = started.start()
    started.wait_for_machine()
    finish(started, thread)
    assert made == [("libvirt", {ActionKind.STOP})]


def test_two_factories_never_work_on_one_state_dir(
    started: Process, caplog: pytest.LogCaptureFixture
) -> None:
    started.configure()
    started.state.prepare()
    (started.state.tmp / "half-built").mkdir()
    with started.state.lock():
        thread = started.start()
        thread.join(PATIENCE_SECONDS)
    assert started.status == EXIT_OTHER_AT_WORK
    assert f"factory process {os.getpid()} works on it" in caplog.text
    assert not started.engine.machines
    assert (started.state.tmp / "half-built").exists(), "it is the other one's"


def test_two_factories_never_have_one_name(started: Process, caplog: pytest.LogCaptureFixture) -> None:
    started.configure()
    with lock_name("f1.example.com"):
        thread = started.start()
        thread.join(PATIENCE_SECONDS)
    assert started.status == EXIT_OTHER_AT_WORK
    assert f"factory f1.example.com: factory process {os.getpid()} works on it" in caplog.text
    assert not started.state.root.exists()


def test_a_names_lock_leaves_no_file_and_never_serves_two(
    started: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flock = layout.RUN_DIRECTORY / "vac-f1.example.com.pid", fcntl.flock

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        file.unlink()
        flock(descriptor, operation)

    with lock_name("f1.example.com"):
        assert file.read_text() == f"{os.getpid()}\n"
    assert not file.exists()
    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with pytest.raises(StateDirBusy), lock_name("f1.example.com"):
        pass


def test_a_state_dir_that_cannot_be_used_is_waited_for(
    started: Process, caplog: pytest.LogCaptureFixture
) -> None:
    started.configure()
    started.state.root.parent.mkdir(exist_ok=True)
    started.state.root.write_text("in its place")
    thread = started.start()
    assert started.ready.wait(PATIENCE_SECONDS)
    started.state.root.unlink()
    started.wait_for_machine()
    finish(started, thread)
    assert caplog.text.count("can't be used, waiting") == 1


def test_a_broken_configuration_at_start_is_repaired_later(started: Process) -> None:
    started.configure(CONFIGURATION.replace("machine_model = docker", "machine_model = dokcer"))
    thread = started.start()
    assert started.ready.wait(PATIENCE_SECONDS)
    assert "dokcer" in started.state.factory_error.read_text()
    assert not started.engine.machines
    started.configure()
    started.wake()
    started.wait_for_machine()
    wait_for(lambda: not started.state.factory_error.exists(), "the error to go", PATIENCE_SECONDS)
    finish(started, thread)


def test_another_engine_address_is_for_a_new_process(started: Process) -> None:
    started.configure()
    thread = started.start()
    started.wait_for_machine()
    started.configure(CONFIGURATION.replace("[settings]", "[settings]\ndocker_host = unix:///run/p.sock"))
    started.wake()
    thread.join(PATIENCE_SECONDS)
    assert started.status == EXIT_TO_RESTART


def test_an_engine_that_hangs_for_good_ends_the_process(make_world: MakeWorld) -> None:
    world = make_world()
    hang = world.engine().hang("list")
    inbox: queue.Queue[Message] = queue.Queue()
    opened: list[Engine] = []

    def open_engine(machine_model: str, settings: Settings) -> Engine:
        opened.append(Engine("docker", world.engine().driver, inbox.put, world.clock.boot))
        return opened[-1]

    world.state.prepare()
    factory = process.open_factory(
        world.state,
        world.configuration(),
        Configured(world.configuration),
        inbox,
        clock=world.clock,
        rng=random.Random(1),
        open_engine=open_engine,
        ask=world.ask_peers,
    )
    world.factory = factory
    factory.turn(0.0)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not opened[0]._outstanding():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    world.clock.now += 40
    factory.turn(0.0)
    assert "no answer for 40 s" in (world.status().guard or "")
    world.clock.now += 580
    factory.turn(0.0)
    world.clock.now += 20
    with pytest.raises(Stuck, match="docker: no answer for 640 s"):
        factory.turn(0.0)
    hang.set()


def test_a_stuck_process_leaves_at_once(
    started: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started.configure()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise Left

    def run(self: Factory, alive: Callable[[], None], ready: Callable[[], None]) -> None:
        raise Stuck("docker: no answer for 640 s")

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(Factory, "run", run)
    with pytest.raises(Left):
        process.main(RoleOptions((started.file,)))
    assert statuses == [process.EXIT_STUCK]
    assert "docker: no answer for 640 s" in caplog.text


def test_it_shows_life_each_time_its_loop_goes_round(world: World) -> None:
    world.start()
    lives: list[float] = []

    def alive() -> None:
        lives.append(world.clock.now)
        world.inbox.put(Wake())
        if len(lives) == 3:
            world.factory.stopping = True

    ready: list[int] = []
    world.factory.run(alive, lambda: ready.append(len(lives)))
    assert ready == [0]
    assert len(lives) == 3
