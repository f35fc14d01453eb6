"""The end of a machine: what is written, in which order, and that a crash at any step changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.state_dirs import (
    CREATED,
    ENDED,
    NAME,
    STARTED,
    UUID,
    Killed,
    at,
    checkpoints,
    classic_state,
    contents,
    machinetype_of,
    new_machine,
    new_state,
    running_machine,
    settings_of,
)
from vac.accounting.history import finish
from vac.accounting.records import message_fields
from vac.drivers.base import Usage
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, end_time, lower_shutdown_time, mark_started, renew_heartbeat
from vac.machines.slots import load_slots, outcome

FINAL = Usage(cpu_seconds=35000.0, peak_memory_bytes=1024**3)
RESTARTED = ENDED + 7200


def written(root: Path) -> dict[str, bytes]:
    """All records below apel-archive or apel-outgoing."""
    return contents(root)


def record_of(state: StateDir) -> Path:
    """The only record in the archive."""
    (record,) = (path for path in state.apel_archive.glob("*/*"))
    return record


def test_the_end_is_written_in_a_recoverable_order(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    (machine.directory / "joboutputs" / "shutdown_message").write_bytes(b"200 Success")
    order = []
    with checkpoints(lambda step, path: order.append(path.name) if step == "renamed" else None):
        finish(state, machine, FINAL, at(ENDED + 30), watched=True)
    record = record_of(state)
    assert order == [
        "usage.json",
        "heartbeat",
        "shutdown_message",
        record.name,
        record.name,
        "finished",
        "lhcb-prod",
    ]
    assert end_time(machine) == ENDED + 30
    assert (machine.directory / "shutdown_message").read_bytes() == b"200 Success\n"
    assert [*written(state.apel_outgoing).values()] == [*written(state.apel_archive).values()]
    fields = message_fields(record.read_text())
    assert (fields["EndTime"], fields["CpuDuration"], fields["MemoryReal"]) == (
        str(ENDED + 30),
        "35000",
        "1048576",
    )


def test_a_record_is_durable_before_the_machine_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    durable: list[str] = []
    fsync = os.fsync

    def watching(descriptor: int) -> None:
        durable.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watching)
    finish(state, machine, FINAL, at(ENDED), watched=False)
    archive_day, machine_directory = str(record_of(state).parent), str(machine.directory)
    last_of_machine = len(durable) - 1 - durable[::-1].index(machine_directory)
    assert durable.index(archive_day) < last_of_machine
    assert str(state.apel_archive) in durable
    assert durable[durable.index(archive_day) - 1].startswith(str(state.tmp))


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, True),
        ({"gocdb_sitename": None}, False),
        ({"hs06_per_processor": None}, False),
        ({"hs06_per_processor": None, "hepscore23_per_processor": 11.0}, True),
    ],
)
def test_only_sites_with_name_and_benchmark_report_to_apel(
    tmp_path: Path, settings: dict[str, Any], sent: bool
) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state, settings=settings_of(state, **settings))
    finish(state, machine, Usage(), at(ENDED), watched=False)
    assert len(written(state.apel_archive)) == 1
    assert len(written(state.apel_outgoing)) == sent


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(
    ("model", "told", "message", "counts"),
    [
        ("docker", {"signal": 15}, None, False),
        ("docker", {"signal": 15}, "700 Idle", True),
        ("docker", {"signal": 9}, None, True),
        ("docker", {"exit_code": 137}, None, True),
        ("docker", {"exit_code": 1}, None, True),
        ("bubblewrap", {"signal": 15}, None, True),
    ],
)
def test_an_end_with_or_without_its_engine_is_not_early(
    tmp_path: Path, model: str, told: dict[str, Any], message: str | None, counts: bool, watched: bool
) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state, machinetype=machinetype_of(machine_model=model, fizzle_seconds=600))
    if message is not None:
        (machine.directory / "joboutputs" / "shutdown_message").write_text(message)
    finish(state, machine, Usage(**told, ended_time=STARTED + 5), at(STARTED + 5), watched=watched)
    assert outcome(machine).early_counts is (counts and watched)


@pytest.mark.parametrize(
    ("fizzle", "lived", "recorded"), [(600, 599, False), (600, 600, True), (0, 0, True), (0, 3, True)]
)
def test_a_machine_that_fizzled_has_no_record(
    tmp_path: Path, fizzle: int, lived: int, recorded: bool
) -> None:
    state = new_state(tmp_path)
    kind = machinetype_of(fizzle_seconds=fizzle)
    machine = running_machine(state, machinetype=kind, seen=STARTED + lived, cpu_seconds=0.0)
    finish(state, machine, Usage(), at(STARTED + 5000), watched=False)
    assert len(written(state.apel_archive)) == recorded
    assert (machine.directory / "finished").exists()
    assert state.finish("lhcb-prod").exists()


@pytest.mark.parametrize(
    ("told", "end"),
    [(None, ENDED), (ENDED + 50.0, ENDED + 50), (ENDED - 50.0, ENDED), (ENDED + 5000.0, ENDED)],
    ids=["not told", "told", "seen later", "in the future"],
)
def test_an_unseen_end_is_when_the_engine_says(tmp_path: Path, told: float | None, end: float) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    finish(state, machine, Usage(cpu_seconds=1.0, ended_time=told), at(ENDED + 900), watched=False)
    assert end_time(machine) == end
    assert message_fields(record_of(state).read_text())["EndTime"] == str(int(end))


def test_a_machine_that_never_started_has_no_record(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    finish(state, machine, Usage(), at(CREATED + 5000), watched=False)
    assert end_time(machine) == CREATED
    assert machine.finished
    assert (machine.directory / "finished").exists()
    assert not state.finish("lhcb-prod").exists()
    assert not written(state.apel_archive)


def test_finishing_twice_changes_nothing(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    finish(state, machine, FINAL, at(ENDED + 30), watched=True)
    before = contents(state.root)
    finish(state, machine, Usage(cpu_seconds=99999.0), at(ENDED + 900), watched=True)
    again = load_slots(state, {}, None).slots[NAME][0]
    finish(state, again, FINAL, at(ENDED + 9000), watched=False)
    assert contents(state.root) == before


def test_the_reserve_is_released_for_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    write_new = files.write_new

    def full_while_reserved(path: Path, content: bytes, **details: Any) -> None:
        if state.reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_new(path, content, **details)

    monkeypatch.setattr(files, "write_new", full_while_reserved)
    state.spending_reserve(lambda: finish(state, machine, FINAL, at(ENDED), watched=True))
    assert record_of(state).stat().st_size
    assert machine.finished
    assert not state.reserve.exists()


def test_a_disk_that_stays_full_loses_nothing_and_moves_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)

    def full(step: str, path: Path) -> None:
        if step == "rename" and path.parent.parent == state.apel_archive:
            raise OSError(errno.ENOSPC, "No space left on device")

    with checkpoints(full), pytest.raises(OSError, match="No space"):
        finish(state, machine, FINAL, at(ENDED + 30), watched=True)
    assert not (machine.directory / "finished").exists()
    finish(state, machine, FINAL, at(ENDED + 5000), watched=True)
    assert end_time(machine) == ENDED + 30
    assert len(written(state.apel_archive)) == 1


def test_a_machine_without_directory_is_accounted(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    files.remove_tree(machine.directory)
    finish(state, machine, FINAL, at(ENDED), watched=True)
    assert record_of(state).stat().st_size
    assert load_slots(state, {}, None).slots[NAME][0].finished


def test_a_classic_machine_waits_for_a_configuration(tmp_path: Path) -> None:
    state = classic_state(tmp_path)
    machine = load_slots(state, {}, None).slots["vac-85-00.example.org"][0]
    with pytest.raises(OSError, match="configuration"):
        finish(state, machine, Usage(), at(RESTARTED), watched=False)
    assert not written(state.apel_archive)


def test_the_machines_of_a_classic_factory_are_accounted(tmp_path: Path) -> None:
    state = classic_state(tmp_path)
    settings = settings_of(
        state, vac_space="vac01.example.org", factory_name="vac-85.example.org", hs06_per_processor=99.0
    )
    for machine, _ in load_slots(state, {}, settings).slots.values():
        if not machine.finished:
            finish(state, machine, Usage(), at(RESTARTED), watched=False)
    found = [message_fields(text.decode()) for text in written(state.apel_archive).values()]
    assert written(state.apel_outgoing) == written(state.apel_archive)
    assert sorted(fields["Queue"] for fields in found) == [f"type-{number:02d}" for number in range(5)]
    first = next(fields for fields in found if fields["Queue"] == "type-00")
    assert first == {
        "APEL-individual-job-message": "v0.3",
        "Site": "UKI-TEST-SITE",
        "SubmitHost": "vac01.example.org/vac-vac-85.example.org",
        "LocalJobId": "0a3160d197f3256733a5b6647a96a50b7566394d12740be97b5b4ec41164cc08",
        "LocalUserId": "vac-85.example.org",
        "Queue": "type-00",
        "GlobalUserName": "/DC=org/DC=example/DC=vac01",
        "FQAN": "/vo0.example.org/Role=NULL/Capability=NULL",
        "WallDuration": "3603",
        "CpuDuration": "2",
        "Processors": "1",
        "NodeCount": "1",
        "InfrastructureDescription": "APEL-VAC",
        "InfrastructureType": "grid",
        "StartTime": "1795227155",
        "EndTime": "1795230758",
        "MemoryReal": "2097152",
        "MemoryVirtual": "2097152",
        "ServiceLevelType": "HEPSPEC",
        "ServiceLevel": "12.5",
    }


class Life:
    """One machine from creation to end, on an engine that survives the factory's death."""

    def __init__(self, path: Path) -> None:
        self.state: StateDir = new_state(path)
        self.runs: set[str] = set()
        self.has_run = False

    def live(self) -> None:
        """As it goes when nothing happens."""
        machine = new_machine(self.state)
        self.runs.add(machine.uuid)
        self.has_run = True
        mark_started(self.state, machine, at(STARTED))
        renew_heartbeat(self.state, machine, at(ENDED), Usage(cpu_seconds=34100.0, peak_memory_bytes=5))
        lower_shutdown_time(self.state, machine, ENDED + 100)
        (machine.directory / "joboutputs" / "shutdown_message").write_bytes(b"200 Success")
        self.runs.clear()
        finish(self.state, machine, FINAL, at(ENDED + 30), watched=True)

    def recover(self) -> Machine | None:
        """Finish it as a factory that is started again later."""
        self.state.prepare()
        found = load_slots(self.state, {}, None).slots.get(NAME)
        machine = found[0] if found else None
        if machine is None or machine.finished:
            return machine
        if machine.uuid in self.runs:
            if machine.started_time is None:
                mark_started(self.state, machine, at(RESTARTED))
            renew_heartbeat(self.state, machine, at(RESTARTED + 3600), Usage(cpu_seconds=35000.0))
            self.runs.clear()
            finish(self.state, machine, FINAL, at(RESTARTED + 3630), watched=True)
        else:
            finish(
                self.state, machine, FINAL if machine.started_time else Usage(), at(RESTARTED), watched=False
            )
        return machine


def steps_of_a_life(path: Path) -> int:
    steps: list[str] = []
    life = Life(path)
    with checkpoints(lambda step, path: steps.append(step)):
        life.live()
    return len(steps)


def killed_at(step: int) -> Any:
    left = [step]

    def kill(name: str, path: Path) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise Killed

    return kill


def check_invariants(life: Life, machine: Machine | None) -> None:
    state = life.state
    archive, outgoing = written(state.apel_archive), written(state.apel_outgoing)
    assert sorted(state.tmp.iterdir()) == files.trash(state.tmp)
    if machine is None:
        assert not life.has_run
        assert not list(state.machines.iterdir())
    else:
        assert (machine.directory / "finished").exists()
        assert state.finish("lhcb-prod").exists() is life.has_run
    assert len(archive) == (1 if life.has_run else 0)
    assert outgoing == archive
    for text in archive.values():
        assert machine is not None
        fields = message_fields(text.decode())
        assert fields["LocalJobId"] == UUID
        assert int(fields["EndTime"]) == int((machine.directory / "heartbeat").stat().st_mtime)
        assert int(fields["WallDuration"]) >= 3600
        assert int(fields["CpuDuration"]) >= 34100


def test_a_machine_killed_at_any_write_has_at_most_one_record(
    tmp_path: Path,
) -> None:
    steps = steps_of_a_life(tmp_path / "whole")
    assert steps > 100
    for step in range(steps):
        life = Life(tmp_path / str(step))
        with checkpoints(killed_at(step)), pytest.raises(Killed):
            life.live()
        before = written(life.state.apel_archive)
        machine = life.recover()
        check_invariants(life, machine)
        assert before.items() <= written(life.state.apel_archive).items()
        settled = contents(life.state.root)
        life.recover()
        assert contents(life.state.root) == settled


def test_killed_again_while_recovering_it_has_one_record(tmp_path: Path) -> None:
    steps = steps_of_a_life(tmp_path / "whole")
    for first in range(steps - 30, steps, 3):
        for second in range(0, 30, 4):
            life = Life(tmp_path / f"{first}-{second}")
            with checkpoints(killed_at(first)), pytest.raises(Killed):
                life.live()
            with checkpoints(killed_at(second)), contextlib.suppress(Killed):
                life.recover()
            check_invariants(life, life.recover())
