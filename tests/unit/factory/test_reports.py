"""The factory's reports: status, counters, notes, VacMon."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

import vac
from tests.fake_driver import Script
from tests.simulated import FACTORY, START, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.drivers.base import EngineUnavailable
from vac.factory import decisions
from vac.factory.report import UNUSED_IMAGE_DAYS
from vac.machines.machine import load
from vac.machines.status import Creation, TypeFacts
from vac.scheduling.backoff import code_group
from vac.scheduling.model import Decision


def test_status_says_what_there_is_and_what_was_decided(make_world: MakeWorld) -> None:
    world = make_world(
        one_type("a", target_share=3.0, accounting_fqan="/vo/Role=x", backoff_seconds=77),
        one_type("b", target_share=0.0),
        slots=1,
    )
    world.start()
    world.run(61)
    status = world.status()
    assert (status.space, status.site, status.factory) == ("space.example.org", "SITE", FACTORY)
    assert status.version == vac.__version__
    assert status.factories == (FACTORY,)
    assert (status.slots, status.total_processors, status.hs06_per_processor) == (1, 1, 10.0)
    assert status.engines == {"docker": None}
    assert status.machinetype("a") == TypeFacts(
        name="a",
        fqan="/vo/Role=x",
        machinegroup="a",
        target_share=3.0,
        machine_model="docker",
        min_wallclock_seconds=0,
        max_wallclock_seconds=86400,
        fizzle_seconds=100,
        backoff_seconds=77,
    )
    assert status.created == (Creation(START, "a", "f1-00.example.com", 1),)
    assert status.guard == "no free processors: 1 of 1 are in use"
    assert status.passed_over["b"] == "its target_share is 0"
    assert status.decision_time == pytest.approx(world.clock.now, abs=60)
    assert status.time == pytest.approx(world.clock.now, abs=60)
    assert (status.problems, status.drain, status.failed, status.slot_states) == ((), None, {}, {})


def test_what_shares_are_owed_outlives_a_restart(make_world: MakeWorld) -> None:
    world = make_world(one_type("a", target_share=3.0), one_type("b"), slots=1)
    world.fill()
    world.run(600)
    owed = world.factory.decisions.memory.ledger.debts
    assert owed["b"] > 0.0 or owed["a"] > 0.0, "one processor can't be divided"
    world.start()
    assert world.factory.decisions.memory.ledger.debts.keys() == owed.keys()
    assert world.factory.decisions.memory.ledger.debts == pytest.approx(owed, abs=10.0)


def test_status_names_hold_backs_with_their_ends(make_world: MakeWorld) -> None:
    world = make_world(one_type(backoff_seconds=500), slots=1)
    world.scripts = lambda spec: Script(20.0, "300 Nothing to do")
    world.start()
    world.run(60)
    assert world.status().held_here == {"t": START + 520}
    assert "backoff" in world.status().passed_over["t"] or "held back" in world.status().passed_over["t"]


def test_a_heartbeat_and_counts_show_that_the_factory_works(world: World) -> None:
    world.fill()
    heartbeat = world.state.heartbeat("factory")
    assert heartbeat.stat().st_mtime == pytest.approx(world.clock.now, abs=60)
    assert world.state.counts.read_text() == "2 2 2 2 20.00\n"
    world.engine().unavailable = "down"
    world.run(600)
    assert heartbeat.stat().st_mtime == pytest.approx(world.clock.now, abs=60)
    assert world.state.counts.read_text() == "2 2 2 2 20.00\n"


def test_old_directories_go_but_not_those_of_running_machines(make_world: MakeWorld) -> None:
    world = make_world(one_type(machines_dir_days=0.01), slots=2)
    world.scripts = lambda spec: Script(None if spec.name.startswith("f1-00") else 600.0, "200 Success")
    world.fill()
    world.run(7200, step=60.0)
    names = [path.name for path in world.directories()]
    assert len(names) < 6
    assert world.machine(0).directory.name in names
    assert world.machine(0).uuid in world.running()
    assert len(world.records()) == len(world.made) - 2


def test_images_that_no_machinetype_names_leave_the_cache(make_world: MakeWorld) -> None:
    url = "https://example.com/{}.iso".format
    world = make_world(one_type(root_image=url("named")))
    world.state.prepare()
    named, recent, old = (
        world.state.imagecache / quote(url(name), safe="") for name in ("named", "recent", "old")
    )
    for path, days in ((named, UNUSED_IMAGE_DAYS + 1), (recent, UNUSED_IMAGE_DAYS - 1), (old, 31)):
        path.touch()
        os.utime(path, (START - days * 86400, START))
    world.start()
    world.run(60)
    assert sorted(world.state.imagecache.iterdir()) == [named, recent]


def counts(world: World) -> dict[tuple[str, str, str], int]:
    return {(one.event, one.kind, one.outcome): one.count for one in world.status().event_counts}


def seconds(world: World, what: str, kind: str, outcome: str) -> float:
    return sum(
        one.seconds
        for one in world.status().event_counts
        if (one.event, one.kind, one.outcome) == (what, kind, outcome)
    )


def test_creations_ends_and_destructions_are_counted(make_world: MakeWorld) -> None:
    world = make_world(
        one_type("a", fizzle_seconds=10, backoff_seconds=0), one_type("b", target_share=9.0), slots=1
    )
    scripts = iter([Script(failure="no image"), Script(300.0, "200 Done"), Script(50.0, "350 Odd")])
    world.scripts = lambda spec: next(scripts, Script())
    world.types = world.types[:1]
    world.start()
    world.hold = True
    world.run(30)
    world.release()  # it took the engine 30 s to say that it couldn't
    world.run(460)
    assert counts(world)["creation", "docker", "failed"] == 1
    assert seconds(world, "creation", "docker", "failed") == 30
    assert counts(world)["creation", "docker", "created"] == 3
    assert counts(world)["destruction", "docker", "destroyed"] == 2
    assert counts(world)["end", "a", "200"] == counts(world)["end", "a", "300"] == 1
    assert seconds(world, "end", "a", "200") == pytest.approx(300, abs=10)
    assert counts(world)["cycle", "", ""] >= 7
    assert world.status().begin == START

    world.types = (one_type("b", target_share=9.0),)
    world.run(61)
    assert not [key for key in counts(world) if key[:2] == ("end", "a")], "of types that are gone"
    world.start()
    world.run(61)
    assert set(counts(world)) <= {("cycle", "", ""), ("creation", "docker", "created")}, "begins anew"


def test_destructions_that_fail_are_counted_and_timed(make_world: MakeWorld) -> None:
    world = make_world(one_type(), slots=1)
    world.scripts = lambda spec: Script(200.0, "200 Done")
    world.fill()

    def busy(call: str, moment: str) -> None:
        if call == "destroy" and moment == "before":
            raise EngineUnavailable("device or resource busy")

    world.hook = busy
    world.run(300)
    failed = counts(world)["destruction", "docker", "failed"]
    assert failed >= 2
    world.hook = lambda call, moment: None
    world.run(61)
    assert counts(world)["destruction", "docker", "destroyed"] == 1
    assert seconds(world, "destruction", "docker", "destroyed") > 100


def test_what_running_machines_use_is_told(make_world: MakeWorld) -> None:
    world = make_world(one_type(), slots=2, total_processors=1)
    world.scripts = lambda spec: Script(memory_bytes=5 << 20)
    world.fill()
    machine = world.machine(0)
    world.measured(machine, 1000)
    world.run(61)
    assert world.status().disk_used == {machine.uuid: 1000}
    told = load(machine.directory)
    assert told is not None
    assert (told.memory_bytes, told.peak_memory_bytes) == (5 << 20, 5 << 20)
    assert told.network_received_bytes is told.network_sent_bytes is None
    assert told.cpu_seconds == pytest.approx(world.clock.now - START, abs=65)


@pytest.mark.parametrize(
    ("message", "group"),
    [(None, "none"), ("bye", "none"), ("099 x", "none"), ("100 x", "100"), ("799 x", "700"), ("300", "300")],
)
def test_codes_between_hundreds_belong_to_the_hundred_below(message: str | None, group: str) -> None:
    assert code_group(message) == group


def test_a_note_is_logged_once_until_it_ends(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    factory = world.start()
    for notes in (("until 10:00", "other"), ("until 10:00", "other"), ("until 11:00", "other")):
        decision = Decision(notes=notes)
        monkeypatch.setattr(decisions, "decide", lambda situation, ramp, rng, made=decision: (made, ramp))
        factory.decisions.decide(world.clock.now)
    told = [text for text in caplog.messages if "until" in text or "other" in text]
    assert sorted(told) == ["no longer: until 10:00", "other", "until 10:00", "until 11:00"]


def test_a_hold_back_is_told_when_it_begins_and_when_it_is_over(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = make_world(one_type(backoff_seconds=600), slots=1)
    world.scripts = lambda spec: Script(30.0, "300 No work") if len(world.made) < 1 else Script()
    world.start()
    world.run(500)
    told = [text for text in caplog.messages if text.startswith("t:")]
    assert told == ["t: held back here after an abort or early end for another 10 min"]
    world.run(1000)
    told = [text for text in caplog.messages if text.startswith("t:")]
    assert told[1] == told[-1] == "t: no longer held back"
    assert len(told) == 4, "in between, one machine shows whether there is work again"
    assert told[2].startswith("t: being probed after aborts in the space")


def test_a_hold_backs_reason_is_logged_but_not_its_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    factory = world.start()
    for decision in (
        Decision(passed_over={"t": "held for 60 s"}, held_in_space={"t": 60.0}),
        Decision(passed_over={"t": "held for 50 s"}, held_in_space={"t": 60.0}),
        Decision(passed_over={"t": "held here for 70 s"}, held_here={"t": 110.0}),
        Decision(),
    ):
        monkeypatch.setattr(decisions, "decide", lambda situation, ramp, rng, made=decision: (made, ramp))
        factory.decisions.decide(world.clock.now)
    told = [text for text in caplog.messages if "held" in text]
    assert told == ["t: held for 60 s", "t: held here for 70 s", "t: no longer held back"]


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(60)
        yield service


def next_of(service: socket.socket, kind: str) -> dict[str, Any]:
    """The next message of this kind."""
    while True:
        message: dict[str, Any] = json.loads(service.recv(9000))
        if message["message_type"] == kind:
            return message


def test_each_cycle_and_each_end_is_told(make_world: MakeWorld, service: socket.socket) -> None:
    world = make_world(slots=1, vacmon_hostport=(f"127.0.0.1:{service.getsockname()[1]}",))
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    first = world.machine()
    factory = next_of(service, "factory_status")
    assert (factory["cookie"], factory["factory"], factory["max_processors"]) == (
        "0",
        world.settings.factory_name,
        1,
    )
    assert next_of(service, "machinetype_status")["machinetype"] == "t"
    world.run(400)
    ended = next_of(service, "machine_status")
    assert world.machine().uuid != first.uuid, "there is another machine in its slot"
    assert (ended["machine"], ended["uuid"], ended["state"]) == (first.name, first.uuid, "Shut down")
    assert ended["shutdown_message"] == "200 Success"


def test_a_service_that_does_not_exist_harms_nothing(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(vacmon_hostport=("vacmon.example.invalid:8884",))
    world.scripts = lambda spec: Script(400.0, "200 Success")
    world.fill()
    world.run(600)
    assert len(world.records()) == 2
    assert sum("VacMon" in record.getMessage() for record in caplog.records) <= 1


def test_without_a_service_nothing_is_started(make_world: MakeWorld) -> None:
    before = set(threading.enumerate())
    make_world().fill()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "vacmon"]


def test_the_hosts_energy_is_divided_by_cpu_time(make_world: MakeWorld) -> None:
    world = make_world(one_type(), slots=2)
    uses = iter((1.0, 0.5))
    world.scripts = lambda spec: Script(processors_used=next(uses))
    world.fill()
    world.factory.energy.meter.read = lambda: (600.0, 0.0)
    world.run(1000)
    first, second = (load(world.machine(number).directory) for number in range(2))
    assert first is not None and second is not None and first.joules and second.joules
    assert first.joules == pytest.approx(2 * second.joules, rel=0.2)
    assert first.joules + second.joules <= (world.status().joules or 0.0)
    world.factory.energy.meter.read = lambda: None
    before = world.status().joules
    world.run(200)
    assert world.status().joules == before
