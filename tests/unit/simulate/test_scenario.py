"""Scenario files, and the words for times in them."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest

from vac.config.load import ConfigurationError
from vac.config.machinetype import Machinetype
from vac.config.options import declared
from vac.config.settings import Settings
from vac.simulate.reading import read_scenario
from vac.simulate.scenario import Hardware, Space, Work, periods, seconds, spread

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
