"""What the scheduler has to remember outlives the factory's process."""

from __future__ import annotations

import json
from pathlib import Path

from tests.simulated import one_type
from tests.unit.factory.conftest import MakeWorld
from vac.scheduling.shares import Ledger


def debts(file: Path) -> dict[str, float]:
    return dict(Ledger.decode(json.loads(file.read_text())).debts)


def test_debts_go_on_after_a_restart(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(one_type("a", target_share=3), one_type("b"), slots=1)
    ledger = tmp_path / "state" / "ledger.json"
    world.fill()
    world.run(300)
    before = debts(ledger)
    assert before["b"] > 0 > before["a"] or before["a"] > 0 > before["b"]
    world.start()
    world.run(120)
    after = debts(ledger)
    assert all(abs(after[name]) > abs(before[name]) for name in before)
    ledger.write_text("{")
    world.start()
    world.run(20)
    fresh = debts(ledger)
    assert all(abs(fresh[name]) < abs(before[name]) for name in before)
