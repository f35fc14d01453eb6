"""What the scheduler remarks is told once, and forgotten when it holds no longer."""

from __future__ import annotations

import pytest

from tests.fake_driver import Script
from tests.simulated import World, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.factory import decisions
from vac.scheduling.model import Decision


def test_a_note_is_told_once_and_forgotten_when_it_holds_no_longer(
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


def test_another_reason_for_a_hold_back_is_told_another_number_of_seconds_is_not(
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
