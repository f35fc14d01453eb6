"""What the scheduler remarks is told once, and forgotten when it holds no longer."""

from __future__ import annotations

import pytest

from tests.simulated import World
from vac.factory import deciding
from vac.scheduling.model import Decision


def test_a_note_is_told_once_and_forgotten_when_it_holds_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    factory = world.start()
    for notes in (("until 10:00", "other"), ("until 10:00", "other"), ("until 11:00", "other")):
        decision = Decision(notes=notes)
        monkeypatch.setattr(deciding, "decide", lambda situation, ramp, rng, made=decision: (made, ramp))
        factory.deciding.decide(world.clock.now)
    told = [text for text in caplog.messages if "until" in text or "other" in text]
    assert sorted(told) == ["no longer: until 10:00", "other", "until 10:00", "until 11:00"]
