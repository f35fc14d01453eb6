"""`vac why`: the reasons in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.state_dirs import new_state
from vac.cli import doctor
from vac.cli.main import main
from vac.cli.why import reasons
from vac.machines import status as statuses
from vac.machines.status import Creation, Status, TypeFacts

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
    findings = [doctor.Finding(hostile), doctor.Finding("x", hostile)]
    monkeypatch.setattr(doctor, "examine", lambda arguments: iter(findings))
    assert main(["--config", str(conf), "doctor"]) == 1
    told = capsys.readouterr().out
    assert told.count("\\x1b]0;owned\\x07") == 3
    assert "\x1b" not in told
