"""`vac machines`, `machinetypes` and `factories`: character for character as the classic printed the same answers."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vacquery.recorded import FACTORY, SPACE, WIRE
from tests.unit.vacquery.test_responder import NoNames
from vac.cli import space_commands
from vac.cli.main import command_parser, main
from vac.config.settings import Settings
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Creation, Status
from vac.vacquery.messages import (
    ANSWERED_WITH,
    Dropped,
    FactoryStatus,
    Kind,
    MachineStatus,
    MachinetypeStatus,
    Reason,
    Received,
    part,
    read_status,
)
from vac.vacquery.poll import Poll, PollResult, UdpTransport

is_refused = space_commands._is_refused
TEXT = WIRE / "text"
SETTINGS = Settings(vac_space=SPACE, factory_name=FACTORY, factories=(FACTORY,))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(space_commands, "_is_refused", lambda port: False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def answers(kind: Kind, source: Path) -> PollResult:
    """Return the result of a poll with these answers, from a file or the recorded datagrams."""
    if source.suffix == ".jsonl":
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        found = [json.loads(line["data"]) for line in lines if line["dir"] == "response"]
    else:
        found = json.loads(source.read_text())
    received: list[Received] = []
    for message in found:
        status = read_status(message, ANSWERED_WITH[kind])
        assert not isinstance(status, Dropped)
        received.append(Received(status, message))
    received.sort(key=lambda answer: part(answer.status))
    return PollResult({FACTORY: tuple(received)}, frozenset([FACTORY]), (), frozenset(), {}, 0.1)


def nothing(missing: str = FACTORY, unresolved: bool = False) -> PollResult:
    return PollResult({}, frozenset(), (missing,), frozenset([missing] if unresolved else []), {}, 10.0)


def run(
    words: list[str],
    result: PollResult,
    monkeypatch: pytest.MonkeyPatch,
    out: io.StringIO | None = None,
    now: float = 0.0,
) -> tuple[int, str, str]:
    """Exit status, output and error output of `vac WORDS`, when a poll brings this result."""
    out, errors = out or io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr("vac.cli.common.settings", lambda arguments: SETTINGS)
    monkeypatch.setattr(Poll, "run", lambda poll: result)
    monkeypatch.setattr("vac.cli.space_commands.time.time", lambda: now)
    return main(words), out.getvalue(), errors.getvalue()


@pytest.mark.parametrize(
    ("words", "kind", "source", "now", "expected"),
    [
        ("machines", Kind.MACHINES, "machines_query.jsonl", 1795227163.2, "machines.out"),
        (
            "machines vac-85.example.org",
            Kind.MACHINES,
            "machines_query.jsonl",
            1795227188.2,
            "machines_named.out",
        ),
        ("machines -J", Kind.MACHINES, "text/machines_json.out", 0.0, "machines_json.out"),
        ("machines -H", Kind.MACHINES, "text/machines_json.out", 1795227163.2, "machines.out"),
        (
            "machinetype type-00",
            Kind.MACHINETYPES,
            "machinetypes_query.jsonl",
            0.0,
            "machinetype_type-00.out",
        ),
        (
            "machinetypes type-01",
            Kind.MACHINETYPES,
            "machinetypes_query.jsonl",
            0.0,
            "machinetype_type-01.out",
        ),
        (
            "machinetype type-06",
            Kind.MACHINETYPES,
            "machinetypes_query.jsonl",
            0.0,
            "machinetype_type-06.out",
        ),
        (
            *("machinetype type-00 -J", Kind.MACHINETYPES),
            *("text/machinetype_type-00_json.out", 0.0, "machinetype_type-00_json.out"),
        ),
        ("factories --json", Kind.FACTORIES, "text/factories_json.out", 0.0, "factories_json.out"),
    ],
)
def test_the_recorded_output_comes_from_the_recorded_answers(
    words: str, kind: Kind, source: str, now: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, errors = run(words.split(), answers(kind, WIRE / source), monkeypatch, now=now)
    assert out == (TEXT / expected).read_text()
    assert (code, errors) == (0, "")


def test_the_table_of_factories_is_the_recorded_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, out, _ = run(["factories"], answers(Kind.FACTORIES, WIRE / "factory_query.jsonl"), monkeypatch)
    assert out == (TEXT / "factories.out").read_text()


def slot(**fields: Any) -> MachineStatus:
    return MachineStatus(space=SPACE, site="", factory=FACTORY, machine="vac-85-00.example.org", **fields)


@pytest.mark.parametrize(
    ("status", "row"),
    [
        (
            slot(
                state="Running",
                machinetype="a-very-long-machinetype",
                num_processors=64,
                machine_model="bubblewrap",
            ),
            "vac-85-00       a-very-long-ma   Running    64 SC  0.00 hrs 0.0%         0.0%",
        ),
        (
            slot(state="Paused", machinetype="t", num_processors=1, machine_model="vm-raw"),
            "vac-85-00       t                Paused      1 VM                            ",
        ),
        (
            slot(
                state="Shut down",
                machinetype="t\x1b[2J",
                machine_model="new",
                shutdown_message='300 "\n\u202e',
            ),
            'vac-85-00       t?[2J            Shut down   0 ?? "300 "??"                  ',
        ),
    ],
)
def test_rows_of_other_machines(status: MachineStatus, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = dataclasses.replace(status, started_time=1000 if status.state == "Running" else None)
    result = PollResult({FACTORY: (Received(status, {}),)}, frozenset(), (), frozenset(), {}, 0.0)
    assert run(["machines"], result, monkeypatch, now=1000.0) == (0, f"{row}\n", "")


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    result = answers(Kind.MACHINES, WIRE / "machines_query.jsonl")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = run(["machines"], result, monkeypatch, Terminal(), now=1795227163.2)
    assert "\033[32m  Running  \033[0m" in out
    assert "\033[31m  Shut down\033[0m" in out
    for code in ("31", "32", "33", "0"):
        out = out.replace(f"\033[{code}m", "")
    heading, _, rows = out.partition("\n")
    assert heading.startswith("MACHINE ")
    assert rows == (TEXT / "machines.out").read_text()
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run(["machines"], result, monkeypatch, Terminal(), now=1795227163.2)
    assert out == f"{heading}\n{rows}"
    columns = ["MACHINE", "MACHINETYPE", "STATE", "LIFE"]
    starts = ["vac-85-00", "type-00", "Running", " 0.00 hrs"]
    assert [heading.index(word) for word in columns] == [rows.index(word) for word in starts]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--type type-01", ["vac-85-01"]),
        ("--state running --type TYPE", []),
        ("--state STARTING", ["vac-85-05"]),
        ("--sort processors --state starting", ["vac-85-05"]),
        ("--sort age --state running", ["vac-85-00", "vac-85-01", "vac-85-02", "vac-85-03", "vac-85-04"]),
    ],
)
def test_machines_are_chosen_and_sorted(
    words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = answers(Kind.MACHINES, WIRE / "machines_query.jsonl")
    code, out, _ = run(["machines", *words.split()], result, monkeypatch)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, expected)


def test_factories_have_a_heading_on_terminals_and_can_be_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = answers(Kind.FACTORIES, WIRE / "factory_query.jsonl")
    _, out, _ = run(["factories", "--sort", "load"], result, monkeypatch, Terminal())
    assert out.startswith("FACTORY PROCESSORS")
    assert out.partition("\n")[2] == (TEXT / "factories.out").read_text()


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        (
            {"creation_blocked": "draining: new\x1b disk"},
            [f"{FACTORY}: nothing is created: draining: new? disk"],
        ),
        (
            {"factory_heartbeat_time": 1000, "creation_blocked": "disk"},
            [f"{FACTORY}: its vacd-factory has been silent for 20 min, vacd-responder answers"],
        ),
        ({"factory_heartbeat_time": 2000}, []),
        ({}, []),
    ],
)
def test_factories_tells_which_create_nothing_and_why(facts: dict[str, Any], lines: list[str]) -> None:
    status = FactoryStatus(space=SPACE, site="s", factory=FACTORY, max_processors=8, **facts)
    result = PollResult({FACTORY: (Received(status, {}),)}, frozenset(), (), frozenset(), {}, 0.0)
    assert list(space_commands.blocked_factories(result, 2200.0)) == lines


def test_an_unknown_machinetype_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = answers(Kind.MACHINETYPES, WIRE / "machinetypes_query.jsonl")
    for words in (["machinetypes", "nosuch"], ["-J", "machinetype", "nosuch"]):
        code, out, errors = run(words, result, monkeypatch)
        assert (code, out) == (1, "[]\n" if "-J" in words else "")
        assert "no factory has a machinetype nosuch; there are: type-00 type-01" in errors


def test_a_vacd_that_does_not_run_here_is_told_and_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = StateDir(tmp_path / "state")
    state.prepare()
    (tmp_path / "vac.conf").write_text(CONFIGURATION.format(state=state.root) + "vacquery_port = 9\n")
    asked: list[object] = []
    monkeypatch.setattr(UdpTransport, "send", lambda *sent: asked.append(sent))
    for role in ("factory", "responder"):
        state.pid(role).write_text("4194305\n")
    assert main(["--config", str(tmp_path / "vac.conf"), "machines"]) == 1
    assert "vac: vacd doesn't run on f1.example.org: systemctl start vacd" in capsys.readouterr().err
    assert asked == []
    state.pid("factory").write_text(f"{os.getpid()}\n")
    assert main(["--config", str(tmp_path / "vac.conf"), "machines"]) == 1
    assert "vac: vacd-responder doesn't run on f1.example.org: its log says why" in capsys.readouterr().err


def test_without_a_name_machinetypes_shows_the_spaces_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    one = answers(Kind.MACHINETYPES, WIRE / "machinetypes_query.jsonl")
    other = dict(one.answers)
    other["vac-86.example.org"] = one.answers[FACTORY]
    _, out, _ = run(["machinetypes"], dataclasses.replace(one, answers=other), monkeypatch)
    lines = out.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("MACHINETYPE FACTORIES MACHINES PROCESSORS")
    assert lines[1].split(maxsplit=6) == [
        *("type-00", "2", "2", "2", "25.0", "2"),
        '21 Nov 02:12:35 "300 No work available"',
    ]


def test_factories_of_different_names_line_up() -> None:
    names = ("a.example.org", "factory-12.example.org")
    rows = space_commands.factory_rows([FactoryStatus(space=SPACE, site="", factory=name) for name in names])
    assert {row.index("0/0") for row in rows} == {12}
    types = [MachinetypeStatus(space=SPACE, site="", factory=name) for name in names]
    assert {row.index('- "-"') for row in space_commands.machinetype_rows(types)} == {20}


def test_elsewhere_without_an_answer_the_likely_cause_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, errors = run(["machines"], nothing(), monkeypatch)
    assert (code, out) == (1, "")
    assert f"{FACTORY}" in errors
    assert "no answer within 10 s" in errors
    assert "vacquery_allow" in errors
    code, out, errors = run(["machines", "-J", "-s", "other.example.org"], nothing(), monkeypatch)
    assert (code, out) == (1, "[]\n")
    assert "other.example.org was asked for" in errors


def test_a_factory_that_has_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, errors = run(["factories"], nothing(unresolved=True), monkeypatch)
    assert f"{FACTORY}: its address can't be found" in errors


def test_who_did_not_answer_is_named_beside_those_who_did(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answers(Kind.MACHINES, WIRE / "machines_query.jsonl")
    part_only = dataclasses.replace(whole, missing=(FACTORY, "vac-86.example.org"), complete=frozenset())
    code, out, errors = run(["machines"], part_only, monkeypatch, now=1795227163.2)
    assert (code, out) == (0, (TEXT / "machines.out").read_text())
    assert f"{FACTORY}: only a part of its answer arrived" in errors
    assert "vac-86.example.org" in errors
    assert "vacquery_allow" not in errors


@pytest.mark.parametrize(
    ("key", "changes", "told"),
    [
        (
            None,
            {
                "unusable": {FACTORY: Dropped(Reason.FIELD, "hs06: not a number")},
                "dropped": {Reason.FIELD: 3},
            },
            [
                f"vac: {FACTORY}: its answer can't be used: bad field: hs06: not a number",
                "vac: datagrams that came and were not used: 3 bad field",
            ],
        ),
        (
            b"a secret of the space",
            {"missing": ("vac-86.example.org",)},
            [
                "vac: vac-86.example.org (): no answer within 10 s",
                f"vac: A factory {space_commands.UNTRUSTING}.",
            ],
        ),
        (None, {"missing": ("vac-86.example.org",)}, ["vac: vac-86.example.org (): no answer within 10 s"]),
        (
            None,
            {"missing": (), "dropped": {Reason.JSON: 1, Reason.LONG: 2}},
            ["vac: datagrams that came and were not used: 1 not JSON, 2 too long"],
        ),
    ],
)
def test_why_answers_were_not_used_is_told(
    key: bytes | None, changes: dict[str, Any], told: list[str]
) -> None:
    whole = answers(Kind.FACTORIES, WIRE / "factory_query.jsonl")
    result = dataclasses.replace(whole, **{"missing": (FACTORY,), **changes})
    poll = Poll(Kind.FACTORIES, (FACTORY,), SPACE, NoNames(), 995, 10.0, key)
    assert [f"vac: {line}" for line in space_commands.problems(poll, result)] == told


def test_watching_goes_on_until_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("vac.cli.space_commands.time.sleep", sleep)
    result = answers(Kind.FACTORIES, WIRE / "factory_query.jsonl")
    code, out, _ = run(["factories", "--watch", "2"], result, monkeypatch)
    assert (code, pauses) == (0, [2.0, 2.0, 2.0])
    assert out == (TEXT / "factories.out").read_text() * 3


def test_options_choose_whom_to_ask_and_for_how_long() -> None:
    parser = command_parser("machines")

    def asked(words: list[str]) -> Poll:
        given = parser.parse_args(words)
        return space_commands.prepare(SETTINGS, given.kind, given.factories, given.space, given.timeout)

    query = asked([])
    assert (query.factories, query.space, query.timeout) == ((FACTORY,), SPACE, 10.0)
    words = ["-s", "x.example.org", "-t", "2.5", "vac-86", ".", "Other.Example.com"]
    query = asked(words)
    assert query.factories == ("vac-86.example.org", FACTORY, "other.example.com")
    assert (query.space, query.timeout) == ("x.example.org", 2.5)
    for bad in ("0", "-1", "x", "nan", "1e9"):
        with pytest.raises(SystemExit):
            parser.parse_args(["-t", bad])


CONFIGURATION = (
    "[settings]\nvac_space = vac.example.org\nfactory_name = f1.example.org\nstate_dir = {state}\n"
)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [],
            [
                "a: the last creation failed 9 s ago: no server",
                "b: the last creation failed 9 s ago: no image",
            ],
        ),
        (["a"], ["a: the last creation failed 9 s ago: no server"]),
        (["c"], []),
        (["a", "f2"], []),
        (["-s", "vac.example.org", "b"], ["b: the last creation failed 9 s ago: no image"]),
        (["-s", "other.example.org"], []),
    ],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_why_creations_failed_on_this_factory_is_told_where_no_program_reads_a_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    words: list[str],
    told: Sequence[str],
) -> None:
    state = StateDir(tmp_path / "state")
    state.prepare()
    (tmp_path / "vac.conf").write_text(CONFIGURATION.format(state=state.root))
    failed = {
        name: Creation(1000.0, name, reason=why) for name, why in (("a", "no server"), ("b", "no image"))
    }
    statuses.write(state, Status(1000.0, "vac.example.org", factory="f1.example.org", failed=failed))
    monkeypatch.setattr(time, "time", lambda: 1009.0)
    result = PollResult({"f1.example.org": ()}, frozenset(), (), frozenset(), {}, 0.1)
    monkeypatch.setattr(Poll, "run", lambda poll: result)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert main(["--config", str(tmp_path / "vac.conf"), "machinetypes", *words]) == 0
    lines, nothing = (text.splitlines() for text in capsys.readouterr()[:: 1 if terminal else -1])
    assert [row for row in lines if row.startswith("On ")] == [f"On f1.example.org, {line}" for line in told]
    assert not any(row.startswith("On ") for row in nothing)


@pytest.mark.parametrize("listening", [False, True])
def test_a_refused_port_is_known_at_once(listening: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        if not listening:
            bound.close()
        assert is_refused(port) is not listening


def test_a_host_on_which_vacd_never_ran_is_told_and_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vac.conf").write_text(CONFIGURATION.format(state=tmp_path / "state"))
    monkeypatch.setattr(space_commands, "_is_refused", lambda port: True)
    assert main(["--config", str(tmp_path / "vac.conf"), "machines"]) == 1
    assert "vac: vacd doesn't run on f1.example.org: systemctl start vacd" in capsys.readouterr().err
