"""What the factory tells others of itself."""

from __future__ import annotations

import os
from urllib.parse import quote

import pytest

import vac
from tests.fake_driver import Script
from tests.simulated import FACTORY, START, World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.factory.report import UNUSED_IMAGE_DAYS
from vac.machines.status import Creation, TypeFacts


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


def test_old_directories_are_removed_but_not_those_of_running_machines(make_world: MakeWorld) -> None:
    world = make_world(one_type(machines_dir_days=0.01), slots=2)
    world.scripts = lambda spec: Script(None if spec.name.startswith("f1-00") else 600.0, "200 Success")
    world.fill()
    world.run(7200, step=60.0)
    names = [path.name for path in world.directories()]
    assert len(names) < 6
    assert world.machine(0).directory.name in names
    assert world.machine(0).uuid in world.running()
    assert len(world.records()) == len(world.made) - 2


def test_images_that_no_machinetype_names_any_more_leave_the_cache(make_world: MakeWorld) -> None:
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
