"""The factory's memory of its peers, and its warnings when it compares itself with them."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Collection, Mapping

import pytest

from tests.fake_driver import Script
from tests.simulated import FACTORY, START, VirtualClock, World, one_type
from tests.unit.factory.conftest import MakeWorld
from tests.unit.vacquery.test_messages import recorded
from vac.cli.check_vacd import check
from vac.cli.factory_commands import reasons
from vac.config.load import Configuration
from vac.config.settings import Settings
from vac.factory import peers
from vac.factory.peers import Answers, Space
from vac.scheduling.model import TypeReport
from vac.scheduling.space import FRESH_SECONDS, LEAST_RENEW_SECONDS, SILENT_SECONDS
from vac.vacquery.messages import Dropped, Kind, Reason
from vac.vacquery.poll import Poll, PollResult, Resolver

PEERS = ("f2.example.com", "f3.example.com")
SETTINGS = Settings(
    factory_name=FACTORY, factories=(FACTORY, *PEERS), total_processors=8, hs06_per_processor=10.0
)
CONFIGURATION = Configuration(SETTINGS, {}, {}, {}, ())
SAID = {"t": TypeReport(running_machines=2, running_processors=2, running_hs06=20.0)}


class Asked:
    """Peers that say what a test wants, and what they were asked."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.answering: Collection[str] = PEERS
        self.posted: queue.SimpleQueue[Answers] = queue.SimpleQueue()
        self.doubtful: list[tuple[str, ...]] = []
        self.space = Space(self.ask, self.posted.put, self.clock.unix)

    def ask(self, configuration: Configuration, capacities: bool, doubtful: Collection[str]) -> Answers:
        self.doubtful.append(tuple(doubtful))
        return Answers(self.clock.now, dict.fromkeys(self.answering, SAID), None)

    def poll(self) -> None:
        """Until the space is known well enough."""
        assert not self.space.fresh(CONFIGURATION)
        self.space.answered(self.posted.get(timeout=60))
        assert self.space.fresh(CONFIGURATION)


def test_peers_that_were_silent_are_not_waited_for_the_next_time() -> None:
    asked = Asked()
    asked.poll()
    asked.answering = PEERS[:1]
    asked.clock.now += FRESH_SECONDS
    asked.poll()
    assert asked.space.silent(SETTINGS) == {PEERS[1]: START}
    asked.answering = PEERS
    asked.clock.now += FRESH_SECONDS
    asked.poll()
    assert asked.doubtful == [(), (), PEERS[1:]]
    assert asked.space.silent(SETTINGS) == {}


def test_the_space_is_added_up_once_per_poll() -> None:
    asked = Asked()
    asked.poll()
    first = asked.space.view(SETTINGS, dict, asked.clock.now)
    assert asked.space.view(SETTINGS, lambda: {"t": TypeReport(1, 1, 10.0)}, asked.clock.now + 1) is first
    asked.clock.now += FRESH_SECONDS
    asked.poll()
    assert asked.space.view(SETTINGS, dict, asked.clock.now) is not first


def test_a_silent_peers_last_answer_counts_for_five_minutes() -> None:
    asked = Asked()
    asked.poll()
    asked.answering = ()
    asked.clock.now += SILENT_SECONDS - 1
    asked.poll()
    assert asked.space.view(SETTINGS, dict, asked.clock.now).types["t"].running_hs06 == 40.0
    asked.clock.now += 1
    view = asked.space.view(SETTINGS, dict, asked.clock.now)
    assert (view.types, view.silent) == ({}, PEERS)


def test_a_partial_answer_counts_once_the_full_one_is_too_old() -> None:
    asked = Asked()
    asked.poll()
    part = {"u": TypeReport(running_machines=7, running_processors=7, running_hs06=70.0)}

    def hs06_known(time: float) -> dict[str, float]:
        asked.space.answered(Answers(time, {PEERS[0]: SAID}, partial={PEERS[1]: part}))
        types = asked.space.view(SETTINGS, dict, time).types
        return {name: totals.running_hs06 for name, totals in types.items()}

    assert hs06_known(START + 100) == {"t": 40.0}
    assert asked.space.silent(SETTINGS) == {PEERS[1]: START}
    assert hs06_known(START + SILENT_SECONDS) == {"t": 20.0, "u": 70.0}
    assert asked.space.silent(SETTINGS) == {PEERS[1]: START}


def test_a_small_space_is_asked_while_the_view_still_counts() -> None:
    asked = Asked()
    asked.poll()
    asked.clock.now += LEAST_RENEW_SECONDS / 2
    assert asked.space.fresh(CONFIGURATION)
    assert asked.posted.empty()
    asked.clock.now += LEAST_RENEW_SECONDS
    assert asked.space.fresh(CONFIGURATION), "a decision doesn't wait for it"
    asked.space.answered(asked.posted.get(timeout=60))
    assert len(asked.doubtful) == 2


def test_a_large_space_is_asked_every_half_a_minute() -> None:
    asked = Asked()
    factories = (FACTORY, *(f"f{number}.example.com" for number in range(2, 1001)))
    configuration = Configuration(dataclasses.replace(SETTINGS, factories=factories), {}, {}, {}, ())
    assert not asked.space.fresh(configuration)
    asked.space.answered(asked.posted.get(timeout=60))
    asked.clock.now += FRESH_SECONDS - 0.1
    assert asked.space.fresh(configuration)
    asked.clock.now += 0.1
    assert not asked.space.fresh(configuration)
    asked.posted.get(timeout=60)
    assert len(asked.doubtful) == 2


@pytest.mark.parametrize(
    ("capacities", "unrated", "own", "warned"),
    [
        ({}, (), 10.0, None),
        ({}, (), None, None),
        ({PEERS[0]: 80.0, PEERS[1]: 80.0}, (), 10.0, None),
        ({PEERS[0]: 8.0, PEERS[1]: 8.0}, PEERS, None, None),
        (
            {PEERS[0]: 80.0, PEERS[1]: 8.0},
            PEERS[1:],
            10.0,
            f"1 of 3 factories have no hs06_per_processor ({PEERS[1]})",
        ),
        ({PEERS[0]: 80.0}, (), None, f"1 of 2 factories have no hs06_per_processor ({FACTORY})"),
        ({PEERS[0]: 80.0, "gone.example.com": 8.0}, ("gone.example.com",), 10.0, None),
    ],
)
def test_a_space_in_which_only_some_have_hs06_is_warned_about(
    capacities: Mapping[str, float], unrated: Collection[str], own: float | None, warned: str | None
) -> None:
    space = Asked().space
    space.answered(Answers(START, {}, capacities, unrated))
    warning = space.warning(dataclasses.replace(SETTINGS, hs06_per_processor=own))
    assert warning is None if warned is None else (warning or "").startswith(warned)


def failing_world(make_world: MakeWorld, peers: TypeReport) -> World:
    world = make_world(one_type(backoff_seconds=600), factories=SETTINGS.factories)
    world.scripts = lambda spec: Script(5.0, "700 Broken")

    def ask(*asked: object) -> Answers:
        return Answers(world.clock.now, {name: {"t": peers} for name in PEERS})

    world.ask_peers = ask
    world.start()
    for _ in range(6):
        world.factory.space.answered(ask())
        world.run(20)
    assert list(world.status().held_here) == ["t"]
    return world


def test_a_type_failing_only_here_is_warned_about_everywhere(make_world: MakeWorld) -> None:
    world = failing_world(make_world, TypeReport(8, 8, 80.0, 0))
    text = "t keeps failing on this factory while others run it: this node is probably broken"
    assert world.status().warnings == (text,)
    assert f"Warning: {text}." in list(reasons(world.status(), None, world.clock.now))
    world.state.heartbeat("responder").touch()
    assert check(world.state, 1e12, world.clock.now)[0] == 1
    assert text in check(world.state, 1e12, world.clock.now)[1]


def test_a_type_that_fails_everywhere_is_no_warning(make_world: MakeWorld) -> None:
    assert failing_world(make_world, TypeReport(1, 1, 10.0, 1)).status().warnings == ()


def test_dropped_answers_are_kept_and_logged_on_change(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (whole,) = recorded(Kind.MACHINETYPES).values()
    why = {PEERS[1]: Dropped(Reason.SIGNATURE)}
    found = PollResult(
        {PEERS[0]: whole}, frozenset(PEERS[:1]), PEERS[1:], frozenset(), {Reason.SIGNATURE: 2}, 0.1, why
    )
    monkeypatch.setattr(Poll, "run", lambda *_: found)
    configuration = dataclasses.replace(CONFIGURATION, machinetypes={"type-00": one_type("type-00")})
    answers = peers.ask_peers(Resolver(), lambda: START, configuration, True)
    assert answers.unusable == {PEERS[1]: "wrong or no signature"}
    assert answers.dropped == {"wrong or no signature": 4, "machinetype not configured here": len(whole) - 1}
    space = Asked().space
    caplog.set_level("INFO")
    for given, lines in (answers, 2), (answers, 2), (Answers(START), 4), (Answers(START), 4):
        space.answered(given)
        assert len(caplog.records) == lines
    assert f"{PEERS[1]}: wrong or no signature" in caplog.messages[0]
    world = make_world(one_type(), factories=SETTINGS.factories)
    world.ask_peers = lambda *_: dataclasses.replace(answers, time=world.clock.now)
    world.start()
    world.factory.space.answered(answers)
    world.run(20)
    assert world.status().dropped == answers.dropped


def test_what_polls_drop_is_in_the_status(make_world: MakeWorld) -> None:
    world = make_world(one_type(), factories=SETTINGS.factories)
    unusable, dropped = {PEERS[1]: "other space"}, {"other space": 3}
    world.ask_peers = lambda *_: Answers(world.clock.now, unusable=unusable, dropped=dropped)
    world.start()
    world.factory.space.answered(Answers(world.clock.now, unusable=unusable, dropped=dropped))
    world.run(20)
    status = world.status()
    assert (status.unusable, status.dropped) == (unusable, dropped)


def test_a_peer_that_answers_in_part_does_not_count_as_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = recorded(Kind.MACHINETYPES).values()
    came = {PEERS[0]: whole, PEERS[1]: whole[:1]}
    found = PollResult(came, frozenset(PEERS[:1]), PEERS[1:], frozenset(), {}, 0.1)
    monkeypatch.setattr(Poll, "run", lambda *_: found)
    types = {name: one_type(name) for name in ("type-00", "type-03")}
    configuration = dataclasses.replace(CONFIGURATION, machinetypes=types)
    answers = peers.ask_peers(Resolver(), lambda: START, configuration, False)
    assert set(answers.reports) == {PEERS[0]}
    assert set(answers.partial) == {PEERS[1]}
