"""Sync records and records sent once more."""

from __future__ import annotations

import calendar
from pathlib import Path

import pytest

from tests.unit.state_dirs import new_state, running_machine
from vac.accounting import records
from vac.accounting.records import job_record, message_fields
from vac.accounting.sync import default_month, month_bounds, republish, sync
from vac.machines.layout import StateDir

SYNC = """\
APEL-sync-message: v0.1
Site: UKI-TEST-SITE
SubmitHost: vac01.example.org/vac-node1.example.org
NumberOfJobs: 3
Month: 11
Year: 2026
%%
"""


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return calendar.timegm((year, month, day, hour, minute, second))


NOW = utc(2026, 12, 1, 12)
NOVEMBER = [utc(2026, 11, 1), utc(2026, 11, 15), utc(2026, 11, 30, 23, 59, 59)]
OTHER_MONTHS = [utc(2026, 10, 31, 23, 59, 59), utc(2026, 12, 1)]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """An archive with three ends in November and one each just before and after."""
    made = new_state(tmp_path)
    machine = running_machine(made)
    for number, end in enumerate(NOVEMBER + OTHER_MONTHS):
        machine.started_time, machine.heartbeat_time = end - 7200, end
        machine.uuid = f"job-{number}"
        records.archive(made, job_record(machine))
    return made


def sent(state: StateDir) -> list[Path]:
    return sorted(path for path in state.apel_outgoing.rglob("*") if path.is_file())


def test_a_month_is_counted_by_its_ends_in_utc(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert len(sync(state, ["202611"], NOW)) == 1
    (path,) = sent(state)
    assert path.read_text() == SYNC
    assert path.parent.name == "20261201"
    assert records.FILE_NAME.fullmatch(path.name)


@pytest.mark.parametrize(
    ("now", "month"),
    [(utc(2026, 12, 1, 12), "202611"), (utc(2026, 12, 2, 12), "202612"), (utc(2027, 1, 1), "202612")],
)
def test_by_default_it_is_the_month_of_a_day_ago(now: int, month: str) -> None:
    assert default_month(now) == month


def test_without_months_the_default_month_is_sent(state: StateDir) -> None:
    sync(state, [], NOW)
    assert message_fields(sent(state)[0].read_text())["Month"] == "11"


def test_several_months_and_hosts_have_a_record_each(state: StateDir) -> None:
    machine = running_machine(state)
    machine.started_time, machine.heartbeat_time = NOVEMBER[1] - 7200, NOVEMBER[1]
    record = job_record(machine)
    text = records.job_text(record).replace("UKI-TEST-SITE", "UKI-OTHER-SITE")
    (state.apel_archive / "20261115" / ("a" * 14)).write_text(text)
    done = sync(state, ["202610", "202611"], NOW)
    found = [message_fields(path.read_text()) for path in sent(state)]
    assert sorted((fields["Site"], fields["Month"], fields["NumberOfJobs"]) for fields in found) == [
        ("UKI-OTHER-SITE", "11", "1"),
        ("UKI-TEST-SITE", "10", "1"),
        ("UKI-TEST-SITE", "11", "3"),
    ]
    assert len(done) == 3


def test_an_empty_month_sends_nothing_and_says_so(state: StateDir) -> None:
    (line,) = sync(state, ["202501"], NOW)
    assert "no records" in line
    assert not sent(state)


def test_records_that_a_classic_factory_put_under_the_day_of_writing_are_counted_once(
    state: StateDir,
) -> None:
    (original,) = (state.apel_archive / "20261130").iterdir()
    late = state.apel_archive / "20261202"
    late.mkdir()
    (late / "1830-name-of-another-kind").write_text(original.read_text().replace("job-2", "job-99"))
    (late / "copy").write_text(original.read_text())
    (late / "not-a-record").write_bytes(b"\xff\xfe")
    (late / "directory").mkdir()
    (state.apel_archive / "notes").write_text("x")
    sync(state, ["202611"], NOW)
    assert message_fields(sent(state)[0].read_text())["NumberOfJobs"] == "4"


def test_a_month_can_be_published_again_as_it_was(state: StateDir) -> None:
    republish(state, ["202611"])
    originals = {
        (path.parent.name, path.name): path.read_text()
        for path in state.apel_archive.rglob("*")
        if path.is_file() and path.parent.name.startswith("202611")
    }
    assert {(path.parent.name, path.name): path.read_text() for path in sent(state)} == originals
    assert len(originals) == 3


def test_a_month_can_be_published_again_for_another_site(state: StateDir) -> None:
    before = {path: path.read_text() for path in state.apel_archive.rglob("*") if path.is_file()}
    paths = republish(state, ["202610", "202611"], "NEW-SITE")
    assert sorted(paths) == sent(state)
    assert {message_fields(path.read_text())["Site"] for path in paths} == {"NEW-SITE"}
    assert {path: path.read_text() for path in before} == before
    text = paths[0].read_text()
    assert text.replace("NEW-SITE", "UKI-TEST-SITE") in before.values()


@pytest.mark.parametrize("month", ["", "2026", "202613", "202600", "2026-1", "20261101", "١٢٣٤٥٦", "000001"])
def test_what_is_no_month_is_refused(month: str) -> None:
    with pytest.raises(ValueError, match="YYYYMM"):
        month_bounds(month)


def test_december_ends_with_the_year() -> None:
    assert month_bounds("202612") == (utc(2026, 12, 1), utc(2027, 1, 1))
