"""A machine's directory: what creation puts there and what life changes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

import vac
from tests.unit.state_dirs import (
    CREATED,
    ENDED,
    FQAN,
    NAME,
    OURS,
    STARTED,
    UUID,
    Killed,
    at,
    checkpoints,
    contents,
    machinetype_of,
    new_machine,
    new_state,
    running_machine,
    settings_of,
)
from vac.clock import Moment
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import Usage
from vac.machines import files
from vac.machines.creation import Access, decimal
from vac.machines.layout import StateDir
from vac.machines.machine import (
    Machine,
    end_time,
    load,
    lower_shutdown_time,
    mark_started,
    note_people,
    renew_heartbeat,
    retained,
    write_final_heartbeat,
)
from vac.machines.slots import outcome

RECORDED = Path(__file__).parents[2] / "data" / "machinetype.json"


def reloaded(machine: Machine) -> Machine:
    found = load(machine.directory)
    assert found is not None
    return found


def test_a_new_machine_has_its_features_as_plain_decimal_text(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    settings = settings_of(
        state,
        hs06_per_processor=12.5,
        hepscore23_per_processor=11.1,
        grace_secs=300,
        mb_per_processor=2000,
        machinefeatures_options={"rack": "R7", "total_cpu": "99"},
    )
    machine = new_machine(state, settings=settings, processors=8, shutdown_time=CREATED + 1000)
    found = contents(machine.directory)
    features = {
        name: content.decode()
        for name, content in found.items()
        if name.startswith(("machinefeat", "jobfeat"))
    }
    assert features == {
        "machinefeatures/total_cpu": "8",
        "machinefeatures/phys_cores": "8",
        "machinefeatures/log_cores": "8",
        "machinefeatures/jobslots": "1",
        "machinefeatures/hs06": "100.0",
        "machinefeatures/hepscore23": "88.8",
        "machinefeatures/shutdowntime": str(CREATED + 1000),
        "machinefeatures/grace_secs": "300",
        "machinefeatures/rack": "R7",
        "jobfeatures/job_id": UUID,
        "jobfeatures/jobstart_secs": str(CREATED),
        "jobfeatures/shutdowntime_job": str(CREATED + 1000),
        "jobfeatures/grace_secs_job": "300",
        "jobfeatures/allocated_cpu": "8",
        "jobfeatures/cpu_limit_secs": "8000",
        "jobfeatures/wall_limit_secs": "1000",
        "jobfeatures/max_rss_bytes": str(16000 * 1048576),
        "jobfeatures/hs06_job": "100.0",
        "jobfeatures/hepscore23_job": "88.8",
        "jobfeatures/allocated_CPU": "8",
        "jobfeatures/cpufactor_lrms": "1.0",
        "jobfeatures/cpu_limit_secs_lrms": "8000",
        "jobfeatures/wall_limit_secs_lrms": "1000",
        "jobfeatures/mem_limit_MB": "16777",
    }


def test_a_configuration_that_is_not_utf8_makes_machines(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    machine = new_machine(
        state,
        machinetype_of(accounting_fqan=text),
        settings_of(state, machinefeatures_options={"rack": text}),
    )
    assert (machine.directory / "machinefeatures" / "rack").read_bytes() == b"caf\xe9"
    assert (machine.directory / "accounting_fqan").read_bytes() == b"caf\xe9"
    assert reloaded(machine).kind.accounting_fqan == text


def test_benchmark_keys_are_missing_without_a_benchmark(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state, settings=settings_of(state, hs06_per_processor=None))
    assert not [name for name in contents(machine.directory) if "hs06" in name or "hepscore" in name]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.5, "12.5"), (10, "10.0"), (0.1 * 3, "0.3"), (1e7, "10000000.0"), (0.00001, "0.00001")],
)
def test_numbers_are_plain_decimals(value: float, text: str) -> None:
    assert decimal(value) == text


@pytest.mark.parametrize(
    ("model", "access", "user_data", "joboutputs", "directory"),
    [
        ("vm-raw", OURS, 0o600, 0o755, 0o755),
        ("bubblewrap", OURS, 0o500, 0o755, 0o755),
        ("docker", OURS, 0o500, 0o755, 0o755),
        ("docker", Access(OURS.uid, OURS.gid, any_user=True), 0o500, 0o1777, 0o700),
        ("docker", Access(OURS.uid, OURS.gid, any_user=True, reader_gid=OURS.gid), 0o500, 0o1777, 0o750),
    ],
)
def test_modes_let_in_the_machines_user_and_nobody_to_secrets(
    tmp_path: Path, model: str, access: Access, user_data: int, joboutputs: int, directory: int
) -> None:
    umask = os.umask(0)
    try:
        machine = new_machine(new_state(tmp_path), machinetype_of(machine_model=model), access=access)
    finally:
        os.umask(umask)
    modes = {
        name: stat.S_IMODE((machine.directory / name).stat().st_mode)
        for name in (
            "user_data",
            "joboutputs",
            "mnt",
            ".",
            "jobfeatures",
            "jobfeatures/job_id",
            "machinetype.json",
        )
    }
    assert modes == {
        "user_data": user_data,
        "joboutputs": joboutputs,
        "mnt": joboutputs,
        ".": directory,
        "jobfeatures": 0o755,
        "jobfeatures/job_id": 0o644,
        "machinetype.json": 0o644,
    }


def test_the_containers_user_owns_only_what_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def chown(path: int | Path, uid: int, gid: int) -> None:
        name = path if isinstance(path, Path) else Path(f"/proc/self/fd/{path}").readlink()
        given.append((Path(name).name, uid, gid))

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "fchown", chown)
    new_machine(new_state(tmp_path), access=Access(12345, 23456))
    assert sorted(given) == [(name, 12345, 23456) for name in ("joboutputs", "mnt", "user_data")]


def test_the_slot_names_a_machine_once_its_directory_is_whole(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    order = []

    def look(step: str, path: Path) -> None:
        if step == "renamed":
            order.append(str(path.relative_to(state.root)))
            assert (state.machines / directory / "jobfeatures" / "job_id").read_text() == UUID
            assert (state.machines / directory / "user_data").exists()

    directory = f"{CREATED}_lhcb-prod_{NAME}"
    with checkpoints(look):
        machine = new_machine(state)
    assert order == [f"machines/{directory}", f"slots/{NAME}"]
    assert state.slot(NAME).read_text().split() == [str(CREATED), "lhcb-prod", "bubblewrap"]
    assert (machine.directory / "accounting_fqan").read_text() == FQAN


def test_two_machines_within_a_second_have_two_directories(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    first, second = new_machine(state), new_machine(state)
    assert second.created_time == first.created_time + 1
    assert first.directory != second.directory
    assert state.slot(NAME).read_text().split()[0] == str(second.created_time)


def test_a_creation_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state(tmp_path)
    steps: list[str] = []
    with checkpoints(lambda step, path: steps.append(step)):
        new_machine(state, name="node1-01.example.org")
    before = {
        name: content for name, content in contents(state.root).items() if not name.startswith("slots/")
    }
    for refused in range(len(steps)):
        left = [refused]

        def refuse(step: str, path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, "No space left on device")

        with checkpoints(refuse), pytest.raises(OSError, match="No space"):
            new_machine(state)
        after = contents(state.root)
        assert {name: after[name] for name in after if not name.startswith("slots/")} == before
        assert not list(state.tmp.iterdir())


def kept_of(machine: Machine) -> dict[str, Any]:
    return {**retained(machine.kind), **retained(machine.settings)}


def test_what_matters_to_the_end_is_kept_and_nothing_secret(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machinetype = machinetype_of(
        fizzle_seconds=77,
        heartbeat_file="hb",
        user_data_options={"key": "SECRET"},
        idle_cpu_percent=2.5,
        disk_gb_per_processor=20,
    )
    settings = settings_of(state, hepscore23_per_processor=12.5, user_data_options={"key": "SECRET"})
    machine = new_machine(state, machinetype, settings)
    assert (machine.directory / "machinetype.json").read_bytes() == RECORDED.read_bytes()
    again = reloaded(machine)
    assert kept_of(again) == kept_of(machine) == json.loads(RECORDED.read_bytes())


def test_only_kept_options_of_machines_are_read() -> None:
    used: set[str] = set()
    for path in Path(vac.__file__).parent.rglob("*.py"):
        for function in path.read_text(encoding="utf-8").split("def "):
            for word in ("kind", "settings"):
                used |= set(re.findall(rf"\bmachine\.{word}\.(\w+)", function))
                if re.search(rf"\b{word}\b.* = machine\.{word}\b", function):
                    used |= set(re.findall(rf"(?<![.\w]){word}\.(\w+)", function))
    assert {"heartbeat_file", "idle_seconds", "gocdb_sitename", "apel_record_version"} <= used
    assert used <= {*json.loads(RECORDED.read_bytes()), "hs06", "site"}


def test_a_changed_configuration_leaves_a_running_machine_alone(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    changed = machinetype_of(fizzle_seconds=1, accounting_fqan="/other")
    found = load(
        machine.directory,
        model="docker",
        machinetypes={"lhcb-prod": changed},
        settings=settings_of(state, gocdb_sitename="OTHER", hs06_per_processor=99.0),
    )
    assert found is not None
    assert kept_of(found) == kept_of(machine)
    assert found.fqan == FQAN


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_the_configuration_replaces_a_torn_machinetype_json(tmp_path: Path, content: bytes) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    (machine.directory / "machinetype.json").write_bytes(content)
    found = load(
        machine.directory,
        model="bubblewrap",
        machinetypes={"lhcb-prod": machinetype_of()},
        settings=settings_of(state),
    )
    assert found is not None
    assert kept_of(found) == kept_of(machine)


def configured_machine(directory: Path, kept: str) -> Machine:
    """Return the machine whose machinetype.json has this content, read with a configuration."""
    (directory / "machinetype.json").write_text(kept)
    machinetypes = {"lhcb-prod": machinetype_of(fizzle_seconds=5)}
    found = load(directory, machinetypes=machinetypes, settings=Settings(vac_space="a.b"))
    assert found is not None
    return found


def test_options_not_kept_come_from_the_configuration(tmp_path: Path) -> None:
    directory = new_machine(new_state(tmp_path)).directory
    machine = configured_machine(directory, '{"heartbeat_file": "hb", "of_the_future": 1, "name": "other"}')
    assert (machine.kind.heartbeat_file, machine.kind.fizzle_seconds) == ("hb", 5)
    assert (machine.kind.name, machine.settings.vac_space) == ("lhcb-prod", "a.b")


def test_options_spoilt_by_hand_come_from_the_configuration(tmp_path: Path) -> None:
    directory = new_machine(new_state(tmp_path)).directory
    stand_in = configured_machine(directory, "{}")
    fields = (*dataclasses.fields(Machinetype), *dataclasses.fields(Settings))
    types = {field.name: str(field.type) for field in fields}
    for name in kept_of(stand_in):
        wrong = ["[]", "{}", "true", "NaN", "1e999", "0" if "str" in types[name] else '"5"']
        wrong += [] if "None" in types[name] else ["null"]
        for value in wrong:
            assert configured_machine(directory, f'{{"{name}": {value}}}') == stand_in, (name, value)


def test_a_machine_is_read_back_as_it_was(tmp_path: Path) -> None:
    machine = running_machine(new_state(tmp_path), processors=4)
    again = reloaded(machine)
    fields = (
        "uuid",
        "processors",
        "shutdown_time",
        "started_time",
        "heartbeat_time",
        "cpu_seconds",
        "hs06",
        "model",
    )
    assert [getattr(again, field) for field in fields] == [getattr(machine, field) for field in fields]
    assert (again.started_time, again.heartbeat_time, again.finished) == (STARTED, ENDED, False)
    assert again.hs06 == 40.0


def test_the_first_heartbeat_is_written_at_the_start(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    assert machine.started_time is None
    mark_started(state, machine, at(STARTED + 0.7))
    assert (machine.directory / "started").read_text().strip() == str(STARTED)
    assert (machine.directory / "heartbeat").read_text().split() == ["0.0", "0.0"]
    assert (machine.directory / "heartbeat").stat().st_mtime == pytest.approx(STARTED + 0.7)


def test_recent_cpu_use_is_measured_over_half_a_minute_and_more(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    mark_started(state, machine, at(STARTED))
    seen: list[Any] = []
    for seconds, cpu in ((10, 9.0), (60, 30.0), (65, 35.0), (120, 150.0)):
        renew_heartbeat(state, machine, at(STARTED + seconds), Usage(cpu_seconds=cpu))
        seen.append(machine.cpu_percent)
    assert seen == [None, 50.0, 50.0, 200.0]
    assert (machine.directory / "heartbeat").read_text().split() == ["150.0", "200.0"]


def test_an_engine_that_does_not_tell_renews_the_time_alone(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state, seen=STARTED + 600, cpu_seconds=500.0)
    renew_heartbeat(state, machine, at(STARTED + 700))
    renew_heartbeat(state, machine, at(STARTED + 800), Usage(cpu_seconds=3.0))
    again = reloaded(machine)
    assert (again.heartbeat_time, again.cpu_seconds) == (STARTED + 800, 500.0)


def test_a_heartbeat_is_renewed_in_place_also_by_a_shorter_one(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    mark_started(state, machine, at(STARTED))
    path, seen = machine.directory / "heartbeat", []
    for seconds, cpu in ((10, 9.0), (60, 6000.0), (100, 6001.0)):
        renew_heartbeat(state, machine, at(STARTED + seconds), Usage(cpu_seconds=cpu))
        seen.append((path.read_text(), path.stat().st_ino))
    assert [text for text, _ in seen] == ["9.0 0.0\n", "6000.0 10000.0\n", "6001.0 2.5    \n"]
    assert len({inode for _, inode in seen}) == 1


def test_usage_survives_a_heartbeat_lost_in_a_power_failure(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    mark_started(state, machine, at(STARTED))
    renew_heartbeat(state, machine, at(STARTED + 700), Usage(cpu_seconds=650.0, peak_memory_bytes=123456))
    (machine.directory / "heartbeat").write_bytes(b"")
    again = reloaded(machine)
    assert (again.cpu_seconds, again.peak_memory_bytes) == (650.0, 123456)


def test_what_engines_tell_is_kept_and_only_memory_shrinks(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    for usage in (Usage(1.0, 300, 400, 5000, 600), Usage(1.0, 200, 300, 4000, 700), Usage()):
        renew_heartbeat(state, machine, at(ENDED + 30), usage)
    again = reloaded(machine)
    assert (again.memory_bytes, again.peak_memory_bytes) == (200, 400)
    assert (again.network_received_bytes, again.network_sent_bytes) == (5000, 700)


def test_on_a_full_disk_the_time_last_seen_alive_still_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state, seen=STARTED + 600)

    def full(*args: object, **details: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_new", full)
    renew_heartbeat(state, machine, at(STARTED + 1300), Usage(cpu_seconds=1.0))
    assert reloaded(machine).heartbeat_time == STARTED + 1300


@pytest.mark.parametrize(("watched", "ended"), [(True, ENDED + 500), (False, ENDED)])
def test_the_end_is_now_only_if_it_was_watched(tmp_path: Path, watched: bool, ended: int) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    write_final_heartbeat(
        state, machine, at(ENDED + 500), Usage(cpu_seconds=35000.0, peak_memory_bytes=7), watched=watched
    )
    write_final_heartbeat(state, machine, at(ENDED + 900), Usage(cpu_seconds=99999.0), watched=True)
    renew_heartbeat(state, machine, at(ENDED + 950), Usage(cpu_seconds=99999.0))
    again = reloaded(machine)
    assert (end_time(again), again.cpu_seconds, again.peak_memory_bytes) == (ended, 35000.0, 7)


def test_the_end_is_never_before_the_start(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state, seen=STARTED - 5000)
    assert end_time(machine) == STARTED


def test_a_shutdown_time_is_only_ever_lowered_and_in_place(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    inode = (machine.directory / "machinefeatures").stat().st_ino
    assert lower_shutdown_time(state, machine, CREATED + 500)
    assert not lower_shutdown_time(state, machine, CREATED + 600)
    for key in ("machinefeatures/shutdowntime", "jobfeatures/shutdowntime_job"):
        assert (machine.directory / key).read_text() == str(CREATED + 500)
    assert (machine.directory / "machinefeatures").stat().st_ino == inode
    assert reloaded(machine).shutdown_time == CREATED + 500


def test_a_half_lowered_end_is_lowered_again_after_a_crash(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)

    def kill(step: str, path: Path) -> None:
        if (step, path.name) == ("renamed", "shutdowntime"):
            raise Killed

    with checkpoints(kill), pytest.raises(Killed):
        lower_shutdown_time(state, machine, CREATED + 500)
    again = reloaded(machine)
    assert lower_shutdown_time(state, again, CREATED + 500)
    assert (machine.directory / "jobfeatures" / "shutdowntime_job").read_text() == str(CREATED + 500)


@pytest.mark.parametrize("step", [3600, -3600])
def test_a_lowered_end_stays_when_the_clock_was_set_before(tmp_path: Path, step: int) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state)
    end = STARTED + 500
    assert lower_shutdown_time(state, machine, end + step, step)
    assert (machine.directory / "machinefeatures/shutdowntime").read_text() == str(end + step)
    assert machine.shutdown_time == reloaded(machine).shutdown_time == end


@pytest.mark.parametrize("name", ["1_a", "lost+found", "1_a_b"])
def test_what_is_no_machines_directory_loads_as_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert load(tmp_path / name) is None
    assert load(tmp_path / "1_a_missing") is None


def test_an_option_that_a_machine_was_made_without_stays_unset(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = running_machine(state, machinetype=machinetype_of(heartbeat_file=None, idle_cpu_percent=None))
    changed = {"lhcb-prod": machinetype_of(heartbeat_file="beat", idle_cpu_percent=5.0)}
    again = load(machine.directory, machinetypes=changed, settings=settings_of(state))
    assert again is not None
    assert (again.kind.heartbeat_file, again.kind.idle_cpu_percent) == (None, None)


# Time


def aged(tmp_path: Path, *, seen: float = 100.0, cpu_seconds: float = 1.0) -> tuple[StateDir, Machine]:
    """A machine last seen alive at this age, whose files show no sign of life of their own."""
    state = new_state(tmp_path)
    machine = running_machine(state, seen=STARTED + seen, cpu_seconds=cpu_seconds)
    return state, reloaded(machine)


def set_clock(moment: Moment, seconds: float) -> Moment:
    return moment._replace(unix=moment.unix + seconds)


@pytest.mark.parametrize("step", [-17_280_000, -3600, 3600, 17_280_000])
def test_a_clock_set_while_it_is_made_moves_no_end(tmp_path: Path, step: int) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    created = at(CREATED)
    machine.created_boot = (created.boot_id, created.boot)
    now = Moment(CREATED + 1.0 + step, created.boot + 1.0, created.boot_id)
    mark_started(state, machine, now)
    assert machine.started_time == pytest.approx(CREATED + 1, abs=1)
    assert machine.clock_step(now) == pytest.approx(step, abs=2)


@pytest.mark.parametrize("step", [0.0, 3600.0, -3600.0, -40.0, 200 * 86400.0, -10 * 365 * 86400.0])
def test_a_step_of_the_wall_clock_changes_neither_age_nor_end(tmp_path: Path, step: float) -> None:
    state, machine = aged(tmp_path)
    now = set_clock(at(STARTED + 500), step)
    assert machine.age(now) == 500.0
    assert machine.clock_step(now) == step
    renew_heartbeat(state, machine, now)
    write_final_heartbeat(state, machine, set_clock(at(STARTED + 600), step), watched=True)
    assert end_time(reloaded(machine)) == STARTED + 600
    assert (machine.directory / "heartbeat").stat().st_mtime == STARTED + 600


def test_an_older_vacs_machine_is_measured_from_its_discovery(tmp_path: Path) -> None:
    _, machine = aged(tmp_path)
    (machine.directory / "started_boot").unlink()
    machine = reloaded(machine)
    now = at(STARTED + 500)
    assert machine.age(now) == 500.0
    machine.note_clock(now)
    assert machine.age(set_clock(at(STARTED + 600), 3600.0)) == 600.0


def test_after_a_reboot_a_machines_age_is_by_the_wall_clock(tmp_path: Path) -> None:
    _, machine = aged(tmp_path)
    rebooted = Moment(STARTED + 900.0, 12.0, "boot-2")
    assert machine.age(rebooted) == 900.0
    machine.note_clock(rebooted)
    assert machine.age(rebooted.at(22.0)) == 910.0


@pytest.mark.parametrize(
    ("file", "age", "step", "lived"),
    [
        (None, 0, 0, 100),
        ("joboutputs/shutdown_message", 400, 0, 400),
        ("joboutputs/vm-heartbeat", 300, 0, 300),
        ("console.log", 200, 0, 200),
        ("joboutputs/log", 50, 0, 100),
        ("joboutputs/log", 5000, 0, 100),
        ("joboutputs/log", 400, 7200, 400),
        ("joboutputs/log", 400, -7200, 400),
    ],
    ids=["none", "message", "heartbeat file", "console", "older", "future", "clock forward", "clock back"],
)
def test_an_end_that_nobody_saw_is_the_latest_sign_of_life(
    tmp_path: Path, file: str | None, age: int, step: int, lived: int
) -> None:
    state, machine = aged(tmp_path)
    if file is not None:
        path = machine.directory / file
        path.write_text("x")
        os.utime(path, (STARTED + age + step, STARTED + age + step))
    write_final_heartbeat(state, machine, set_clock(at(STARTED + 1000), step), watched=False)
    again = reloaded(machine)
    assert (end_time(again), again.unseen, again.final) == (STARTED + lived, True, True)


def test_a_machine_lived_at_least_as_long_as_its_cpu_time_takes(tmp_path: Path) -> None:
    state, machine = aged(tmp_path, cpu_seconds=0.0)
    machine.processors = 4
    write_final_heartbeat(state, machine, at(STARTED + 1000), Usage(cpu_seconds=2000.0), watched=False)
    assert end_time(machine) == STARTED + 500


@pytest.mark.parametrize("watched", [True, False])
def test_an_engines_end_time_counts_unless_it_is_impossible(tmp_path: Path, watched: bool) -> None:
    impossible = 1000 if watched else 100
    for told, lived in ((STARTED + 700.0, 700), (STARTED + 50.0, impossible), (STARTED + 5000.0, impossible)):
        state, machine = aged(tmp_path / str(told))
        usage = Usage(ended_time=told)
        write_final_heartbeat(state, machine, at(STARTED + 1000), usage, watched=watched)
        assert end_time(machine) == STARTED + lived


@pytest.mark.parametrize(
    ("message", "unseen", "people", "reported_as", "early_counts"),
    [
        (None, False, False, "300 No shutdown message: fizzle after 30 seconds", True),
        (None, True, False, None, False),
        ("300 No work", True, False, "300 No work", False),
        (None, False, True, "100 Ended by the administrator", False),
        ("700 Killed", False, True, "100 Ended by the administrator", False),
        ("200 Success", False, True, "200 Success", False),
        ("200 Success", False, False, "200 Success", True),
    ],
)
def test_what_people_end_or_nobody_saw_end_is_no_abort(
    tmp_path: Path,
    message: str | None,
    unseen: bool,
    people: bool,
    reported_as: str | None,
    early_counts: bool,
) -> None:
    state, machine = aged(tmp_path, seen=30.0)
    if message:
        (machine.directory / "joboutputs" / "shutdown_message").write_text(message)
    if people:
        note_people(state, machine)
    write_final_heartbeat(state, machine, at(STARTED + 30), watched=not unseen)
    end = outcome(reloaded(machine))
    assert (end.message, end.early_counts) == (reported_as, early_counts)
