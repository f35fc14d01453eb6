"""`vac simulate`: its arguments, its summary, JSON and picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vac.cli.main import main

SCENARIO = """
[space]
factories = 5
hours = 3
[hardware small]
processors = 8
[machinetype atlas]
target_share = 3
backoff_seconds = 300
[machinetype lhcb]
target_share = 1
backoff_seconds = 300
[work atlas]
lifetime = 20m-40m
[work lhcb]
when = 0h-1h 2h-
lifetime = 20m-40m
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.ini"
    path.write_text(SCENARIO)
    return path


def test_summary_says_what_came_of_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(path), "--policy", "classic", "--factories", "3", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("some: 3 factories, 3 h, policy classic, seed 7, ")
    for words in (
        "time to fill",
        "free despite",
        "lhcb without work, 1 h to 2 h",
        "lhcb with work again at 2 h",
    ):
        assert words in printed


def test_json_and_picture_are_written(path: Path, tmp_path: Path) -> None:
    numbers, picture = tmp_path / "out.json", tmp_path / "out.svg"
    assert main(["simulate", str(path), "--hours", "1", "--json", str(numbers), "--plot", str(picture)]) == 0
    result = json.loads(numbers.read_text())
    assert result["space"]["hours"] == 1
    assert result["samples"][0]["used"] == 0
    assert set(result["samples"][-1]["parts"]) == {"atlas", "lhcb"}
    root = ET.parse(picture).getroot()
    names = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"atlas", "lhcb", "share error"} <= set(names)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polygon"))) == 2


def test_without_a_scenario_the_sites_configuration_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "vac.conf"
    config.write_text(
        "[settings]\nvac_space = vac01.example.org\nfactory_name = vac-01.example.org\n"
        "[machinetype mine]\ntarget_share = 1\nmachine_model = docker\nroot_image = docker://x/y\n"
        "user_data = user_data\n"
    )
    assert main(["--config", str(config), "simulate", "--factories", "2", "--hours", "0.5"]) == 0
    assert capsys.readouterr().out.startswith("configuration: 2 factories, 0.5 h")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--plot", "out.png"], "has to end in .svg"),
        (["--hours", "0"], "has to be above 0"),
        (["--factories", "none"], "'none' is not an integer from 1 to 10000"),
        (["--hours", "0.1", "--json", "/nonexistent/out"], "can't be written: No such file"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], complaint: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["simulate", str(path), *arguments])
    except SystemExit as error:
        code = int(str(error.code))
    assert code != 0
    assert complaint in capsys.readouterr().err
