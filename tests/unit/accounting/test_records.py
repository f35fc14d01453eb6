"""APEL records: job records, sync records, republication."""

from __future__ import annotations

import calendar
import configparser
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.state_dirs import (
    CREATED,
    checkpoints,
    machinetype_of,
    new_state,
    running_machine,
    settings_of,
)
from vac.accounting import archive, records
from vac.accounting.archive import bundle, default_month, month_bounds, republish, service_levels, sync
from vac.accounting.records import file_name, job_record, message_fields
from vac.config.settings import Settings
from vac.machines.creation import decimal
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time, load

EXAMPLE = """\
APEL-individual-job-message: v0.3
Site: UKI-TEST-SITE
SubmitHost: vac01.example.org/vac-node1.example.org
LocalJobId: 4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b
LocalUserId: node1.example.org
Queue: lhcb-prod
GlobalUserName: /DC=org/DC=example/DC=vac01
FQAN: /lhcb/Role=NULL/Capability=NULL
WallDuration: 36000
CpuDuration: 34100
Processors: 1
NodeCount: 1
InfrastructureDescription: APEL-VAC
InfrastructureType: grid
StartTime: 1795189461
EndTime: 1795225461
MemoryReal: 2097152
MemoryVirtual: 2097152
ServiceLevelType: HEPSPEC
ServiceLevel: 10.0
%%
"""


def fields_of(tmp_path: Path, settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    state = new_state(tmp_path)
    machine = running_machine(state, settings=settings_of(state, **(settings or {})), **changes)
    return message_fields(job_record(machine))


def test_a_record_is_exactly_what_apel_wants(tmp_path: Path) -> None:
    assert job_record(running_machine(new_state(tmp_path))) == EXAMPLE


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"hs06_per_processor": 11.25}, ("HEPSPEC", "11.25")),
        ({"hs06_per_processor": 11.25, "hepscore23_per_processor": 12.0}, ("HEPscore23", "12.0")),
        ({"hs06_per_processor": None, "hepscore23_per_processor": 12.0}, ("HEPscore23", "12.0")),
        ({"hs06_per_processor": None}, ("HEPSPEC", "1.0")),
    ],
)
def test_the_service_level_is_that_of_one_processor(
    tmp_path: Path, settings: dict[str, Any], level: tuple[str, str]
) -> None:
    fields = fields_of(tmp_path, settings, processors=8)
    assert (fields["ServiceLevelType"], fields["ServiceLevel"]) == level
    assert fields["Processors"] == "8"
    assert fields["MemoryReal"] == str(8 * 2048 * 1024)


def test_records_of_version_04_have_both_benchmarks(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    settings = settings_of(state, hepscore23_per_processor=12.5, apel_record_version="0.4")
    machine = running_machine(state, settings=settings)
    text = job_record(machine)
    assert text == EXAMPLE.replace("v0.3", "v0.4").replace(
        "ServiceLevelType: HEPSPEC\nServiceLevel: 10.0\n", "ServiceLevel: {HEPscore23: 12.5, HEPSPEC: 10.0}\n"
    )
    again = load(machine.directory)
    assert again is not None and job_record(again) == text, "whatever is configured now"


def test_without_a_gocdb_sitename_the_spaces_domain_is_the_site(tmp_path: Path) -> None:
    assert fields_of(tmp_path, {"gocdb_sitename": None})["Site"] == "example.org"


def test_a_type_without_fqan_has_no_fqan_line(tmp_path: Path) -> None:
    assert "FQAN" not in fields_of(tmp_path, machinetype=machinetype_of(accounting_fqan=None))


def test_fractions_of_seconds_are_cut_so_that_the_numbers_add_up(tmp_path: Path) -> None:
    fields = fields_of(tmp_path, seen=CREATED + 5000.9, cpu_seconds=99.9)
    assert int(fields["EndTime"]) - int(fields["StartTime"]) == int(fields["WallDuration"])
    assert fields["CpuDuration"] == "99"


@pytest.mark.parametrize(
    ("peak_bytes", "real", "virtual"),
    [(0, 2097152, 2097152), (2**50, 2**31 - 1, 2**31 - 1), (None, 2097152, 2097152)],
    ids=["nothing measured", "more than the receiver takes", "not told"],
)
def test_unknown_memory_is_what_was_allocated(
    tmp_path: Path, peak_bytes: int | None, real: int, virtual: int
) -> None:
    machine = running_machine(new_state(tmp_path))
    machine.peak_memory_bytes = peak_bytes
    fields = message_fields(job_record(machine))
    assert (fields["MemoryReal"], fields["MemoryVirtual"]) == (str(real), str(virtual))


def test_measured_peak_memory_is_reported(tmp_path: Path) -> None:
    machine = running_machine(new_state(tmp_path))
    machine.peak_memory_bytes = 3 * 1024**3
    fields = message_fields(job_record(machine))
    assert (fields["MemoryReal"], fields["MemoryVirtual"]) == ("3145728", "3145728")
    machine.peak_memory_bytes = 1024**3
    fields = message_fields(job_record(machine))
    assert (fields["MemoryReal"], fields["MemoryVirtual"]) == ("1048576", "2097152")


def test_a_long_machinetype_name_fits_the_receivers_column(tmp_path: Path) -> None:
    assert fields_of(tmp_path, machinetype=machinetype_of(name="a" * 120))["Queue"] == "a" * 100


def test_a_machine_without_job_id_has_an_identity(tmp_path: Path) -> None:
    machine = running_machine(new_state(tmp_path))
    machine.uuid = ""
    assert message_fields(job_record(machine))["LocalJobId"] == machine.directory.name


TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)
LEVELS = st.floats(0.001, 1000)


def ended(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Machine]:
    """Return machines that have ended, with such texts."""
    settings = st.builds(
        Settings,
        gocdb_sitename=texts,
        vac_space=texts,
        factory_name=texts,
        mb_per_processor=st.integers(1, 2**20),
        hs06_per_processor=st.none() | LEVELS,
        hepscore23_per_processor=st.none() | LEVELS,
        apel_record_version=st.sampled_from(["0.3", "0.4"]),
    )
    return st.builds(
        Machine,
        directory=st.just(Path("/x/1_lhcb-prod_node1")),
        created_time=st.just(CREATED),
        machinetype=texts,
        name=texts,
        uuid=texts,
        processors=st.integers(1, 1024),
        kind=st.just(machinetype_of()),
        settings=settings,
        shutdown_time=st.just(CREATED),
        started_time=st.floats(0, 2**40),
        alive_seconds=st.floats(0, 2**40),
        cpu_seconds=st.floats(0, 2**40),
        peak_memory_bytes=st.none() | st.integers(0, 2**60),
        fqan=st.none() | texts,
    )


@given(ended(TEXTS))
def test_a_record_can_be_read_back(machine: Machine) -> None:
    fields, settings = message_fields(job_record(machine)), machine.settings
    assert (fields["Site"], fields["SubmitHost"], fields["LocalJobId"], fields["Queue"]) == (
        settings.site.strip(),
        f"{settings.vac_space}/vac-{settings.factory_name}",
        machine.uuid or machine.directory.name,
        machine.machinetype,
    )
    assert fields.get("FQAN") == (machine.fqan or None)
    assert int(fields["EndTime"]) == int(end_time(machine))
    known = {"HEPscore23": settings.hepscore23_per_processor, "HEPSPEC": settings.hs06_per_processor}
    levels = {name: float(decimal(level)) for name, level in known.items() if level} or {"HEPSPEC": 1.0}
    if settings.apel_record_version == "0.3":
        levels = dict(list(levels.items())[:1])
    assert service_levels(fields) == levels


@given(ended(st.text(max_size=20)))
def test_whatever_is_in_it_a_record_is_ascii_and_has_its_lines(machine: Machine) -> None:
    text = job_record(machine)
    assert text.isascii()
    lines = text.split("\n")
    expected = 21 + bool(machine.fqan) - (machine.settings.apel_record_version == "0.4")
    assert len(lines) == expected
    assert lines[-2:] == ["%%", ""]


@given(st.integers(0, 2**33), st.text())
def test_names_are_fourteen_hex_digits(moment: int, identity: str) -> None:
    assert re.fullmatch("[0-9a-f]{14}", file_name(moment, identity))


def test_names_and_days_are_those_of_the_end_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    state = new_state(tmp_path)
    path = records.archive(state, running_machine(state))
    assert (path.parent.name, path.name[:6]) == ("20261121", "014421")
    assert path.read_text() == EXAMPLE


def other(machine: Machine, uuid: str) -> Machine:
    machine.uuid = uuid
    return machine


def test_records_of_machines_that_end_together_differ(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    paths = {records.archive(state, other(machine, f"uuid-{number}")) for number in range(20)}
    assert len(paths) == 20


def test_an_archived_record_is_never_rewritten(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    path = records.archive(state, machine)
    machine.cpu_seconds += 1000
    assert records.archive(state, machine) == path
    assert path.read_text() == EXAMPLE


def test_the_queue_holds_only_days_and_whole_messages(tmp_path: Path) -> None:
    state = new_state(tmp_path)

    def look(step: str, path: Path) -> None:
        for found in state.apel_outgoing.rglob("*"):
            assert re.fullmatch("[0-9]{8}(/[0-9a-f]{14})?", str(found.relative_to(state.apel_outgoing)))
            assert found.is_dir() or found.read_text() == EXAMPLE

    with checkpoints(look):
        records.send(state, "20261121", "00" * 7, EXAMPLE)
    assert [path.name for path in state.apel_outgoing.iterdir()] == ["20261121"]


@pytest.mark.parametrize("times", [1, 3])
def test_a_day_removed_by_the_sender_is_made_again(tmp_path: Path, times: int) -> None:
    state = new_state(tmp_path)
    left = [times]

    def sender(step: str, path: Path) -> None:
        if step == "rename" and left[0]:
            left[0] -= 1
            shutil.rmtree(path.parent)

    with checkpoints(sender):
        path = records.send(state, "20261121", "00" * 7, EXAMPLE)
    assert path.read_text() == EXAMPLE
    assert not list(state.tmp.iterdir())


def test_messages_belong_to_the_owner_of_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_state(tmp_path)
    owners = []
    monkeypatch.setattr("os.chown", lambda path, uid, gid: owners.append((uid, gid)))
    monkeypatch.setattr("os.fchown", lambda descriptor, uid, gid: owners.append((uid, gid)))
    records.send(state, "20261121", "00" * 7, EXAMPLE)
    found = state.apel_outgoing.stat()
    assert owners == [(found.st_uid, found.st_gid)] * 2


def test_memory_is_at_most_what_the_receiver_can_store(tmp_path: Path) -> None:
    machine = running_machine(new_state(tmp_path))
    machine.peak_memory_bytes = 5 * 1024**4
    fields = message_fields(job_record(machine))
    assert (fields["MemoryReal"], fields["MemoryVirtual"]) == ("2147483647", "2147483647")


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
        machine.started_time, machine.alive_seconds = end - 7200, 7200.0
        machine.uuid = f"job-{number}"
        records.archive(made, machine)
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
    machine.started_time, machine.alive_seconds = NOVEMBER[1] - 7200, 7200.0
    text = job_record(machine).replace("UKI-TEST-SITE", "UKI-OTHER-SITE")
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


def test_records_of_a_classic_archive_are_counted_once(
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


def test_waiting_records_are_bundled_without_losing_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_RECORDS", 10)
    state = new_state(tmp_path)
    machine = running_machine(state)
    want = set()
    for number in range(25):
        version = "0.4" if number % 5 == 0 else "0.3"
        machine.uuid = f"job {number}"
        machine.settings = dataclasses.replace(machine.settings, apel_record_version=version)
        want.add((version, machine.uuid))
        records.send(state, "20261121", file_name(number, machine.uuid), job_record(machine))
    sync_text = "APEL-sync-message: v0.1\nSite: x\n%%\n"
    other = records.send(state, "20261121", file_name(99, "sync"), sync_text)
    (state.apel_outgoing / "20261121" / "120000ab.lck").touch()
    made = bundle(state, CREATED)
    assert len(made) == 3 and other.read_text() == sync_text
    found: set[tuple[str, str]] = set()
    for path in state.apel_outgoing.glob("*/*"):
        header, *rest = path.read_text().splitlines() or [""]
        if header.startswith("APEL-individual"):
            jobs = re.findall(r"LocalJobId: (.*)", "\n".join(rest))
            assert len(jobs) <= 10 and rest.count("%%") == len(jobs) and rest[-1] == "%%"
            assert not any(line.startswith("APEL") for line in rest)
            found.update((header.rpartition("v")[2], job) for job in jobs)
    assert found == want
    assert len(list(state.apel_outgoing.glob("*/*"))) == 5
    assert bundle(state, CREATED + 1) == []


def test_the_senders_configuration_is_for_our_queue() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[3] / "packaging" / "accounting" / "vac-ssmsend-prod.cfg")
    assert parser["sender"]["protocol"] == "AMS"
    messaging = parser["messaging"]
    assert (messaging["ams_project"], messaging["destination"]) == ("accounting", "gLite-APEL")
    assert (messaging["path"], messaging["path_type"]) == (
        str(Settings().state_dir / "apel-outgoing"),
        "dirq",
    )
