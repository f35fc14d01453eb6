"""`vac machinetypes`: what it adds to the table of what factories answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vac.cli import space
from vac.cli.main import main
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Creation, Status

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
    rows: list[str] = []

    def asked(arguments: object, kind: object, table: Callable[..., list[str]], chosen: object) -> int:
        rows.extend(table([], False))
        return 0

    monkeypatch.setattr(space, "run", asked)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert main(["--config", str(tmp_path / "vac.conf"), "machinetypes", *words]) == 0
    lines, nothing = (rows, capsys.readouterr().err.splitlines())[:: 1 if terminal else -1]
    assert [row for row in lines if row.startswith("On ")] == [f"On f1.example.org, {line}" for line in told]
    assert not any(row.startswith("On ") for row in nothing)
