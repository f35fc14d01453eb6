"""Engines that don't answer, refuse or hold too much: nothing is concluded from silence, remains are removed."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest

from tests.fake_driver import Script
from tests.simulated import START, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineState, EngineUnavailable, Observed
from vac.drivers.engine import Changed, Observation, Unobserved
from vac.lifecycle.phases import Empty
from vac.machines import files, requests
from vac.machines.machine import Machine
from vac.machines.slots import outcome


def two_engines(make_world: MakeWorld) -> World:
    world = make_world(one_type("c"), one_type("v", machine_model="vm-raw"))
    world.scripts = lambda spec: Script(300.0 if spec.machinetype.name == "v" else None, "200 Success")
    world.fill()
    assert sorted(spec.machinetype.name for spec in world.made) == ["c", "v"]
    return world


def test_an_engine_that_is_down_leaves_its_machines_as_they_were(make_world: MakeWorld) -> None:
    world = two_engines(make_world)
    machine = next(world.machine(n) for n in (0, 1) if world.machine(n).machinetype == "c")
    seen = machine.heartbeat_time
    world.engine("docker").unavailable = "connection refused"
    world.run(3600)
    assert not machine.finished
    assert machine.heartbeat_time == seen
    assert {record["Queue"] for record in world.records()} == {"v"}
    assert "connection refused" in (world.status().engines["docker"] or "")
    assert world.status().slot_states == {machine.name: "Unknown"}
    assert "connection refused" in world.status().passed_over["c"]

    world.engine("docker").unavailable = None
    world.run(120)
    assert world.running()[0] == machine.uuid
    assert machine.heartbeat_time == pytest.approx(world.clock.now, abs=60)
    assert world.status().slot_states == {}


def test_other_engines_work_on_while_one_is_down(make_world: MakeWorld) -> None:
    world = two_engines(make_world)
    world.engine("docker").unavailable = "connection refused"
    world.run(3600)
    assert len([record for record in world.records() if record["Queue"] == "v"]) >= 10
    assert len([spec for spec in world.made if spec.machinetype.name == "c"]) == 1


def test_an_engines_outage_and_return_are_acted_upon_at_once(world: World) -> None:
    def notify() -> None:
        world.inbox.put(Changed("docker", "f1-00.example.com"))
        world.run(1, step=1.0)

    world.start()
    world.turn()
    world.engine().unavailable = "connection refused"
    notify()
    assert "connection refused" in (world.status().guard or "")
    world.run(29)
    assert len(world.made) == 1
    world.engine().unavailable = None
    notify()
    assert world.status().engines == {"docker": None}
    assert len(world.made) == 2


def test_an_engine_that_does_not_answer_is_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    engine = world.factory.state.engines["docker"]
    begun = world.clock.now
    monkeypatch.setattr(engine, "stuck_seconds", lambda: world.clock.now - begun + 1)
    monkeypatch.setattr(engine, "problem", lambda: f"no answer for {world.clock.now - begun:.0f} s")
    caplog.set_level("INFO")
    world.run(100)
    assert [record.message for record in caplog.records if "answer" in record.message] == [
        "docker: it doesn't answer in time"
    ]


def test_an_unseen_end_is_accounted_once_the_engine_answers(world: World) -> None:
    world.scripts = lambda spec: Script(600.0, "200 Success", vanishes=True, processors_used=0.5)
    world.fill()
    machine = world.machine(0)
    world.run(300)
    last_seen = machine.heartbeat_time
    world.engine().unavailable = "down"
    world.run(1200)
    assert world.records() == []
    world.types = (one_type(target_share=0.0),)
    world.engine().unavailable = None
    world.run(120)
    records = {record["LocalJobId"]: record for record in world.records()}
    assert last_seen is not None
    assert int(records[machine.uuid]["EndTime"]) == int(last_seen)
    assert len(world.records()) == 2


@pytest.mark.parametrize("broken_off", [True, False])
def test_an_end_after_events_broke_off_is_not_early(world: World, broken_off: bool) -> None:
    """An engine that stops its machines as it stops itself may be back before anybody asks it."""
    world.scripts = lambda spec: Script(97.0)
    world.fill()
    machine = world.machine()
    world.run(90)
    if broken_off:
        world.inbox.put(Unobserved("docker", world.clock.boot()))
    world.run(60, step=15.0)
    assert machine.finished
    assert outcome(machine).early_counts is not broken_off


def test_an_engine_that_is_late_is_said_to_be_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    engine, since = world.factory.state.engine_of("docker"), world.clock.now

    def late() -> float:
        return world.clock.now - since

    monkeypatch.setattr(engine, "stuck_seconds", late)
    monkeypatch.setattr(engine, "problem", lambda: f"no answer for {late():.0f} s")
    world.run(300)
    assert caplog.text.count("docker: no answer") == 1


def test_a_starting_factory_does_not_report_missing_answers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.start()
    world.run(120)
    assert len(world.made) == 2
    assert "nothing is created" not in caplog.text


def test_nothing_is_created_before_an_engine_has_answered(world: World) -> None:
    world.engine().unavailable = "down"
    world.start()
    world.run(600)
    assert world.directories() == []
    assert "down" in (world.status().guard or "")
    world.engine().unavailable = None
    world.run(120)
    assert len(world.running()) == 2


def test_an_engine_that_is_down_at_start_leaves_what_it_had(world: World) -> None:
    world.fill()
    before = world.running()
    world.engine().unavailable = "down"
    world.start()
    world.run(600)
    assert not world.machine(0).finished
    assert world.state.counts.read_text().startswith("2 2 ")
    world.engine().unavailable = None
    world.run(600)
    assert world.running() == before
    assert world.records() == []


def test_a_listing_from_before_a_creation_does_not_count(world: World) -> None:
    world.start()
    world.turn()
    machine, now = world.machine(), world.clock.boot()
    world.inbox.put(Observation("docker", (), asked_time=now - 0.1))
    world.turn()
    assert not machine.finished
    assert world.running() == [machine.uuid]


def test_a_listing_during_a_creation_says_nothing_of_the_machine(world: World) -> None:
    world.start()
    world.hold = True
    world.run(120)
    assert not world.slot().running
    assert world.slot().occupied
    machine = world.machine()
    world.release()
    assert world.running()[0] == machine.uuid
    assert world.slot().running


@pytest.mark.parametrize(("moment", "adopted"), [("before", False), ("after", True)])
def test_a_creation_of_which_nobody_knows_the_end(world: World, moment: str, adopted: bool) -> None:
    made: list[Machine] = []

    def lose(call: str, when: str) -> None:
        if (call, when) == ("create", moment):
            made.append(world.machine())
            raise EngineUnavailable("connection lost")

    world.hook = lose
    world.start()
    world.turn()
    machine = made[0]
    world.hook = lambda call, when: None
    world.run(60)
    assert (machine.uuid in world.running()) is adopted
    assert machine.directory.exists() is adopted
    if adopted:
        assert machine.started_time == machine.created_time
        assert world.slot().running


def test_an_unexpected_error_of_a_driver_is_no_end_either(world: World) -> None:
    world.fill()
    machine = world.machine()

    def fail(call: str, when: str) -> None:
        raise RuntimeError("a bug in a driver")

    world.hook = fail
    world.run(600)
    assert not machine.finished
    assert len(world.running()) == 2


def test_a_clock_that_is_set_back_stalls_nothing(world: World) -> None:
    world.fill()
    requests.drain(world.state, requests.Drain(START))
    world.clock.now -= 7200
    world.run(120)
    assert "draining" in (world.status().guard or "")
    assert world.state.heartbeat("factory").stat().st_mtime > world.clock.now - 120
    world.engine().machines.clear()
    world.run(120)
    assert world.running() == [], "machines are watched as before"


ELSEWHERE = "f1-07.example.com"


def fail_to_destroy(call: str, moment: str) -> None:
    if call == "destroy":
        raise EngineUnavailable("device is busy")


def observe(world: World) -> None:
    world.factory.state.engine_of("docker").request_observation()
    world.turn()


def test_a_machine_of_no_slot_is_removed_after_two_observations(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    own = world.running()
    world.stranger(ELSEWHERE, "lost")
    observe(world)
    assert "lost" in world.engine().machines
    observe(world)
    assert world.running() == own
    assert f"{ELSEWHERE} (lost) is in no slot: removing it" in caplog.text


def test_the_two_observations_follow_each_other(world: World) -> None:
    world.fill()
    for _ in range(3):
        world.stranger(ELSEWHERE, "lost")
        observe(world)
        del world.engine().machines["lost"]
        observe(world)
    world.stranger(ELSEWHERE, "lost")
    observe(world)
    assert "lost" in world.engine().machines


def test_an_orphan_of_the_same_name_goes_the_slots_own_stays(world: World) -> None:
    world.fill()
    own = world.running()
    world.stranger(world.machine().name, "lost")
    world.run(180)
    assert world.running() == own
    assert not world.machine().finished


def test_no_machine_gets_the_name_of_one_still_to_be_removed(world: World) -> None:
    world.stranger("f1-00.example.com", "lost")
    world.hook = fail_to_destroy
    world.start()
    world.run(180)
    assert [spec.name for spec in world.made] == ["f1-01.example.com"]
    assert world.status().failed == {}
    assert world.status().slot_states == {"f1-00.example.com": "Zombie"}
    world.hook = lambda call, moment: None
    world.run(180)
    assert [spec.name for spec in world.made] == ["f1-01.example.com", "f1-00.example.com"]
    assert world.status().slot_states == {}


def test_remains_that_cannot_be_removed_keep_their_slot(world: World) -> None:
    world.scripts = lambda spec: Script(300.0 if spec.name.startswith("f1-00") else None, "200 Success")
    world.fill()
    machine = world.machine()
    world.hook = fail_to_destroy
    world.run(181)
    assert machine.finished
    assert world.status().slot_states == {}
    world.run(120)
    assert world.status().slot_states == {machine.name: "Zombie"}
    assert len(world.made) == 2, "its slot and processor are still taken"
    assert world.machine(1).heartbeat_time == pytest.approx(world.clock.now, abs=60)
    assert len(world.records()) == 1

    world.hook = lambda call, moment: None
    world.run(65)
    assert len(world.made) == 3
    assert world.status().slot_states == {}
    world.run(300)
    assert len(world.records()) == 2


def test_remains_are_still_known_after_a_restart(world: World) -> None:
    world.scripts = lambda spec: Script(300.0 if spec.name.startswith("f1-00") else None, "200 Success")
    world.fill()
    machine = world.machine()
    world.hook = fail_to_destroy
    world.run(200)
    world.start()
    world.run(120)
    assert len(world.made) == 2
    assert world.status().slot_states == {machine.name: "Zombie"}
    world.hook = lambda call, moment: None
    world.run(60)
    assert machine.uuid not in world.engine().machines
    assert len(world.records()) == 1


def test_a_listing_from_before_a_removal_does_not_count(world: World) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success")
    world.fill()
    machine = world.machine()
    world.settings = dataclasses.replace(world.settings, draining=True)
    world.run(400)
    assert machine.uuid not in world.engine().machines
    assert isinstance(world.slot().phase, Empty)
    listed = (Observed(machine.name, machine.uuid, EngineState.ENDED),)
    world.hold = True
    asked_time = machine.created_time + 299.9 - world.clock.now + world.clock.boot()
    world.inbox.put(Observation("docker", listed, asked_time))
    world.turn()
    assert isinstance(world.slot().phase, Empty)
    assert world.held == []


def test_a_failing_stop_is_repeated_only_now_and_then(world: World) -> None:
    world.fill()
    attempts: list[float] = []

    def refuse(call: str, moment: str) -> None:
        if call == "stop" and len(attempts) < 1000:
            attempts.append(world.clock.now)
            raise EngineUnavailable("device is busy")

    world.hook = refuse
    world.clock.now = world.machine().shutdown_time + 1.0
    world.run(60)
    assert 4 <= len(attempts) <= 2 * 6, "two machines, every 15 s"


def test_a_clock_that_is_set_back_does_not_blind_the_factory(world: World) -> None:
    world.fill()
    machine = world.machine()
    world.clock.now -= 7200
    back = world.clock.now
    world.run(130)
    assert back < world.state.heartbeat("factory").stat().st_mtime <= world.clock.now
    assert machine.heartbeat_time is not None
    assert back < machine.heartbeat_time <= world.clock.now
    assert (world.status().decision_time or 0) <= world.clock.now
    del world.engine().machines[machine.uuid]
    world.run(65)
    assert machine.finished


def test_a_machine_without_directory_is_watched_and_accounted(world: World) -> None:
    world.fill()
    machine = world.machine()
    shutil.rmtree(machine.directory)
    world.run(300)
    assert machine.uuid in world.running()
    world.ask("finish", machine)
    world.wake()
    world.ask("destroy", machine)
    world.wake()
    world.run(60)
    assert [record["LocalJobId"] for record in world.records()] == [machine.uuid]


@pytest.mark.parametrize("failure", [None, "no such image"])
def test_a_directory_removed_during_the_creation_does_no_harm(world: World, failure: str | None) -> None:
    world.scripts = lambda spec: Script(failure=failure)
    world.start()
    world.hold = True
    world.turn()
    name = world.machine().name
    shutil.rmtree(world.machine().directory)
    world.release()
    world.scripts = lambda spec: Script()
    world.run(300)
    world.engine().machines.clear()
    world.run(300)
    assert name in [one.spec.name for one in world.engine_machines()], "its slot is in use again"


def test_a_machine_of_a_model_that_is_not_known_is_left_alone(world: World) -> None:
    world.state.prepare()
    directory = world.state.machines / "1799999000_t_f1-00.example.com"
    directory.mkdir()
    (directory / "started").write_text("1799999000\n")
    (world.state.slots / "f1-00.example.com").write_text("1799999000 t lxc\n")
    world.engine("lxc").unavailable = "machine_model lxc is not known to this version"
    world.fill()
    assert [spec.name for spec in world.made] == ["f1-01.example.com"]
    assert world.status().slot_states == {"f1-00.example.com": "Unknown"}
    assert "lxc" in (world.status().engines["lxc"] or "")
    assert not world.machine().finished


@pytest.mark.parametrize(
    "place", ["slots/lost+found", "slots/f1-09.example.com", "requests/destroy-f1-00.example.com"]
)
def test_a_directory_in_the_place_of_a_file_is_not_looked_at(world: World, place: str) -> None:
    world.state.prepare()
    (world.state.root / place).mkdir()
    world.fill()
    assert len(world.running()) == 2
    assert (world.state.root / place).is_dir()


def test_an_order_to_drain_that_says_nothing_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    caplog.set_level("INFO")
    (world.state.requests / "drain").touch()
    world.run(600)
    told = [record for record in caplog.records if record.name == "vac.factory.loop"]
    assert len([record for record in told if "draining" in record.getMessage()]) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_set_back_holds_no_type_back_for_longer(world: World, restart: bool) -> None:
    world.scripts = lambda spec: Script(10.0, "300 Nothing to do")
    world.fill()
    world.scripts = lambda spec: Script()
    world.clock.now -= 7200
    if restart:
        world.start()
    world.run(600)
    assert len(world.running()) == 2


def ends(world: World) -> Machine:
    """A machine with something on its disk and in its joboutputs, which has just ended."""
    machine = world.machine()
    (machine.directory / "mnt/tmp").mkdir()
    (machine.directory / "mnt/tmp/core").write_text("large")
    (machine.directory / "joboutputs/log").write_text("all well")
    world.engine().driver().stop(machine.name, machine.uuid)
    return machine


def test_scratch_goes_at_the_end_and_all_else_stays(world: World) -> None:
    world.fill()
    machine = ends(world)
    before = {path.name for path in machine.directory.iterdir()}
    world.turn()
    after = {path.name for path in machine.directory.iterdir()}
    assert before - after == {"mnt"}
    assert (machine.directory / "joboutputs/log").read_text() == "all well"
    assert (world.machine(1).directory / "mnt").is_dir(), "a machine that runs keeps it"
    assert not list(world.state.tmp.iterdir())


def test_scratch_stays_as_long_as_the_engine_has_not_let_go(world: World) -> None:
    world.fill()
    refusing = True

    def refuse(call: str, moment: str) -> None:
        if call == "destroy" and refusing:
            raise EngineUnavailable("device is busy")

    world.hook = refuse
    machine = ends(world)
    world.run(90)
    assert machine.finished
    assert (machine.directory / "mnt/tmp/core").exists()
    refusing = False
    world.run(90)
    assert not (machine.directory / "mnt").exists()


def test_mounted_scratch_is_logged_once_and_goes_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    discard = files.discard

    def busy(path: Path, *, tmp: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(files, "discard", busy)
    world.types = ()
    world.run(65)
    machine = ends(world)
    world.run(200)
    assert caplog.text.count("scratch space can't be removed") == 1
    monkeypatch.setattr(files, "discard", discard)
    world.run(65)
    assert not (machine.directory / "mnt").exists()
