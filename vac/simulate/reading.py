"""Reads scenario files: INI like the configuration, with [space], [hardware NAME], [work MACHINETYPE] and,
where the site's own are not wanted, [settings] and [machinetype NAME] with the configuration's options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vac.config.files import COMMON, Report, Section, Value, read
from vac.config.load import ConfigurationError
from vac.config.machinetype import Machinetype
from vac.config.options import declared
from vac.config.sections import (
    MACHINETYPE,
    SETTINGS,
    Schema,
    build_machinetype,
    nearest,
    parse_section,
)
from vac.config.settings import Settings
from vac.simulate.scenario import Hardware, Scenario, Space, Work

SPACE = Schema("space", declared(Space), (), {})
HARDWARE = Schema("hardware NAME", declared(Hardware), (), {})
WORK = Schema("work MACHINETYPE", declared(Work), (), {})
_SCHEMAS = {
    "space": SPACE,
    "settings": SETTINGS,
    "hardware": HARDWARE,
    "work": WORK,
    "machinetype": MACHINETYPE,
}
_ALONE = ("space", "settings")


Site = tuple[Settings, Mapping[str, Machinetype]]


def read_scenario(path: Path, site: Callable[[], Site]) -> Scenario:
    """The scenario in this file; site gives the site's own configuration, for a file without machinetypes.

    Raises ConfigurationError with all that is wrong; options that nothing knows are wrong here.
    """
    contents = read([path])
    report = Report([*contents.problems, *contents.warnings])
    common = contents.sections[COMMON].values if COMMON in contents.sections else {}
    own = any(title.startswith("machinetype ") for title in contents.sections)
    settings, machinetypes = (Settings(), {}) if own or report.errors else site()
    parsed: dict[str, dict[str, Any]] = {kind: {} for kind in _SCHEMAS}
    for title, section in contents.sections.items():
        kind, _, name = title.partition(" ")
        if title != COMMON and _known(title, kind, name, section, report):
            values = _values(title, kind, section, common, report)
            parsed[kind][name] = (
                build_machinetype(name, values, settings) if kind == "machinetype" else values
            )
    scenario = Scenario(
        space=Space(**_of(parsed["space"])),
        settings=replace(settings, **_of(parsed["settings"])),
        machinetypes=parsed["machinetype"] if own else machinetypes,
        works={name: Work(**values.values) for name, values in parsed["work"].items()},
        hardware={name: Hardware(**values.values) for name, values in parsed["hardware"].items()},
        name=path.stem,
    )
    _check(scenario, str(path), report)
    if report.errors or report.warnings:
        raise ConfigurationError([*report.errors, *report.warnings])
    return scenario


def _of(sections: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for parsed in sections.values() for key, value in parsed.values.items()}


def _known(title: str, kind: str, name: str, section: Section, report: Report) -> bool:
    if kind not in _SCHEMAS:
        report.error(section.file, title, "", f"a scenario has no such section{nearest(kind, _SCHEMAS)}")
    elif (kind in _ALONE) == bool(name):
        report.error(section.file, title, "", f"should be [{_SCHEMAS[kind].title}]")
    else:
        return True
    return False


def _values(title: str, kind: str, section: Section, common: Mapping[str, Value], report: Report) -> Any:
    return parse_section(title, _SCHEMAS[kind], section, common, report, partial=True)


def _check(scenario: Scenario, file: str, report: Report) -> None:
    """What concerns several sections."""
    types = scenario.machinetypes
    known = f"; there are: {' '.join(types) or 'none'}"
    if not any(one.target_share > 0 for one in types.values()):
        report.error(file, "machinetype NAME", "target_share", "no machinetype has a target_share above 0")
    for name in scenario.works:
        if name not in types:
            report.error(file, f"work {name}", "", f"there is no machinetype {name}{known}")
    for name, hardware in scenario.hardware.items():
        for machinetype in hardware.machinetypes:
            if machinetype not in types:
                text = f"there is no machinetype {machinetype}{known}"
                report.error(file, f"hardware {name}", "machinetypes", text)
    if scenario.hardware and not any(one.part > 0 for one in scenario.hardware.values()):
        report.error(file, "hardware NAME", "part", "no hardware has a part above 0")
