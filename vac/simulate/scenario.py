"""Scenarios: the made-up space, its work and its troubles, and the files that describe them.

A scenario file is INI like the configuration, with [space], [hardware NAME], [work MACHINETYPE] and, where the site's
own are not wanted, [settings] and [machinetype NAME] with the configuration's options.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vac.config.ini import COMMON, Report, read
from vac.config.load import ConfigurationError
from vac.config.machinetype import Machinetype
from vac.config.options import Kind, declared, matching, option
from vac.config.sections import MACHINETYPE, SETTINGS, Schema, build_machinetype, nearest, parse_section
from vac.config.settings import Settings

HOUR = 3600.0
POLICIES = ("deficit", "classic")
MOST_FACTORIES = 10000
_TIME = r"\d+(\.\d+)?[smhd]?"
_SPREAD = rf"{_TIME}|{_TIME}-{_TIME}|{_TIME}~{_TIME}|exp:{_TIME}"
SPREAD_DOC = "a time such as 90s or 12h, a range 6h-18h, mean~deviation such as 12h~2h, or exp:MEAN"
_PERIOD = rf"always|never|{_TIME}-({_TIME})?"
_UNITS = {"s": 1.0, "m": 60.0, "h": HOUR, "d": 24 * HOUR}
LEAST_SECONDS = 0.1
"""Least time that a normal distribution yields."""


def _span(default: str, doc: str) -> Any:
    """Declare an option that spread() reads."""
    return option(matching(_SPREAD, SPREAD_DOC), default, doc)


@dataclass(frozen=True)
class Space:
    """[space] of a scenario file."""

    factories: int = option(Kind.INTEGER, 100, "how many factories there are", least=1, most=MOST_FACTORIES)
    hours: float = option(Kind.NUMBER, 48.0, "how much virtual time passes", least=0.01, most=10000)
    seed: int = option(Kind.INTEGER, 1, "makes a run repeatable; another one is another run", least=0)
    policy: str = option(
        Kind.CHOICE,
        "deficit",
        "what the factories decide by; classic ones also create one machine a cycle",
        choices=POLICIES,
    )
    start: str = _span("0s-60s", "when each factory starts")
    loss: float = option(
        Kind.NUMBER, 0.0, "part of datagrams that get lost, each way", least=0, most=0.9, sample="0.05"
    )
    classic: float = option(Kind.NUMBER, 0.0, "part of the factories that are classic ones", least=0, most=1)
    broken: float = option(
        Kind.NUMBER, 0.0, "part of the factories on which every machine fails", least=0, most=1, sample="0.02"
    )
    broken_seconds: str = _span("20s", "after which time it fails there")
    crashes_per_day: float = option(
        Kind.NUMBER, 0.0, "how often each factory's daemon dies, on average", least=0, most=1000
    )
    crash_seconds: str = _span("10m", "after which time it is back")
    crash_kills: bool = option(Kind.BOOLEAN, False, "its machines die with it, as when the host goes down")
    sample_seconds: float = option(
        Kind.NUMBER, 10.0, "how often shares are compared with the wanted ones", least=1, most=3600
    )


@dataclass(frozen=True)
class Hardware:
    """[hardware NAME] of a scenario file: one kind of nodes."""

    part: float = option(Kind.NUMBER, 1.0, "its part of the factories, relative to the other kinds", least=0)
    processors: int = option(Kind.INTEGER, 64, "processors of a node", least=1, most=10000)
    hs06_per_processor: float = option(Kind.NUMBER, 10.0, "HS06 of one processor", least=0.001)
    machinetypes: tuple[str, ...] = option(
        Kind.LIST, (), "machinetypes that these nodes have configured", default_doc="all", sample="atlas lhcb"
    )


@dataclass(frozen=True)
class Work:
    """[work MACHINETYPE] of a scenario file: what its machines find to do, and how long they live."""

    when: tuple[str, ...] = option(
        matching(_PERIOD, "always, never, or a period such as 12h-24h or 36h-", many=True),
        ("always",),
        "periods with work, from the beginning",
        sample="0h-12h 24h-",
    )
    probability: float = option(
        Kind.NUMBER, 1.0, "how probable it is that a machine finds work when there is some", least=0, most=1
    )
    jobs: int = option(
        Kind.INTEGER, 0, "how many machines find work, all in all; 0: there's no end", least=0, sample="5000"
    )
    lifetime: str = _span("6h-18h", "how long a machine with work lives")
    startup: str = _span("5s-20s", "time from a decision to a running machine")
    no_work: str = _span("60s-120s", "how long one without lives")
    no_work_message: str = option(
        Kind.TEXT, "300 Nothing to do", "its shutdown message; none: it leaves none"
    )


@dataclass(frozen=True)
class Scenario:
    """Everything that a run depends on."""

    space: Space
    settings: Settings
    """Settings that all factories have in common."""
    machinetypes: Mapping[str, Machinetype]
    works: Mapping[str, Work] = field(default_factory=dict)
    """By machinetype; the default one stands in."""
    hardware: Mapping[str, Hardware] = field(default_factory=dict)
    """By name; the default one stands in if there is none."""
    name: str = ""
    """Its origin, for people."""

    def work(self, machinetype: str) -> Work:
        """Return the work of this machinetype."""
        return self.works.get(machinetype, _DEFAULT_WORK)

    def changed(self, **options: object) -> Scenario:
        """Return the same with other options of [space]; those that are None stay."""
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, space=replace(self.space, **given))  # type: ignore[arg-type]


_DEFAULT_WORK = Work()


def seconds(text: str) -> float:
    """Return a time such as `90`, `90s`, `15m`, `12h` or `2d` in seconds."""
    unit = _UNITS.get(text[-1])
    return float(text) if unit is None else float(text[:-1]) * unit


def spread(text: str) -> Callable[[random.Random], float]:
    """Return a function that draws times in seconds as the text says (SPREAD_DOC)."""
    if text.startswith("exp:"):
        mean = seconds(text[4:])
        return lambda rng: rng.expovariate(1 / mean) if mean else 0.0
    if "~" in text:
        middle, deviation = map(seconds, text.split("~"))
        return lambda rng: max(LEAST_SECONDS, rng.gauss(middle, deviation))
    if "-" in text:
        least, most = map(seconds, text.split("-"))
        return lambda rng: rng.uniform(least, most)
    value = seconds(text)
    return lambda rng: value


def periods(when: tuple[str, ...]) -> list[tuple[float, float]]:
    """Return the periods with work, in seconds from the beginning, earliest first, none touching the next."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(_period(one) for one in when if one != "never"):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif start < end:
            merged.append((start, end))
    return merged


def _period(text: str) -> tuple[float, float]:
    if text == "always":
        return 0.0, float("inf")
    start, end = text.split("-")
    return seconds(start), seconds(end) if end else float("inf")


class Queue:
    """The work for machines of one type over time."""

    def __init__(self, work: Work, beginning: float) -> None:
        self.work = work
        self.periods = periods(work.when)
        self._beginning = beginning
        self._left = work.jobs or None
        self.lifetime = spread(work.lifetime)
        self.startup = spread(work.startup)
        self.no_work = spread(work.no_work)
        self.no_work_message = None if work.no_work_message == "none" else work.no_work_message

    def has_work(self, now: float) -> bool:
        """Return True if a machine that asks now may find some."""
        passed = now - self._beginning
        return self._left != 0 and any(start <= passed < end for start, end in self.periods)

    def ask(self, now: float, rng: random.Random) -> bool:
        """Let a machine ask for work; return True if it has found some."""
        found = self.has_work(now) and rng.random() < self.work.probability
        if found and self._left is not None:
            self._left -= 1
        return found


_SCHEMAS = {
    "space": Schema("space", declared(Space), (), {}),
    "settings": SETTINGS,
    "hardware": Schema("hardware NAME", declared(Hardware), (), {}),
    "work": Schema("work MACHINETYPE", declared(Work), (), {}),
    "machinetype": MACHINETYPE,
}
_ALONE = ("space", "settings")


Site = tuple[Settings, Mapping[str, Machinetype]]


def read_scenario(path: Path, site: Callable[[], Site]) -> Scenario:
    """Return the scenario in this file; site gives the site's own configuration, for a file without machinetypes.

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
        if title == COMMON:
            continue
        if kind not in _SCHEMAS:
            hint = nearest(kind, _SCHEMAS)
            report.error(section.file, title, "", f"a scenario has no such section{hint}")
        elif (kind in _ALONE) == bool(name):
            report.error(section.file, title, "", f"should be [{_SCHEMAS[kind].title}]")
        else:
            values = parse_section(title, _SCHEMAS[kind], section, common, report, partial=True)
            machinetype = kind == "machinetype"
            parsed[kind][name] = build_machinetype(name, values, settings) if machinetype else values.values
    scenario = Scenario(
        space=Space(**parsed["space"].get("", {})),
        settings=replace(settings, **parsed["settings"].get("", {})),
        machinetypes=parsed["machinetype"] if own else machinetypes,
        works={name: Work(**values) for name, values in parsed["work"].items()},
        hardware={name: Hardware(**values) for name, values in parsed["hardware"].items()},
        name=path.stem,
    )
    _check(scenario, str(path), report)
    if report.errors or report.warnings:
        raise ConfigurationError([*report.errors, *report.warnings])
    return scenario


def _check(scenario: Scenario, file: str, report: Report) -> None:
    """Check what concerns several sections."""
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
