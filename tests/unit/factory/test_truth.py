"""Nothing lost, nothing invented: clocks that are set, absences, wrong directories, failing disks, people."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_driver import FakeMachine, Script
from tests.simulated import START, World, one_type
from tests.steps import at_files
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineState, Observed
from vac.drivers.engine import Changed, Engine, _Call
from vac.factory.state import Stop
from vac.lifecycle.phases import Releasing, SetAside
from vac.machines import files

YEAR = 365 * 86400


@pytest.mark.parametrize("step", [3600, 200 * 86400, 10 * YEAR, -40, -3600, -10 * YEAR])
@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_step_ends_no_machine_and_changes_no_record(
    world: World, caplog: pytest.LogCaptureFixture, step: int, restart: bool
) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    machines = [world.machine(0), world.machine(1)]
    world.clock.set(step)
    if restart:
        world.start()
    world.run(100)
    assert [machine.finished for machine in machines] == [False, False]
    assert len(world.made) == 2
    world.types = (one_type(target_share=0.0),)
    world.run(300)
    assert [record["WallDuration"] for record in world.records()] == ["400", "400"]
    starts = sorted(int(record["StartTime"]) for record in world.records())
    assert starts == [START, START + 15], "as they were written down"
    assert ("clock was set by" in caplog.text) is not restart
    assert caplog.text.count("clock was set by") <= 1


@pytest.mark.parametrize("step", [3600, -3600, 10 * YEAR, -10 * YEAR])
def test_a_machine_found_started_began_when_it_was_created(make_world: MakeWorld, step: int) -> None:
    world = make_world(slots=1)
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    for name in ("started", "started_boot", "heartbeat"):
        (world.machine().directory / name).unlink()
    world.clock.set(step)
    world.start()
    world.types = (one_type(target_share=0.0),)
    world.run(500)
    assert [record["WallDuration"] for record in world.records()] == ["400"]


@pytest.mark.parametrize("step", [3600, -3600, -10 * YEAR])
def test_a_step_of_the_wall_clock_holds_no_type_back(world: World, step: int) -> None:
    world.types = (one_type(backoff_seconds=60),)
    world.scripts = lambda spec: Script(200.0, "300 No work")
    world.fill()
    world.run(200)
    world.scripts = lambda spec: Script()
    world.clock.set(step)
    world.run(600)
    assert len(world.running()) == 2


def test_a_machine_ends_by_the_clock_that_nobody_sets(make_world: MakeWorld) -> None:
    world = make_world(one_type(max_wallclock_seconds=500), slots=1)
    world.start()
    world.run(200)
    world.clock.set(-7200)
    world.types = (one_type(target_share=0.0),)
    world.run(295)
    assert world.records() == []
    world.run(65)
    assert [record["WallDuration"] for record in world.records()] == ["500"]


@pytest.mark.parametrize("step", [7200, -7200])
def test_a_machine_asked_to_finish_after_a_step_has_its_grace(make_world: MakeWorld, step: int) -> None:
    world = make_world(grace_secs=300)
    world.fill()
    machine = world.machine()
    world.clock.set(step)
    world.run(5)
    world.ask("finish", machine)
    world.wake()
    told = int((machine.directory / "machinefeatures/shutdowntime").read_text())
    assert told == int(world.clock.now + 300), "in the machine's own clock, which is the host's"
    world.run(290)
    assert not machine.finished
    world.run(15)
    assert machine.finished


@pytest.mark.parametrize("step", [0, 7200, -7200])
def test_a_heartbeat_file_is_judged_by_age_whatever_the_clock(make_world: MakeWorld, step: int) -> None:
    world = make_world(one_type(heartbeat_file="beat", heartbeat_seconds=600), slots=1)
    world.fill()
    machine = world.machine()
    beat = machine.directory / "joboutputs" / "beat"
    for _ in range(10):
        beat.touch()
        os.utime(beat, (world.clock.now, world.clock.now))
        world.run(60)
    world.clock.set(step)
    for _ in range(10):
        os.utime(beat, (world.clock.now, world.clock.now))
        world.run(60)
    assert not machine.finished
    world.types = (one_type(target_share=0.0),)
    world.run(700)
    assert (machine.directory / "shutdown_message").read_text() == "700 Heartbeat file not updated\n"


def test_a_heartbeat_that_the_host_cannot_read_ends_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(one_type(heartbeat_file="beat", heartbeat_seconds=600), slots=1)
    world.fill()
    machine = world.machine()
    beat = machine.directory / "joboutputs" / "beat"

    def fail(*_: object) -> float:
        raise files.Unreadable("beat: too many open files") from OSError(errno.EMFILE, "too many open files")

    for seconds in range(15):
        os.utime(beat, (world.clock.now, world.clock.now)) if beat.exists() else beat.touch()
        with monkeypatch.context() as patch:
            if seconds > 10:
                patch.setattr(files, "untrusted_mtime", fail)
            world.run(60)
    assert not machine.finished


def test_ends_while_the_factory_is_away_hold_nothing_back(world: World) -> None:
    world.scripts = lambda spec: Script(20.0, "200 Success", vanishes=True)
    world.start()
    world.turn()
    world.inbox.put(Stop())
    world.factory.run(lambda: None, lambda: None)
    world.clock.now += 70
    world.scripts = lambda spec: Script()
    world.start()
    world.run(60)
    assert world.status().held_here == {}
    assert len(world.running()) == 2


def test_a_stopping_factory_writes_when_it_last_saw_machines(world: World) -> None:
    world.fill()
    world.run(60)
    world.clock.now += 25
    before = world.machine().heartbeat_time
    world.inbox.put(Stop())
    world.factory.run(lambda: None, lambda: None)
    assert before is not None
    assert world.machine().heartbeat_time == world.clock.now > before


def test_a_stopping_factory_credits_nothing_while_its_engine_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill()
    world.run(60)
    listed = world.slot().observed.alive_time
    assert listed is not None
    seen = world.clock.now - (world.clock.boot() - listed)
    world.clock.now += 25
    waiting = _Call("", world.clock.boot() - 5.0, world.clock.boot() + 25.0)
    monkeypatch.setattr(Engine, "_outstanding", lambda engine: [waiting])
    world.inbox.put(Stop())
    world.factory.run(lambda: None, lambda: None)
    assert world.machine().heartbeat_time == seen


def test_an_end_nobody_saw_is_not_before_the_last_listing(world: World) -> None:
    world.scripts = lambda spec: Script(400.0, "200 Success", vanishes=True, processors_used=0.0)
    world.fill()
    machine = world.machine()
    world.run(60)
    world.clock.now += 15
    world.inbox.put(Changed("docker", ""))
    world.turn()
    listed = world.clock.now
    assert machine.heartbeat_time == listed - 15, "it isn't written so often"
    world.engine().unavailable = "down"
    world.run(600)
    world.types = (one_type(target_share=0.0),)
    world.engine().unavailable = None
    world.run(60)
    ends = {record["LocalJobId"]: int(record["EndTime"]) for record in world.records()}
    assert ends[machine.uuid] == listed


def test_a_restart_sees_a_message_left_meanwhile(make_world: MakeWorld) -> None:
    world = make_world(one_type(fizzle_seconds=10), slots=1)
    world.scripts = lambda spec: Script(60.0, "200 Success", vanishes=True, processors_used=0.0)
    world.start()
    world.turn()
    machine = world.machine()
    world.clock.now += 60
    world.engine().wake()
    os.utime(machine.directory / "joboutputs/shutdown_message", (world.clock.now - 1, world.clock.now - 1))
    world.clock.now += 1000
    world.types = (one_type(target_share=0.0),)
    world.start()
    world.run(60)
    assert [record["WallDuration"] for record in world.records()] == ["59"]


def test_the_engines_own_end_time_is_the_machines_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    told = START + 300.0
    world.fill()
    observed = FakeMachine.observed

    def with_end(self: FakeMachine, now: float) -> Observed:
        seen = observed(self, now)
        ended_time = told if seen.state is EngineState.ENDED else None
        return dataclasses.replace(seen, usage=dataclasses.replace(seen.usage, ended_time=ended_time))

    monkeypatch.setattr(FakeMachine, "observed", with_end)
    world.engine().unavailable = "dockerd is stopped"
    world.run(270)
    world.types = (one_type(target_share=0.0),)
    world.engine().unavailable = None
    world.run(70)
    ends = {int(record["EndTime"]) for record in world.records()}
    assert ends == {int(told)}


def test_a_start_that_nobody_saw_is_when_the_engine_tells(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(slots=1)
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.start()
    world.hold = True
    world.turn()
    (begin,) = world.held
    world.hold, world.held = False, []
    world.clock.now += 40
    begin()  # … and the factory dies before it hears of that
    observed = FakeMachine.observed

    def with_start(self: FakeMachine, now: float) -> Observed:
        seen = observed(self, now)
        usage = dataclasses.replace(seen.usage, started_time=self.created_time)
        return dataclasses.replace(seen, usage=usage)

    monkeypatch.setattr(FakeMachine, "observed", with_start)
    world.types = (one_type(target_share=0.0),)
    world.start()
    world.run(400)
    assert [record["WallDuration"] for record in world.records()] == ["300"]


@pytest.mark.parametrize("action", ["destroy", "finish"])
def test_what_people_end_is_nobodys_abort(make_world: MakeWorld, action: str) -> None:
    world = make_world(slots=1, grace_secs=5)
    world.start()
    world.run(20)
    machine = world.machine()
    (machine.directory / "joboutputs/shutdown_message").write_text("700 Terminated\n")
    world.ask(action, machine)
    world.wake()
    world.run(60)
    assert machine.finished
    assert world.status().held_here == {}
    world.start()
    world.run(60)
    assert world.status().held_here == {}
    assert len(world.running()) == 1


def test_a_machine_of_which_only_parts_were_made_has_no_record(world: World) -> None:
    world.start()
    world.hold = True
    world.turn()
    half_made = {path.name for path in world.directories()}
    world.hold = False
    world.start()
    world.run(120)
    assert not half_made & {path.name for path in world.directories()}
    assert world.records() == []
    assert len(world.directories()) == len(world.running()) == 2


# Wrong directories


def empty(world: World, tmp_path: Path) -> Path:
    """Let the state_dir be as it is when nobody has mounted it; return where it really is."""
    elsewhere = tmp_path / "elsewhere"
    world.state.root.rename(elsewhere)
    world.state.root.mkdir()
    world.wrong_directory = True
    return elsewhere


def test_an_empty_state_dir_ends_no_machine_and_makes_none(world: World, tmp_path: Path) -> None:
    world.fill()
    own = world.running()
    elsewhere = empty(world, tmp_path)
    for _ in range(2):
        world.start()
        world.run(300)
        assert world.running() == own
        assert len(world.made) == 2
        assert "knew of none" in (world.status().guard or "")
        assert any("knew of none" in warning for warning in world.status().warnings)
    shutil.rmtree(world.state.root)
    elsewhere.rename(world.state.root)
    world.start()
    world.run(120)
    assert world.running() == own
    assert world.records() == []
    assert world.status().warnings == ()


def test_people_can_say_that_unknown_machines_are_to_be_removed(world: World, tmp_path: Path) -> None:
    world.fill()
    own = world.running()
    empty(world, tmp_path)
    world.start()
    world.run(120)
    world.state.remove_unknown.touch()
    world.run(300)
    assert not set(own) & set(world.running())
    assert len(world.running()) == 2


def test_a_changed_factory_name_leaves_machines_alone(world: World) -> None:
    world.fill()
    engine, own = world.engine(), world.running()
    theirs, engine.machines = engine.machines, {}
    right = world.settings
    world.settings = dataclasses.replace(right, factory_name="f2.example.com", factories=("f2.example.com",))
    world.start()
    world.run(600)
    assert world.records() == []
    assert len(world.made) == 2
    assert "factory_name was f1.example.com" in (world.status().guard or "")
    engine.machines, world.settings = theirs, right
    world.start()
    world.run(120)
    assert world.running() == own
    assert len(world.made) == 2


def test_a_new_state_dir_is_used_at_once(world: World) -> None:
    world.wrong_directory = True
    world.fill()
    assert len(world.running()) == 2
    assert world.status().warnings == ()


# Disks that fail


class Faults:
    """Errors that every change of a matching file meets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pattern = ""
        self.number = errno.EIO
        at_files(monkeypatch.setattr, self.step)

    def step(self, step: str, path: Path) -> None:
        if self.pattern and self.pattern in str(path) and step not in ("written", "renamed", "removed"):
            raise OSError(self.number, os.strerror(self.number), str(path))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_state_dir_that_fails_and_is_repaired_costs_no_record(
    world: World, faults: Faults, number: int
) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    world.types = (one_type(target_share=0.0),)
    faults.pattern, faults.number = str(world.state.root), number
    world.run(600)
    assert world.records() == []
    assert any(os.strerror(number) in text for text in world.factory.state.troubles.values())
    faults.pattern = ""
    world.run(130)
    assert [record["WallDuration"] for record in world.records()] == ["300", "300"]
    assert world.status().warnings == ()
    assert world.error() is None
    assert world.engine().machines == {}


def test_a_state_dir_that_cannot_even_be_read_ends_no_factory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill()
    own, places = world.running(), (world.state.tmp, world.state.requests)
    iterdir = Path.iterdir

    def fail(self: object, *arguments: object) -> Iterator[Path]:
        if self in places or self == world.state.root:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return iterdir(self)  # type: ignore[arg-type]

    with monkeypatch.context() as failing:
        failing.setattr(Path, "iterdir", fail)
        failing.setattr(os, "statvfs", fail)
        world.run(600)
    assert world.running() == own
    assert "requests can't be read" in (world.error() or "")
    world.run(65)
    assert world.error() is None


def test_one_machines_failing_files_hold_up_no_other(world: World, faults: Faults) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    faults.pattern = str(world.machine(0).directory)
    world.types = (one_type(target_share=0.0),)
    world.run(600)
    assert [record["LocalJobId"] for record in world.records()] == [world.machine(1).uuid]
    assert world.machine(0).name in (world.error() or "")
    assert any(world.machine(0).name in warning for warning in world.status().warnings)


@pytest.mark.parametrize("place", ["apel-archive", "apel-outgoing"])
@pytest.mark.parametrize("gone", [True, False])
def test_missing_accounting_directories_are_made_again_or_told(world: World, place: str, gone: bool) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    world.types = (one_type(target_share=0.0),)
    shutil.rmtree(world.state.root / place)
    if not gone:
        (world.state.root / place).write_text("in its place")
    world.run(300)
    assert len(world.records()) == (0 if not gone and place == "apel-archive" else 2)
    if not gone:
        assert place in (world.error() or "")
        (world.state.root / place).unlink()
        world.run(130)
    assert len(world.records(world.state.apel_outgoing)) == 2
    assert world.error() is None


@pytest.mark.parametrize("file", ["slots/f1-00.example.com", "machines/*_f1-00.example.com/started"])
def test_a_machine_that_cannot_be_read_is_set_aside_until_it_can(world: World, file: str) -> None:
    world.fill()
    own = world.running()
    (path,) = world.state.root.glob(file)
    aside = path.rename(world.state.root / "aside")
    path.mkdir()
    world.start()
    world.run(300)
    assert isinstance(world.slot().phase, SetAside)
    assert world.running() == own
    assert len(world.made) == 2
    assert world.machine(1).heartbeat_time == pytest.approx(world.clock.now, abs=60)
    assert "f1-00.example.com" in (world.error() or "")
    assert world.status().slot_states == {"f1-00.example.com": "Unknown"}
    path.rmdir()
    aside.rename(path)
    world.run(125)
    assert world.running() == own
    assert world.slot().running
    assert world.error() is None


@pytest.mark.parametrize("name", ["status.json", "counts", "factory-error", "VERSION", "identity.json"])
def test_a_directory_in_the_place_of_a_small_file_stops_nothing(world: World, name: str) -> None:
    world.state.prepare()
    (world.state.root / name).mkdir()
    world.fill()
    assert len(world.running()) == 2


def test_a_full_slot_is_released_only_after_its_end_is_written(world: World, faults: Faults) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    faults.pattern = "/finished"
    world.types = (one_type(target_share=0.0),)
    world.run(600)
    assert len(world.engine().machines) == 2
    assert not isinstance(world.slot().phase, Releasing)
