"""Scenario files, and `vac simulate` with its summary, JSON and picture."""

from __future__ import annotations

import json
import random
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vac.cli.main import main
from vac.config.load import ConfigurationError
from vac.config.machinetype import Machinetype
from vac.config.options import declared
from vac.config.settings import Settings
from vac.simulate.scenario import Hardware, Space, Work, periods, read_scenario, seconds, spread

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "simulate").glob("*.ini"))


def site() -> tuple[Settings, dict[str, Machinetype]]:
    return Settings(mb_per_processor=777), {"sites-own": Machinetype("sites-own", target_share=1)}


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1.5m", 90), ("90s", 90), ("2h", 7200), ("1d", 86400)]
)
def test_times_have_units(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "least", "most", "mean"),
    [
        ("20s", 20, 20, 20),
        ("6h-18h", 21600, 64800, 43200),
        ("12h~1h", 20000, 70000, 43200),
        ("exp:1h", 0, 100000, 3600),
        ("1s~100s", 0.1, 1000, 40),
    ],
)
def test_spreads_draw_what_they_say(text: str, least: float, most: float, mean: float) -> None:
    rng = random.Random(1)
    drawn = [spread(text)(rng) for _ in range(2000)]
    assert least <= min(drawn)
    assert max(drawn) <= most
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (("always",), [(0, float("inf"))]),
        (("never",), []),
        (("2h-3h", "1h-2h", "5h-"), [(3600, 10800), (18000, float("inf"))]),
        (("3h-3h", "1h-4h", "2h-3h"), [(3600, 14400)]),
    ],
)
def test_periods_are_sorted_and_joined(when: tuple[str, ...], expected: list[tuple[float, float]]) -> None:
    assert periods(when) == expected


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_can_be_read(path: Path) -> None:
    scenario = read_scenario(path, site)
    assert scenario.name == path.stem
    assert sum(one.target_share for one in scenario.machinetypes.values()) > 0


def test_a_file_without_machinetypes_takes_the_sites(tmp_path: Path) -> None:
    path = tmp_path / "scenario.ini"
    path.write_text("[space]\nfactories = 3\n[settings]\nprocessors_per_superslot = 8\n")
    scenario = read_scenario(path, site)
    assert list(scenario.machinetypes) == ["sites-own"]
    assert (scenario.settings.mb_per_processor, scenario.settings.processors_per_superslot) == (777, 8)


def test_common_options_count_in_every_section(tmp_path: Path) -> None:
    path = tmp_path / "scenario.ini"
    path.write_text("[DEFAULT]\nbackoff_seconds = 77\n[machinetype a]\ntarget_share = 1\n")
    assert read_scenario(path, site).machinetypes["a"].backoff_seconds == 77


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[spcae]\n", "no such section, the nearest is space"),
        ("[space 2]\n", r"should be \[space\]"),
        ("[work]\n", r"should be \[work MACHINETYPE\]"),
        ("[space]\nfactories = 0\n", "'0' is not an integer from 1 to 10000"),
        ("[space]\nfactory = 5\n", "factory: is not an option of .*nearest is factories"),
        ("[space]\npolicy = best\n", "one of deficit, classic"),
        ("[space]\nstart = soon\n", "'soon' is not a time such as"),
        ("[work sites-own]\nwhen = 1h-2h sometimes\n", "'sometimes' is not always, never, or a period"),
        ("[work strange]\n", "no machinetype strange; there are: sites-own"),
        ("[hardware old]\nmachinetypes = strange\n", "no machinetype strange"),
        ("[hardware old]\npart = 0\n", "no hardware has a part above 0"),
        ("[machinetype idle]\n", "no machinetype has a target_share above 0"),
        ("nonsense\n", "before the first"),
    ],
)
def test_what_is_wrong_is_told(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.ini"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        read_scenario(path, site)


def test_every_option_is_in_the_document() -> None:
    document = (Path(__file__).parents[3] / "docs" / "scheduling.md").read_text()
    for section in (Space, Hardware, Work):
        for name in declared(section):
            assert f"| `{name}` |" in document


# The command

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
    assert {"atlas, %", "lhcb, %", "share error, %", "100", "0.5 h"} <= set(names)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polygon"))) == 3
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


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
