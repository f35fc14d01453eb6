"""State directories that Vac 3 left are read here, and what is written here is what Vac 3 reads (its stand-in does).

The stand-in is judged by the recorded answers of a factory of Vac 3 to the state directory that it had then.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.space.classic_factory import State, answers
from tests.unit.state_dirs import at, contents, machinetype_of, new_machine, new_state, settings_of
from tests.unit.vacquery.recorded import FACTORY, NOW, SPACE, make_state, messages
from vac.accounting.history import finish
from vac.drivers.base import Usage
from vac.machines.machine import lower_shutdown_time, mark_started, renew_heartbeat
from vac.machines.outputs import shutdown_message
from vac.machines.slots import read_slots, write_slot
from vac.vacquery.messages import Kind

SLOTS = 8
CREATED = int(time.time()) - 1000


@pytest.mark.parametrize("kind", [Kind.MACHINES, Kind.MACHINETYPES, Kind.FACTORIES])
def test_the_stand_in_answers_as_vac_3_did(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(make_state(tmp_path / "state").root, FACTORY, SLOTS)
    monkeypatch.setattr(time, "time", lambda: NOW)
    recorded = messages(kind)
    cookie = recorded[0]["cookie"]
    found = list(answers(state, kind.value, FACTORY, SPACE, cookie))
    host = ("time_sent", "factory_heartbeat_time", "num_machinetypes", "num_before_fizzle")
    if kind is Kind.MACHINETYPES:  # it knows of types only by their machines
        recorded = [one for one in recorded if one["running_machines"] or one["shutdown_time"]]
    key = {Kind.MACHINES: "machine", Kind.MACHINETYPES: "machinetype", Kind.FACTORIES: "factory"}[kind]
    mine = {message[key]: message for message in found}
    assert set(mine) == {message[key] for message in recorded}
    for theirs in recorded:
        for field, value in theirs.items():
            if field not in (*host, "fqan", "created_time"):
                assert mine[theirs[key]][field] == value, (theirs[key], field)


def test_what_is_written_here_is_what_vac_3_reads(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    settings = settings_of(state)
    classic = State(state.root, settings.factory_name, 1)

    def told() -> dict[str, Any]:
        return next(iter(classic.machines()))

    assert told()["state"] == "Shut down"
    machine = new_machine(state, settings=settings, now=CREATED + 0.5, shutdown_time=CREATED + 86400)
    write_slot(state, machine)
    assert told() == {
        "machine": machine.name,
        "state": "Starting",
        "created_time": CREATED,
        "machinetype": machine.machinetype,
        "machine_model": "bubblewrap",
        "num_processors": 1,
        "uuid": machine.uuid,
        "fqan": machinetype_of().accounting_fqan,
        "hs06": 10.0,
        "cpu_seconds": 0,
        **{key: told()[key] for key in ("cpu_percentage", "heartbeat_time") if key in told()},
    }
    mark_started(state, machine, at(CREATED + 5.0))
    renew_heartbeat(state, machine, at(CREATED + 605.0), Usage(cpu_seconds=300.0))
    found = told()
    assert (found["state"], found["started_time"], found["heartbeat_time"]) == (
        "Running",
        CREATED + 5,
        CREATED + 605,
    )
    assert found["cpu_seconds"] == 300
    assert lower_shutdown_time(state, machine, CREATED + 700)
    assert int((machine.directory / "jobfeatures" / "shutdowntime_job").read_text()) == CREATED + 700
    (machine.directory / "joboutputs" / "shutdown_message").write_bytes(b"200 Success\nand more\n")
    finish(state, machine, Usage(cpu_seconds=310.0), at(CREATED + 650.0), watched=True)
    found = told()
    assert (found["state"], found["shutdown_message"]) == ("Shut down", "200 Success")
    (kind,) = classic.machinetypes()
    assert (kind["running_machines"], kind["shutdown_machine"]) == (0, machine.name)
    assert kind["shutdown_message"] == "200 Success"


def test_slots_that_vac_3_left_are_found_and_nothing_of_them_changes(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    before = contents(state.root)
    theirs = {message["machine"]: message for message in messages(Kind.MACHINES)}
    machines = read_slots(state)
    assert set(machines) == {name for name, message in theirs.items() if message["uuid"]}
    for name, machine in machines.items():
        assert machine.uuid == theirs[name]["uuid"]
        assert machine.machinetype == theirs[name]["machinetype"]
        assert machine.finished == (theirs[name]["state"] == "Shut down")
        assert (machine.started_time is None) == (theirs[name]["started_time"] is None)
        if machine.finished:
            assert shutdown_message(machine) == theirs[name]["shutdown_message"]
    assert contents(state.root) == before
