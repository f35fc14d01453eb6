"""`vac usage`: sums of thousands of records."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.state_dirs import ENDED, new_state, running_machine
from vac.accounting import records
from vac.accounting.archive import Archived, Usage, usage
from vac.cli.main import main
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time
from vac.machines.status import Status, TypeFacts

DAY = 86400
MANY = 3000


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = new_state(tmp_path)
    (tmp_path / "vac.conf").write_text(
        f"[settings]\nvac_space = vac01.example.org\nfactory_name = node1.example.org\nstate_dir = {state.root}\n"
    )
    types = (
        TypeFacts("lhcb", fqan="/lhcb/prod", target_share=3.0, machine_model="docker"),
        TypeFacts("atlas", fqan="/atlas/prod", target_share=1.0, machine_model="docker"),
    )
    statuses.write(state, Status(time=ENDED, machinetypes=types))
    return state


def write(state: StateDir, machine: Machine) -> None:
    """Archive a machine's record, as quickly as thousands need."""
    end = int(end_time(machine))
    directory = state.apel_archive / records.day_name(end)
    directory.mkdir(exist_ok=True)
    (directory / records.file_name(end, machine.uuid)).write_text(records.job_record(machine))


def told(state: StateDir, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, float]]:
    assert main(["--config", str(state.root.parent / "vac.conf"), "usage", "--json", *words]) == 0
    by = words[words.index("--by") + 1] if "--by" in words else "type"
    return {one[by]: one for one in json.loads(capsys.readouterr().out)["usage"]}


def test_usage_is_the_sum_of_thousands_of_records(
    state: StateDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: float(ENDED))
    machine, rng = running_machine(state), random.Random(1)
    settings = (
        dataclasses.replace(machine.settings, hs06_per_processor=10.0),
        dataclasses.replace(machine.settings, hepscore23_per_processor=12.5, apel_record_version="0.4"),
    )
    sums: dict[str, Counter[str]] = {"lhcb": Counter(), "atlas": Counter(), "gone": Counter()}
    for number in range(MANY):
        kind = rng.choice(list(sums))
        wall, processors, days = rng.randint(0, 90000), rng.choice((1, 1, 8)), rng.uniform(0, 60)
        machine.uuid, machine.machinetype = str(number), kind
        machine.fqan = None if kind == "gone" else f"/{kind}/prod"
        machine.started_time, machine.alive_seconds = float(int(ENDED - days * DAY) - wall), float(wall)
        machine.cpu_seconds, machine.processors = wall * processors // 2, processors
        machine.settings = settings[number % 2]
        write(state, machine)
        if days <= 30:
            sums[kind] += Counter(
                n=1,
                wall=wall,
                core=wall * processors,
                cpu=wall * processors // 2,
                both=number % 2 * wall * processors,
            )
    (state.apel_archive / "20261101").mkdir(exist_ok=True)
    (state.apel_archive / "20261101" / "torn").write_text("Site: x\nEndTime: 1795225461\n")
    found = told(state, capsys)
    assert set(found) == set(sums)
    core = sum(one["core"] for one in sums.values())
    for kind, one in sums.items():
        mine = found[kind]
        assert mine["machines"] == one["n"] > 100
        for name, seconds in (
            ("wall_hours", one["wall"]),
            ("processor_hours", one["core"]),
            ("cpu_hours", one["cpu"]),
            ("hs06_hours", 10.0 * one["core"]),
            ("hepscore23_hours", 12.5 * one["both"]),
        ):
            assert mine[name] == pytest.approx(seconds / 3600), name
        assert mine["efficiency"] == pytest.approx(0.5, abs=0.001)
        assert mine["share"] == pytest.approx(one["core"] / core)
    assert [found[kind]["target_share"] for kind in ("lhcb", "atlas", "gone")] == [0.75, 0.25, None]
    by_fqan = told(state, capsys, "--by", "fqan")
    assert {name: one["machines"] for name, one in by_fqan.items()} == {
        "/lhcb/prod": sums["lhcb"]["n"],
        "/atlas/prod": sums["atlas"]["n"],
        "none": sums["gone"]["n"],
    }
    by_model = told(state, capsys, "--by", "model")
    assert by_model["docker"]["machines"] == sums["lhcb"]["n"] + sums["atlas"]["n"]
    assert by_model["docker"]["target_share"] == 1.0
    assert by_model["unknown"]["machines"] == sums["gone"]["n"]


def test_usage_of_a_month_and_as_a_table(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    write(state, running_machine(state))
    assert told(state, capsys, "--month", "202611")["lhcb-prod"]["machines"] == 1
    assert "lhcb-prod" not in told(state, capsys, "--month", "202610")
    assert main(["--config", str(state.root.parent / "vac.conf"), "usage", "--month", "202611"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("lhcb-prod"))
    assert line.split()[1:] == ["1", "10.0", "10.0", "9.5", "94.7%", "100.0", "-", "100.0%", "-"]


def test_records_that_are_not_whole_count_for_nothing() -> None:
    torn: list[dict[str, str]] = [{"Queue": "a", "WallDuration": "1"}, {"WallDuration": "x"}, {}]
    found = (Archived(Path("x"), "", fields, ENDED) for fields in torn)
    assert usage(found, lambda fields: fields["Queue"]) == {}
    assert Usage().as_dict(0)["efficiency"] is None


@pytest.mark.parametrize("days", ["inf", "nan", "-1", "0", "many"])
def test_days_are_a_number_of_days(state: StateDir, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        told(state, capsys, "--days", days)
    assert left.value.code == 2
    assert "number of days" in capsys.readouterr().err


def test_nothing_found_is_said(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("usage", "--month", "202001"), ("history", "--since", "1h")):
        assert main(["--config", str(state.root.parent / "vac.conf"), *words]) == 0
        assert "no " in capsys.readouterr().err
