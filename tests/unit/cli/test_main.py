"""What all sub-commands of `vac` have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from vac.cli.main import command_parser, main


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "1", "--config", "2", "config", "show", "--json"],
        ["--config", "1", "config", "show", "--config", "2", "--json"],
        ["config", "show", "--json", "--config", "1", "--config=2"],
        ["--config", "1", "config", "--config", "2", "show", "--json"],
    ],
)
def test_config_may_stand_before_the_command_or_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("1").write_text("[settings]\nvac_space = one.example.org\nfactory_name = a.example.org\n")
    Path("2").write_text("[settings]\nvac_space = two.example.org\n")
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "two.example.org" in shown
    assert "a.example.org" in shown


@pytest.mark.parametrize(
    "words", ["machines", "why", "drain", "doctor", "machine x", "pipe show", "simulate"]
)
def test_every_command_takes_it(words: str) -> None:
    name, *more = words.split()
    arguments = command_parser(name).parse_intermixed_args([*more, "--config", "x"])
    assert arguments.config == [Path("x")]
