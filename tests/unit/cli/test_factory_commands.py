"""`vac machine`, `why`, `drain`, `undrain`, `finish`, `destroy`, and times as people write them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.cli.conftest import vac
from tests.unit.state_dirs import NAME, STARTED, UUID, at, new_machine, new_state, running_machine
from vac import roles
from vac.cli import common, doctor
from vac.cli.doctor_engines import Finding
from vac.cli.factory_commands import reasons
from vac.cli.machine_commands import known_of
from vac.cli.main import main
from vac.drivers.base import Usage
from vac.machines import requests
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, mark_started, renew_heartbeat
from vac.machines.outputs import note_details
from vac.machines.status import Creation, Status, TypeFacts

NOW = 1_800_000_000.0


@pytest.fixture
def machine(state: StateDir) -> Machine:
    return running_machine(state)


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("+30s", NOW + 30),
        ("+90m", NOW + 5400),
        ("+2h", NOW + 7200),
        ("+1d", NOW + 86400),
        ("1795189401", 1795189401.0),
    ],
)
def test_a_time_can_be_written_as_seconds_or_as_a_distance(words: str, seconds: float) -> None:
    assert common.point_in_time(words, NOW) == seconds


def test_a_time_can_be_written_as_local_time() -> None:
    assert common.point_in_time("2027-01-15T08:00:00+00:00", NOW) == NOW


@pytest.mark.parametrize("words", ["", "soon", "+2x", "12", "2026-13-01", "-5m"])
def test_what_is_no_time_is_refused_with_examples(words: str) -> None:
    with pytest.raises(ValueError, match=r"\+30m"):
        common.point_in_time(words, NOW)


@pytest.mark.parametrize("name", [NAME, NAME.partition(".")[0], NAME.upper()])
def test_a_machine_is_found_by_its_full_and_its_short_name(
    state: StateDir, machine: Machine, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    note_details(state, machine, {"image_digest": "sha256:abc"})
    assert vac(state, "machine", name, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["machine"], facts["uuid"], facts["state"]) == (NAME, UUID, "Running")
    assert facts["image_digest"] == "sha256:abc"
    assert facts["jobfeatures"]["job_id"] == UUID
    assert vac(state, "machine", name) == 0
    assert UUID in capsys.readouterr().out


def test_names_of_files_that_a_machine_wrote_cannot_reach_the_terminal(
    state: StateDir, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.directory / "joboutputs" / "a\x1b[2Jb\nc").touch()
    assert vac(state, "machine", NAME) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a?[2Jb?c" in out


@pytest.mark.parametrize("command", ["machine", "finish", "destroy"])
def test_a_machine_that_is_not_there_is_an_error(
    state: StateDir, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vac(state, command, "node1-07") == 1
    assert "node1-07" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["finish", "destroy"])
def test_a_request_names_the_very_machine_that_is_meant(
    state: StateDir, machine: Machine, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vac(state, action, "node1-00") == 0
    assert requests.pending(state) == [requests.Request(action, NAME, UUID)]
    assert "no factory runs" in capsys.readouterr().out


def test_a_request_by_uuid_never_means_the_next_machine_of_the_slot(
    state: StateDir, machine: Machine
) -> None:
    assert vac(state, "destroy", UUID.upper()) == 0
    assert requests.pending(state) == [requests.Request("destroy", NAME, UUID)]
    assert vac(state, "destroy", "6a0e3c1e-0000-4000-8000-000000000000") == 1


def test_a_request_is_not_forgotten_for_another_that_has_been_carried_out(state: StateDir) -> None:
    before, after = (requests.Request("destroy", NAME, uuid) for uuid in ("u1", "u2"))
    requests.ask(state, before)
    requests.ask(state, after)
    requests.done(state, before)
    assert requests.pending(state) == [after]
    requests.done(state, after)
    assert requests.pending(state) == []


def test_draining_lasts_until_it_is_undone(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert vac(state, "drain", "--reason", "new disk") == 0
    order = requests.draining(state, NOW)
    assert order is not None and (order.reason, order.until) == ("new disk", None)
    assert vac(state, "undrain") == 0
    assert requests.draining(state, NOW) is None
    assert vac(state, "undrain") == 0
    assert "was not draining" in capsys.readouterr().out


def test_waiting_for_a_drain_keeps_its_reason(state: StateDir) -> None:
    assert vac(state, "drain", "--reason", "new disk") == 0
    assert vac(state, "drain", "--wait") == 0
    order = requests.draining(state, NOW)
    assert order is not None and order.reason == "new disk"


def test_a_drain_with_an_end_is_over_then(state: StateDir) -> None:
    requests.drain(state, requests.Drain(NOW, NOW + 60, "a minute"))
    assert requests.draining(state, NOW + 59) is not None
    assert requests.draining(state, NOW + 60) is None


@pytest.mark.parametrize("until", ["soon", "1795189401"])
def test_a_drain_until_the_past_or_no_time_is_refused(
    state: StateDir, until: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vac(state, "drain", "--until", until) == 2
    assert until in capsys.readouterr().err
    assert requests.draining(state, NOW) is None


def test_an_order_to_drain_that_cannot_be_read_still_drains(state: StateDir) -> None:
    (state.requests / "drain").write_bytes(b"\xff{")
    assert requests.draining(state, NOW) is not None


def test_drain_waits_until_no_machine_is_left(
    state: StateDir, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(sleep=lambda seconds: (machine.directory / "finished").touch(), time=time.time)
    monkeypatch.setattr("vac.cli.factory_commands.time", clock)
    assert vac(state, "drain", "--wait") == 0
    assert "1 left: node1-00" in capsys.readouterr().out


def test_a_running_factory_is_woken_and_nobody_else(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: woken.append(pid))
    state.pid("factory").write_text("12345\n")
    assert not requests.wake(state), "the process of that number isn't a factory any more"
    with state.lock():
        assert requests.wake(state)
    assert woken == [os.getpid()]


def test_a_broken_configuration_does_not_keep_people_from_draining(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with (state.root.parent / "vac.conf").open("a") as conf:
        conf.write("[machinetype broken]\nmachine_model = horse\n")
    assert vac(state, "drain") == 0


def test_draining_where_no_factory_has_ever_run_is_an_error_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "vac.conf"
    conf.write_text(
        f"[settings]\nvac_space = a.example.org\nfactory_name = f.example.org\nstate_dir = {tmp_path}/none\n"
        "[machinetype t]\nmachine_model = bubblewrap\n"
    )
    assert main(["--config", str(conf), "drain"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vac: {tmp_path}/none: ") and "has vacd never run here?" in said


def test_what_an_engine_once_told_takes_nothing_from_what_the_factory_knows(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    note_details(state, machine, {"state": "running", "uuid": "x", "image_digest": "site/pilot@sha256:1"})
    told = known_of(machine, Status(slot_states={machine.name: "Unknown"}), "f1.example.com")
    assert told["state"] == "Unknown"
    assert told["uuid"] == machine.uuid
    assert told["image_digest"] == "site/pilot@sha256:1"


def test_what_a_machine_uses_is_told(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    machine = new_machine(state)
    mark_started(state, machine, at(STARTED))
    renew_heartbeat(state, machine, at(STARTED + 30), Usage(2.0, 5 << 20, 7 << 20, 0, 800))
    told = known_of(machine, None, "f1.example.com")
    assert (told["memory MiB"], told["peak memory MiB"]) == (5, 7)
    assert (told["bytes received"], told["bytes sent"]) == (0, 800)


NOW = 1_800_000_000.0
TYPES = (TypeFacts(name="lhcb-prod"), TypeFacts(name="atlas-prod"))


def said(machinetype: str | None = None, now: float = NOW, **facts: object) -> str:
    status = Status(time=NOW, decision_time=NOW - 12, machinetypes=TYPES, **facts)  # type: ignore[arg-type]
    return "\n".join(reasons(status, machinetype, now))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "As decided 12 s ago:"),
        (
            {"guard": "this factory is draining: new disk"},
            "Nothing is created: this factory is draining: new disk.",
        ),
        ({"problems": ("vac.conf: [settings] x: bad",)}, "Configuration: vac.conf: [settings] x: bad"),
        (
            {"engines": {"docker": "no answer for 34 s", "libvirt": None}},
            "Engine docker: no answer for 34 s.",
        ),
        ({"pipes": {"vo": "no such host", "well": None}}, "Pipe vo: no such host."),
        ({"silent": {"f2": None}, "factories": ("f1", "f2")}, "No answer from 1 of 2 factories: f2."),
        (
            {"silent": {"f2": None}, "factories": ("f1", "f2"), "unusable": {"f2": "other space"}},
            "f2: its answer can't be used: other space.",
        ),
        (
            {"dropped": {"bad field": 3, "not JSON": 1}},
            "Datagrams that the last poll has dropped: 3 bad field, 1 not JSON.",
        ),
        ({"passed_over": {"lhcb-prod": "target_share is 0"}}, "lhcb-prod: target_share is 0"),
        ({"warnings": ("this node is probably broken",)}, "Warning: this node is probably broken."),
        (
            {"failed": {"lhcb-prod": Creation(NOW - 7, "lhcb-prod", reason="no image")}},
            "lhcb-prod: the last creation failed 7 s ago: no image",
        ),
    ],
)
def test_each_reason_is_told(facts: dict[str, object], words: str) -> None:
    assert words in said(None, NOW, **facts)


def test_while_peers_are_silent_the_responders_distrust_is_told() -> None:
    counters = {"dropped: wrong or no signature": 5, "dropped: not JSON": 2, "answers": 7}
    for silent, lines in (
        ({}, []),
        (
            {"f2": None},
            ["The responder here has dropped 5 queries since it began: wrong or no signature."],
        ),
    ):
        status = Status(time=NOW, silent=silent)
        told = list(reasons(status, None, NOW, counters))
        assert [line for line in told if "responder" in line] == lines


def test_a_type_is_told_of_alone_when_it_is_asked_for() -> None:
    told = said("atlas-prod", passed_over={"lhcb-prod": "held", "atlas-prod": "no share"})
    assert "atlas-prod: no share" in told
    assert "lhcb-prod" not in told


def test_an_old_report_is_said_to_be_old() -> None:
    assert "has not reported for 10 minutes" in said(now=NOW + 600)


def test_without_a_factory_and_for_unknown_types_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = new_state(tmp_path)
    conf = tmp_path / "vac.conf"
    conf.write_text(
        f"[settings]\nvac_space = a.example.org\nfactory_name = f.example.org\nstate_dir = {state.root}\n"
    )
    assert main(["--config", str(conf), "why"]) == 1
    assert "no factory has run" in capsys.readouterr().err
    statuses.write(state, Status(time=NOW, machinetypes=TYPES))
    assert main(["--config", str(conf), "why", "cms"]) == 1
    assert "there are: lhcb-prod atlas-prod" in capsys.readouterr().err
    assert main(["--config", str(conf), "why"]) == 0
    capsys.readouterr()
    recent = tuple(time.time() - seconds for seconds in (3, 9, 20))
    roles.write_restarts(state.root, {"factory": roles.Restarts(3, recent, "ended with exit status 1")})
    assert main(["--config", str(conf), "why"]) == 0
    first = "Warning: vacd-factory restarted 3 times in 5 minutes: ended with exit status 1."
    assert capsys.readouterr().out.splitlines()[0] == first


def test_no_terminal_sequence_of_others_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J"
    state = new_state(tmp_path)
    conf = tmp_path / "vac.conf"
    conf.write_text(
        f"[settings]\nvac_space = a.example.org\nfactory_name = f.example.org\nstate_dir = {state.root}\n"
    )
    statuses.write(state, Status(time=NOW, machinetypes=TYPES, passed_over={"lhcb-prod": hostile}))
    assert main(["--config", str(conf), "why"]) == 0
    findings = [Finding(hostile), Finding("x", hostile)]
    monkeypatch.setattr(doctor, "examine", lambda arguments: iter(findings))
    assert main(["--config", str(conf), "doctor"]) == 1
    told = capsys.readouterr().out
    assert told.count("\\x1b]0;owned\\x07") == 3
    assert "\x1b" not in told


def test_finish_says_that_the_machine_ends_now_without_grace(
    state: StateDir, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vac(state, "finish", NAME) == 0
    assert "now, since grace_secs is 0" in capsys.readouterr().out
    conf = state.root.parent / "vac.conf"
    conf.write_text(conf.read_text().replace("[settings]", "[settings]\ngrace_secs = 60"))
    assert vac(state, "finish", NAME) == 0
    assert "grace_secs" not in capsys.readouterr().out


def test_an_interrupted_wait_says_that_draining_goes_on(
    state: StateDir, machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vac.cli.factory_commands.time", SimpleNamespace(sleep=interrupt, time=time.time))
    assert vac(state, "drain", "--wait") == 130
    assert "node1.example.org goes on draining; `vac undrain` ends that" in capsys.readouterr().err
    assert requests.draining(state, NOW) is not None


def test_why_says_that_vacd_has_gone(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    statuses.write(state, Status(factory="node1.example.org", time=NOW))
    state.pid("factory").write_text(f"{os.getpid()}\n")
    assert vac(state, "why") == 0
    assert "vacd doesn't run" not in capsys.readouterr().out
    state.pid("factory").write_text("4194305\n")
    assert vac(state, "why") == 0
    assert capsys.readouterr().out.startswith("Warning: vacd doesn't run now; all this is as it was then.\n")


def test_why_and_doctor_speak_json(
    state: StateDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = Status(
        time=NOW, factory="node1.example.org", machinetypes=TYPES, passed_over={"lhcb-prod": "held back"}
    )
    statuses.write(state, status)
    assert vac(state, "why", "--json", "lhcb-prod") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["factory"], found["machinetypes"]) == ("node1.example.org", {"lhcb-prod": "held back"})
    assert "lhcb-prod: held back" in found["reasons"]
    findings = [Finding("a"), Finding("b", "missing", serious=False), Finding("c", "broken")]
    monkeypatch.setattr(doctor, "examine", lambda arguments: iter(findings))
    assert vac(state, "doctor", "--json") == 1
    assert json.loads(capsys.readouterr().out)[2] == {"what": "c", "problem": "broken", "serious": True}
