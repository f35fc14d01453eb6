"""Configurations with the values that Vac 3 (03.01, Python 2.7) gave them, recorded on a host with 16 processors.

configurations.jsonl has a case in each line: `files` by path below /etc, and `classic`, the values, or
`classic_refuses`, its error. Machinetypes have the classic's keys (`share` is target_share). What differs on
purpose is in docs/upgrade.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vac.config import ini
from vac.config.load import Configuration, ConfigurationError, load
from vac.host.facts import HostFacts

LINES = (Path(__file__).parent / "configurations.jsonl").read_text(encoding="utf-8").splitlines()
CASES = {case["name"]: case for case in map(json.loads, LINES)}
UPGRADE = (Path(__file__).parents[2] / "docs" / "upgrade.md").read_text()
REFUSED = {
    "space slash": "vac_space",
}
"""Configurations that the classic takes and Vac 4 refuses."""
TAKEN = (
    "Settings capital",
    "machinetype two words",
    "machinetype no name",
    "user_data_option bad name",
    "int with +/_/space",
)
"""Configurations that the classic refuses and Vac 4 takes, without the machinetype that is wrong."""
DIFFERENT: dict[str, dict[str, Any]] = {
    "booleans": {"draining": True, "fix_networking": False, "user_data_proxy": True, "legacy_proxy": True},
    "superslot 0, target neg": {"processors_per_superslot": 1, "overload_per_processor": 1.25},
    "site_name space": {"gocdb_sitename": None},
    "factories none": {"factories": ["wn01.example.com"]},
    "factory underscore / commas / dup": {
        "factories": ["wn01.example.com", "wn02.example.com", "wn_01.example.com"]
    },
    "comments in continuation": {
        "factories": [
            *("a.example.com", "b.example.com", "c.example.com", "d.example.com", "e.example.com"),
            "wn01.example.com",
        ]
    },
    "singularity no user": {},
    "user_data_proxy weird": {},
}
"""Values of Vac 4 where they differ."""
UNUSABLE = (
    "disk not int",
    "no user_data",
    "user_data_proxy weird",
    "heartbeat in subdir",
    "container_command with args",
    "singularity no user",
)
"""Cases in which no machine of type a can be made, and why is said, though the classic tried."""


@pytest.fixture
def host() -> HostFacts:
    return HostFacts("wn01.example.com", 16, lambda name: None, lambda name: False)


def configured(
    case: dict[str, Any], path: Path, host: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> Configuration:
    """Load the case's files as those of /etc."""
    places = tuple(path / place.relative_to("/") for place in ini.DEFAULT_PATHS)
    monkeypatch.setattr(ini, "DEFAULT_PATHS", places)
    for name, text in case["files"].items():
        file = path / "etc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode(case.get("encoding", "utf-8")))
    return load(None, host)


def plain(value: object) -> object:
    """Return a value as JSON has it; lists in alphabetical order, and nothing for what is empty."""
    if value in (None, "", (), []):
        return None
    if isinstance(value, (tuple, list)):
        return sorted(set(value))
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if "classic" in case and name not in REFUSED]
)
def test_values_are_those_of_vac_3(
    name: str, tmp_path: Path, host: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    configuration = configured(case, tmp_path, host, monkeypatch)
    own = DIFFERENT.get(name, {})
    for option, value in case["classic"]["settings"].items():
        if option != "machinefeatures_options":
            found = plain(getattr(configuration.settings, option))
            assert found == own.get(option, plain(value)), option
    assert set(configuration.machinetypes) == set(case["classic"]["machinetypes"])
    for title, values in case["classic"]["machinetypes"].items():
        machinetype = configuration.machinetypes[title]
        for option, value in values.items():
            prefix, _, key = option.rpartition("user_data_option_")
            if option == "machinetype_path":
                continue
            if key and not prefix and option.startswith("user_data_option_"):
                assert machinetype.user_data_options[key] == value, option
                continue
            found = plain(getattr(machinetype, "target_share" if option == "share" else option))
            if title not in configuration.unusable or option not in ("heartbeat_file", "container_command"):
                assert found == own.get(option, plain(value)), option
    assert ("a" in configuration.unusable) == (name in UNUSABLE)
    if name in UNUSABLE:
        assert configuration.errors or configuration.warnings


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if "classic_refuses" in case or name in REFUSED]
)
def test_what_vac_3_refused_is_an_error_with_its_place(
    name: str, tmp_path: Path, host: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "Settings capital":
        assert configured(CASES[name], tmp_path, host, monkeypatch).errors == ()
    elif name in TAKEN:
        problems = configured(CASES[name], tmp_path, host, monkeypatch).errors
        assert problems
        assert all(problem.file.endswith("vac.conf") and problem.section for problem in problems)
    else:
        with pytest.raises(ConfigurationError) as caught:
            configured(CASES[name], tmp_path, host, monkeypatch)
        assert all(problem.file.endswith("vac.conf") for problem in caught.value.problems)
        assert REFUSED.get(name, "") in str(caught.value)


def test_the_cases_named_here_exist() -> None:
    assert {*REFUSED, *TAKEN, *DIFFERENT, *UNUSABLE} <= set(CASES)


def test_what_differs_on_purpose_is_documented() -> None:
    options = {option for values in DIFFERENT.values() for option in values} | set(REFUSED.values())
    for words in (
        *options - {"legacy_proxy"},
        "[Settings]",
        "booleans",
        "heartbeat_file",
        "container_command",
    ):
        assert words in UPGRADE
