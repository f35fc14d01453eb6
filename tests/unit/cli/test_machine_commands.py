"""`vac machine` of ended machines, `vac logs` and `vac history`, and the file of ended machines behind them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cli.conftest import vac
from tests.unit.state_dirs import ENDED, NAME, STARTED, UUID, at, machinetype_of, new_state, running_machine
from vac.accounting import history
from vac.accounting.history import Ended, finish
from vac.cli import machine_commands
from vac.cli.factory_commands import RECENT_SECONDS, reasons
from vac.drivers.base import EngineUnavailable, Usage
from vac.machines.files import append_line
from vac.machines.layout import StateDir
from vac.machines.machine import Machine, load
from vac.machines.slots import read_slots
from vac.machines.status import Status, TypeFacts

FAILED = STARTED + 4


@pytest.fixture
def failed(state: StateDir) -> Machine:
    """A machine whose command has failed after four seconds."""
    machine = running_machine(state, seen=STARTED + 2, cpu_seconds=1.0)
    (machine.directory / "console.log").write_bytes(
        b"".join(b"line %d\n" % n for n in range(300)) + b"no disk\n"
    )
    finish(state, machine, Usage(2.0, exit_code=7, ended_time=FAILED), at(FAILED), watched=True)
    return machine


class Terminal(io.TextIOWrapper):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("known_as", ["name", "uuid", "directory"])
def test_a_failed_machine_is_understood_from_vac_machine(
    state: StateDir, failed: Machine, known_as: str, capsys: pytest.CaptureFixture[str]
) -> None:
    word = {"name": "node1-00", "uuid": UUID.upper(), "directory": failed.directory.name}[known_as]
    assert vac(state, "machine", word) == 0
    told = capsys.readouterr().out
    assert "exit code 7 after 4 s: 300 No shutdown message: fizzle after 4 seconds" in told
    assert told.rstrip().endswith("\n  line 298\n  line 299\n  no disk")
    assert str(failed.directory) in told
    assert vac(state, "machine", "--json", word) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["exit code"], facts["ended"], len(facts["console's end"])) == (7, FAILED, 10)


def test_the_exit_code_outlives_a_restart_and_a_repeated_end(state: StateDir, failed: Machine) -> None:
    again = load(failed.directory)
    assert again is not None and (again.exit_code, again.signal) == (7, None)
    finish(state, again, Usage(), at(FAILED + 900), watched=False)
    assert [one.exit_code for one in history.read(state)] == [7]


def test_how_a_vm_ended_is_kept_and_shown(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    machine = running_machine(state, seen=STARTED + 2)
    finish(state, machine, Usage(2.0, shutoff_reason="destroyed"), at(FAILED), watched=True)
    (again,) = read_slots(state).values()
    assert again.shutoff_reason == "destroyed"
    assert vac(state, "machine", NAME) == 0
    assert "destroyed after 4 s" in capsys.readouterr().out
    assert vac(state, "history", "--since", str(STARTED)) == 0
    assert " destroyed " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("well_after", "asked_after", "told"),
    [(None, 60, "60 s"), (None, 86400, "24 h 00 min"), (3600, 3660, "61 min"), (3600, 86400, None)],
)
def test_why_names_the_machine_that_failed_last(
    state: StateDir, failed: Machine, well_after: float | None, asked_after: float, told: str | None
) -> None:
    if well_after is not None:
        well = dataclasses.replace(
            history.ended(failed), directory="later", ended=FAILED + well_after, message="200 Success"
        )
        append_line(state.history, json.dumps(dataclasses.asdict(well)).encode(), history.LIMIT_BYTES)
    status = Status(time=FAILED, decision_time=FAILED, machinetypes=(TypeFacts(name="lhcb-prod"),))
    now = FAILED + asked_after
    said = list(reasons(status, None, now, failures=history.last_failures(state, now - RECENT_SECONDS)))
    why = "exit code 7 after 4 s: 300 No shutdown message: fizzle after 4 seconds"
    line = f"lhcb-prod: node1-00 failed {told} ago: {why} (`vac machine {UUID}` tells more)"
    assert [one for one in said if "failed" in one] == ([line] if told else [])


@pytest.mark.parametrize(
    ("facts", "is_failure", "words"),
    [
        ({"message": "200 Success", "exit_code": 1}, False, "exit code 1 after 10 s: 200 Success"),
        ({"message": "600 Broken"}, True, "after 10 s: 600 Broken"),
        ({"exit_code": 0}, False, "exit code 0 after 10 s: no shutdown message"),
        ({"exit_code": 139}, True, "exit code 139 (SIGSEGV) after 10 s: no shutdown message"),
        ({"signal": 9}, True, "SIGKILL after 10 s: no shutdown message"),
        ({"signal": 63}, True, "signal 63 after 10 s: no shutdown message"),
        ({"shutoff_reason": "crashed"}, True, "crashed after 10 s: no shutdown message"),
        ({"shutoff_reason": "shutdown"}, False, "shutdown after 10 s: no shutdown message"),
        ({"shutoff_reason": "crashed", "message": "200 Success"}, False, "crashed after 10 s: 200 Success"),
        (
            {"signal": 9, "by_people": True},
            False,
            "SIGKILL after 10 s: no shutdown message (people wanted its end)",
        ),
    ],
)
def test_how_a_machine_ended_is_said(facts: dict[str, Any], is_failure: bool, words: str) -> None:
    end = Ended("m", "t", "1_t_m", 100.0, 110.0, **facts)
    assert (end.failed, end.words) == (is_failure, words)


def test_history_shows_and_selects(
    state: StateDir, failed: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    other = running_machine(state, name="node1-01.example.org", uuid="u2")
    (other.directory / "joboutputs" / "shutdown_message").write_bytes(b"200 \x1b[2JSuccess")
    finish(state, other, Usage(exit_code=0), at(ENDED), watched=True)
    assert vac(state, "history", "--since", str(STARTED)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert ["node1-00" in line for line in shown] == [True, False]
    assert UUID in shown[0] and "   7 " in shown[0]
    assert shown[0].count(f" {time.tzname[0]} ") == 2, "times in a pipe say their zone"
    assert shown[1].endswith("200 ?[2JSuccess")
    for words, uuids in (
        (["--failed"], [UUID]),
        (["--type", "lhcb-prod"], [UUID, "u2"]),
        (["--type", "cms"], []),
        (["--since", str(FAILED + 1)], ["u2"]),
    ):
        assert vac(state, "history", "--since", str(STARTED), "--json", *words) == 0
        assert [one["uuid"] for one in json.loads(capsys.readouterr().out)] == uuids
    assert vac(state, "history", "--since", "yesterday") == 2
    assert "write 30m" in capsys.readouterr().err


def test_history_outlives_directories_and_stays_small(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = running_machine(state, seen=ENDED)
    monkeypatch.setattr(history, "LIMIT_BYTES", 2000)
    monkeypatch.setattr(history, "_TAIL_BYTES", 100)
    for number in range(40):
        machine.directory = machine.directory.with_name(f"{number}_lhcb-prod_{NAME}")
        history.append(state, machine)
    kept = [one.directory for one in history.read(state)]
    assert kept[-1] == machine.directory.name and 5 <= len(kept) < 20
    assert sum(path.stat().st_size for path in state.root.glob("history.jsonl*")) <= 4000


@given(torn=st.binary(max_size=60).filter(lambda text: b"\n" not in text))
def test_half_a_line_spoils_no_other(torn: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    state = new_state(tmp_path_factory.mktemp("torn"))
    state.history.write_bytes(torn)
    history.append(state, running_machine(state))
    assert [one.uuid for one in history.read(state)] == [UUID]


def test_logs_end_with_the_last_lines(
    state: StateDir,
    failed: Machine,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", out)

    def shown(*words: str) -> bytes:
        out.buffer.seek(0)
        out.buffer.truncate()
        assert vac(state, "logs", *words) == 0
        return out.buffer.getvalue()

    assert shown(NAME, "-n", "2") == b"line 299\nno disk\n"
    assert shown(UUID).count(b"\n") == 100
    assert shown(failed.directory.name, "-n", "999").startswith(b"line 0\n")
    assert shown(NAME, "-n", "0") == b""
    (failed.directory / "joboutputs" / "pilot.log").write_bytes(b"\x1b[31mred")
    assert shown(NAME, "pilot.log") == b"\x1b[31mred"


def test_logs_are_harmless_on_a_terminal(
    state: StateDir, failed: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"a\tb\r\n\x1b]0;owned\x07\x9b2J\xc2\x9b\rc\xff" + "\u202e\n".encode()
    (failed.directory / "console.log").write_bytes(content)
    written = io.BytesIO()
    out = Terminal(written, encoding="utf-8")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(os, "pread", _one_byte_at_a_time(os.pread))
    assert vac(state, "logs", NAME) == 0
    shown = written.getvalue().decode()
    assert shown.startswith("a\tb\n\\x1b]0;owned\\x07")
    assert all(letter.isprintable() or letter in "\t\n" for letter in shown)


def _one_byte_at_a_time(pread: Any) -> Any:
    return lambda descriptor, size, place: pread(descriptor, min(size, 1) if size == 65536 else size, place)


@pytest.mark.parametrize(
    "planted", ["../user_data", "link", "pipe", "directory", "none", "/etc/passwd", ".."]
)
def test_only_regular_files_of_joboutputs_are_shown(
    state: StateDir, failed: Machine, planted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = failed.directory / "joboutputs"
    (outputs / "link").symlink_to("/etc/passwd")
    os.mkfifo(outputs / "pipe")
    (outputs / "directory").mkdir()
    assert vac(state, "logs", NAME, planted) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"vac logs: {NAME}")


def test_following_ends_with_the_machine_and_survives_a_rotated_log(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = running_machine(state)
    log = machine.directory / "console.log"
    log.write_bytes(b"one\n")

    def sleep(_: float) -> None:
        if not log.with_suffix(".0").exists():
            log.rename(log.with_suffix(".0"))
            log.write_bytes(b"two\n")
        else:
            with log.open("ab") as file:
                file.write(b"three\n")
            finish(state, machine, Usage(), at(ENDED), watched=True)

    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("vac.cli.machine_commands.time", SimpleNamespace(sleep=sleep, time=time.time))
    monkeypatch.setattr(sys, "stdout", out)
    assert vac(state, "logs", "-f", NAME) == 0
    assert out.buffer.getvalue() == b"one\ntwo\nthree\n"


def test_until_a_containers_console_is_kept_its_engine_has_it(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = running_machine(state, machinetype=machinetype_of(machine_model="docker"))
    finish(state, machine, Usage(exit_code=3), at(ENDED), watched=True)
    monkeypatch.setattr(machine_commands, "_from_engine", lambda *_: iter([b"begun\n", b"ov", b"er\n"]))
    for kept in (b"begun\nover\n", b"as it was kept\n"):
        out = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr("sys.stdout", out)
        assert vac(state, "logs", NAME) == 0
        assert out.buffer.getvalue() == kept
        (machine.directory / "console.log").write_bytes(b"as it was kept\n")


def test_a_container_that_is_just_being_removed_has_its_console_kept(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = running_machine(state, machinetype=machinetype_of(machine_model="docker"))

    def removed(*_: object) -> NoReturn:
        (machine.directory / "console.log").write_bytes(b"over\n")
        raise EngineUnavailable("no such container")

    monkeypatch.setattr(machine_commands, "_from_engine", removed)
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", out)
    assert vac(state, "logs", NAME) == 0
    assert out.buffer.getvalue() == b"over\n"


def test_a_machine_without_console_says_so(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    running_machine(state)
    assert vac(state, "logs", NAME) == 1
    assert "has no console.log (yet)" in capsys.readouterr().err
    assert vac(state, "logs", "node1-07") == 1
    assert "`vac history`" in capsys.readouterr().err
