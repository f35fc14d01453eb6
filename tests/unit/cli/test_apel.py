"""`vac apel-sync` and `vac apel-republish`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.unit.state_dirs import ENDED, new_state, running_machine
from vac.accounting import records
from vac.accounting.records import job_record, message_fields
from vac.cli import apel
from vac.machines.layout import StateDir


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """A state directory with one record of November 2026; it is the day after."""
    made = new_state(tmp_path)
    records.archive(made, job_record(running_machine(made)))
    monkeypatch.setattr("time.time", lambda: ENDED + 86400.0)
    return made


def vac(state: StateDir, *words: str, sitename: bool = True) -> int:
    configuration = state.root.parent / "vac.conf"
    lines = [
        "[settings]",
        "vac_space = vac01.example.org",
        "factory_name = node1.example.org",
        f"state_dir = {state.root}",
        "gocdb_sitename = UKI-TEST-SITE" if sitename else "",
    ]
    configuration.write_text("\n".join(lines))
    parser = argparse.ArgumentParser()
    parser.set_defaults(config=[configuration])
    apel.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(list(words))
    result = arguments.run(arguments)
    assert isinstance(result, int)
    return result


def sent(state: StateDir) -> list[dict[str, str]]:
    return [
        message_fields(path.read_text()) for path in sorted(state.apel_outgoing.rglob("*")) if path.is_file()
    ]


def test_the_sync_record_of_the_month_is_sent(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-sync") == 0
    assert [(fields["NumberOfJobs"], fields["Month"], fields["Year"]) for fields in sent(state)] == [
        ("1", "11", "2026")
    ]
    assert "1 jobs of UKI-TEST-SITE" in capsys.readouterr().out


def test_a_month_without_records_says_so(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-sync", "202610") == 0
    assert not sent(state)
    assert "202610: no records" in capsys.readouterr().out


def test_without_gocdb_sitename_nothing_is_sent(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-sync", sitename=False) == 0
    assert not sent(state)
    assert "gocdb_sitename" in capsys.readouterr().out


def test_a_month_is_published_again(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "apel-republish", "202611", "202612", "--site", "NEW-SITE") == 0
    assert [fields["Site"] for fields in sent(state)] == ["NEW-SITE"]
    assert "1 records of 202611 202612" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("apel-sync", "November"), ("apel-republish",), ("apel-republish", "202613")]
)
def test_months_are_checked(
    state: StateDir, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        vac(state, *words)
    assert left.value.code == 2
    assert "YYYYMM" in capsys.readouterr().err


def test_what_goes_wrong_is_told(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    state.apel_outgoing.rmdir()
    state.apel_outgoing.write_text("in its place")
    assert vac(state, "apel-sync") == 1
    assert "apel-outgoing" in capsys.readouterr().err
