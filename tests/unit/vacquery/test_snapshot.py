"""Snapshots of a factory, compared with the answers of a classic factory in the same state."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vacquery.recorded import NOW, STARTED, factory_status, make_state, messages
from vac.machines import machine as machines
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.vacquery.messages import FactoryStatus, Kind, MachineStatus, MachinetypeStatus, message_of, part
from vac.vacquery.snapshot import Snapshot, SnapshotBuilder

HOST_FIGURES = {
    *(
        "boot_time",
        "kernel_version",
        "load_average",
        "os_issue",
        "root_disk_avail_kb",
        "root_disk_avail_inodes",
    ),
    *("daemon_disk_avail_kb", "daemon_disk_avail_inodes", "vac_disk_avail_kb", "vac_disk_avail_inodes"),
    *("mem_total_kb", "mem_used_kb", "swap_free_kb", "swap_used_kb", "responder_heartbeat_time"),
}
PER_QUERY = {"cookie", "time_sent", "daemon_version", "vac_version"}
OURS_ALONE = {"min_wallclock_seconds", "min_processors"}


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return make_state(tmp_path / "state")


def build(state: StateDir, now: float = NOW) -> Snapshot:
    snapshot = SnapshotBuilder(state).build(now)
    assert snapshot is not None
    return snapshot


def machinetype(state: StateDir, name: str, now: float = NOW) -> MachinetypeStatus:
    return next(status for status in build(state, now).machinetypes if status.machinetype == name)


def slot(state: StateDir, number: int, now: float = NOW) -> MachineStatus:
    return build(state, now).machines[number]


@pytest.mark.parametrize("kind", Kind)
def test_in_the_recorded_state_our_answers_are_the_recorded_ones(kind: Kind, state: StateDir) -> None:
    recorded = {message.get("machinetype", ""): message for message in messages(kind)}
    if kind is Kind.MACHINES:
        recorded = {message["machine"]: message for message in messages(kind)}
    answers = build(state).answers(kind)
    assert len(answers) == len(recorded)
    for status in answers:
        theirs = recorded["" if kind is Kind.FACTORIES else part(status)]
        ours = message_of(status)
        assert set(ours) - OURS_ALONE == set(theirs) - {"cookie", "time_sent"}
        for name in set(theirs) - PER_QUERY:
            assert type(ours[name]) is type(theirs[name]), name
            if name not in HOST_FIGURES:
                assert ours[name] == theirs[name], name


def test_without_a_status_of_the_factory_there_is_nothing_to_say(state: StateDir) -> None:
    state.status.unlink()
    assert SnapshotBuilder(state).build(NOW) is None
    state.status.write_text("[]")
    assert SnapshotBuilder(state).build(NOW) is None


def test_a_machine_silent_for_an_hour_is_not_running(state: StateDir) -> None:
    directory = next(state.machines.glob("*_type-03_*"))
    os.utime(directory / "heartbeat", (NOW - 3599, NOW - 3599))
    assert machinetype(state, "type-03").running_machines == 1
    os.utime(directory / "heartbeat", (NOW - 3600, NOW - 3600))
    assert machinetype(state, "type-03").running_machines == 0
    assert build(state).factory.running_machines == 4


def test_a_machine_that_has_not_started_counts_for_an_hour(state: StateDir) -> None:
    created = 1795227100
    before, after = (machinetype(state, "type-05", created + age) for age in (3599, 3600))
    assert (before.running_machines, before.num_before_fizzle) == (1, 1)
    assert (after.running_machines, after.num_before_fizzle) == (0, 0)


def test_a_running_machine_is_before_fizzle_until_fizzle_seconds(state: StateDir) -> None:
    young, old = (machinetype(state, "type-00", STARTED + age).num_before_fizzle for age in (599, 600))
    assert (young, old) == (1, 0)


def test_processors_are_a_float_only_while_machines_run(state: StateDir) -> None:
    running, starting, none = (
        machinetype(state, name).running_processors for name in ("type-00", "type-05", "type-07")
    )
    assert (type(running), type(starting), type(none)) == (float, int, int)


def test_a_machine_counts_with_all_its_processors(state: StateDir) -> None:
    directory = next(state.machines.glob("*_type-03_*"))
    (directory / "jobfeatures/allocated_cpu").write_text("8\n")
    (directory / "jobfeatures/hs06_job").write_text("100.0\n")
    found = machinetype(state, "type-03")
    assert (found.running_processors, found.running_hs06) == (8, 100.0)


def test_the_latest_finished_machine_speaks_for_its_type(state: StateDir) -> None:
    finished = next(state.machines.glob("1795227101_type-06_*"))
    (finished / "joboutputs/shutdown_message").write_text("200 Success\nmore")
    os.utime(finished / "joboutputs/shutdown_message", (STARTED + 1, STARTED + 1))
    assert machinetype(state, "type-06").shutdown_message == "300 No work available"
    state.finish("type-06").write_text("1795227101 type-06 vac-85-06.example.org")
    found = machinetype(state, "type-06")
    assert (found.shutdown_message, found.shutdown_time) == ("200 Success", STARTED + 1)


def test_a_fizzle_is_an_abort_when_last_seen_alive(state: StateDir) -> None:
    finished = next(state.machines.glob("1795219951_type-04_*"))
    (finished / "joboutputs/shutdown_message").unlink()
    found = machinetype(state, "type-04")
    assert found.shutdown_message == "300 No shutdown message: fizzle after 3 seconds"
    assert found.shutdown_time == 1795227158


def test_classic_machines_are_judged_by_our_fizzle_seconds(state: StateDir) -> None:
    finished = next(state.machines.glob("1795219951_type-04_*"))
    (finished / "joboutputs/shutdown_message").unlink()
    status = factory_status()
    types = [
        dataclasses.replace(facts, fizzle_seconds=2) if facts.name == "type-04" else facts
        for facts in status.machinetypes
    ]
    statuses.write(state, dataclasses.replace(status, machinetypes=tuple(types)))
    assert machinetype(state, "type-04").shutdown_message is None


def test_one_machine_that_cannot_be_read_stops_no_answer(state: StateDir) -> None:
    directory = next(state.machines.glob("*_vac-85-00.example.org"))
    (directory / "heartbeat").unlink()
    (directory / "heartbeat").mkdir()
    assert slot(state, 0).state == "Shut down"
    assert slot(state, 1).state == "Running"


def test_what_only_the_engine_knows_comes_from_the_factory(state: StateDir) -> None:
    states = {"vac-85-00.example.org": "Paused", "vac-85-07.example.org": "Zombie"}
    statuses.write(state, dataclasses.replace(factory_status(), slot_states=states))
    assert (slot(state, 0).state, slot(state, 7).state, slot(state, 1).state) == (
        "Paused",
        "Zombie",
        "Running",
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("slots/vac-85-00.example.org", "garbage"),
        ("slots/vac-85-00.example.org", ""),
        ("slots/vac-85-00.example.org", "1795227095 ../../etc docker"),
        ("slots/vac-85-00.example.org", "1 gone docker"),
    ],
)
def test_a_slot_without_a_machine_that_can_be_read_is_shut_down(
    state: StateDir, name: str, content: str
) -> None:
    (state.root / name).write_text(content)
    found = slot(state, 0)
    assert (found.state, found.machinetype, found.num_processors) == ("Shut down", None, 0)


def test_only_what_has_changed_is_read_again(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = machines.load

    def counting(directory: Path, **given: Any) -> Any:
        loaded.append(directory)
        return load(directory, **given)

    monkeypatch.setattr(machines, "load", counting)
    builder = SnapshotBuilder(state)
    first = builder.build(NOW)
    loaded.clear()
    assert builder.build(NOW) is not None
    assert loaded == []
    directory = next(state.machines.glob("*_type-03_*"))
    (directory / "heartbeat").write_text("60 50.0")
    second = builder.build(NOW)
    assert loaded == [directory]
    assert first is not None
    assert second is not None
    assert (first.machines[3].cpu_seconds, second.machines[3].cpu_seconds) == (2, 60)


def test_the_factory_tells_what_the_kernel_measures(state: StateDir) -> None:
    found: FactoryStatus = build(state).factory
    assert found.mem_total_kb > found.mem_used_kb > 0
    assert found.daemon_disk_avail_kb > 0
    assert found.boot_time > 0
    assert found.kernel_version == os.uname().release


@pytest.mark.parametrize(
    ("guard", "guard_name", "told"),
    [
        ("this factory is draining: x", "draining", "this factory is draining: x"),
        ("no free processors: 8 of 8 are in use", "full", None),
        ("docker: https://me:secret@host/?token=1 is down", "engines", "docker: https://***@host/?… is down"),
        (None, None, None),
    ],
)
def test_peers_are_told_why_nothing_is_created(
    state: StateDir, guard: str | None, guard_name: str | None, told: str | None
) -> None:
    statuses.write(state, dataclasses.replace(factory_status(), guard=guard, guard_name=guard_name))
    answer = build(state).factory
    assert answer.creation_blocked == told
    assert message_of(answer).get("creation_blocked") == told
    assert ("creation_blocked" in message_of(answer)) == (told is not None)
