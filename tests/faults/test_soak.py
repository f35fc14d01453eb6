"""A soak of three minutes, and that its judge finds what it is to find."""

from __future__ import annotations

import pytest

from tests.faults.ledger import Life, Record, judge
from tests.faults.soak import TOLERANCE_SECONDS, soak

SEED = 4
MINUTES = 3.0


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_nothing_is_lost_and_nothing_invented_whatever_fails() -> None:
    print(f"seed {SEED}")
    with soak(SEED) as run:
        run.run(60 * MINUTES)
        found = run.differences(max(TOLERANCE_SECONDS, 2 * run.ledger.lateness()))
        assert not found, "\n".join([*found, *run.done, run.site.log()])
        assert run.ledger.lives
        assert run.done


def recorded(wall_seconds: int = 60, cpu_seconds: int = 9, uuid: str = "u1") -> Record:
    """A machine's record."""
    return Record(uuid, 1000, 1000 + wall_seconds, wall_seconds, cpu_seconds, 1)


@pytest.mark.parametrize(
    ("life", "records", "words"),
    [
        (Life(0.0, 60.0, cpu_seconds=9.9), [recorded()], ""),
        (Life(0.0, 60.0), [], "no record"),
        (Life(0.0, 60.0), [recorded(), recorded()], "2 records"),
        (Life(0.0, 60.0), [recorded(64)], "its record says 64 s"),
        (Life(0.0, 60.0), [recorded(56)], "its record says 56 s"),
        (Life(0.0, 60.0, cpu_seconds=10.0), [recorded()], "its record says 9 s"),
        (Life(0.0, 60.0), [recorded(), recorded(uuid="u2")], "never began"),
        (Life(0.0, 4.0), [], ""),
        (Life(0.0, 1.0), [recorded(1)], "though it lived only 1.0 s"),
        (Life(0.0, 60.0, mute=True), [recorded(45)], ""),
        (Life(0.0, 60.0, mute=True), [recorded(39)], "its record says 39 s"),
        (Life(0.0, 60.0, mute=True), [recorded(64)], "its record says 64 s"),
        (Life(58.0, 63.0, mute=True), [], ""),
    ],
)
def test_the_judge_finds_each_difference(life: Life, records: list[Record], words: str) -> None:
    found = judge({"u1": life}, records, fizzle_seconds=5.0 if life.seconds < 5 else 3.0, away=[(43.0, 70.0)])
    assert [text for text in found if not words or words not in text] == []
    assert bool(found) == bool(words)
