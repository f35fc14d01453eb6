"""Results of a run: numbers that answer an administrator's questions, lines for people, and a picture.

The picture is SVG, which every browser shows and which needs no library.
"""

from __future__ import annotations

import dataclasses
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vac.charts import COLOUR_STYLES, COLOURS, HEIGHT, LEFT, WIDTH, area_chart
from vac.simulate.measure import ARRIVED, Measure, Return, Sample
from vac.simulate.scenario import Scenario

MOST_POINTS = 600
"""Most samples in the JSON and in the plot."""
WINDOW_HOURS = (1, 6, 24, 168)
"""Times over which processor time is compared with the shares."""


@dataclass(frozen=True)
class Errors:
    """Distances from the wanted shares, as parts of the space."""

    mean: float
    most: float


@dataclass(frozen=True)
class Probes:
    """Machines created of a type without work, per backoff period in the whole space."""

    machinetype: str
    start_seconds: float
    end_seconds: float
    periods: int
    median: float
    mean: float
    most: int


@dataclass(frozen=True)
class Result:
    """A run in numbers; parts are of the healthy factories' HS06."""

    name: str
    space: Mapping[str, Any]
    used: float
    """Mean part of the processors that machines occupied."""
    useful: float
    """The same of machines that found work."""
    lost: float
    """Mean part that was free though there was work, since the space was full (or since the beginning)."""
    fill_seconds: float | None
    """Until 99 % were in use; None: never."""
    way: Errors
    """Until then: distances from the shares of what was running yet."""
    full: Errors | None
    """Since then; where types come back, only while each has about its share or more. None: never."""
    error: Errors | None
    """All the time since then."""
    windows: Mapping[str, Errors]
    """By hours: distances of the processor time that types had in so long from their shares of all that ran.

    Times follow each other since the space was full, or since the beginning; a run of at least three quarters of the
    time counts as one."""
    waits: Mapping[str, float]
    """By type, the longest time in seconds with work and without a machine."""
    machines: int
    """Created in all."""
    overbooked: int
    """Processors in use beyond those that a factory has: always 0."""
    probes: Sequence[Probes]
    recoveries: Sequence[Return]
    samples: Sequence[Sample]

    def json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return dataclasses.asdict(self)


def summarize(scenario: Scenario, measure: Measure) -> Result:
    """Return the numbers of a run that has finished."""
    samples = measure.samples
    hours = samples[-1].seconds if samples[-1].seconds else 1.0
    filled = None if measure.filled_time is None else measure.filled_time - measure.beginning
    on_the_way = [one for one in samples if filled is None or one.seconds <= filled]
    since_full = [one for one in samples if filled is not None and one.seconds >= filled]
    settled = [one for one in since_full if _settled(one)] if measure.returns else since_full
    used = statistics.fmean(one.used for one in samples)
    idle, since = measure.idle_seconds - measure.idle_at_fill, filled or 0.0
    return Result(
        name=scenario.name,
        space=dataclasses.asdict(scenario.space),
        used=used,
        useful=used - measure.useless_seconds / (measure.processors * hours),
        lost=idle / (measure.processors * max(1.0, samples[-1].seconds - since)),
        fill_seconds=filled,
        way=_errors([one.filling_error for one in on_the_way]),
        full=_errors([one.error for one in settled]) if settled else None,
        error=_errors([one.error for one in since_full]) if since_full else None,
        windows=_windows(since_full or samples),
        waits=measure.waits,
        machines=sum(map(len, measure.creations.values())),
        overbooked=measure.overbooked,
        probes=tuple(_all_probes(scenario, measure)),
        recoveries=tuple(measure.returns),
        samples=samples[:: -(-len(samples) // MOST_POINTS)],
    )


def _windows(samples: Sequence[Sample]) -> dict[str, Errors]:
    found = {}
    for hours in WINDOW_HOURS:
        errors = []
        first = samples[0]
        for last in samples:
            long_enough = last.seconds - first.seconds >= hours * 3600
            if long_enough or (last is samples[-1] and last.seconds - first.seconds >= 0.75 * hours * 3600):
                errors.append(_time_error(first, last))
                first = last
        if errors:
            found[str(hours)] = _errors(errors)
    return found


def _time_error(first: Sample, last: Sample) -> float:
    """Return the largest distance of a type's processor time from its share of all between two samples."""
    had = {name: after - first.had[name] for name, after in last.had.items()}
    total = sum(had.values())
    return max(abs(had[name] - last.due[name] + first.due[name]) for name in had) / total if total else 0.0


def _settled(sample: Sample) -> bool:
    return all(sample.parts[name] >= ARRIVED * wanted for name, wanted in sample.wanted.items())


def _errors(errors: Sequence[float]) -> Errors:
    return Errors(statistics.fmean(errors), max(errors))


def _all_probes(scenario: Scenario, measure: Measure) -> Iterator[Probes]:
    end = measure.samples[-1].seconds
    for name, machinetype in scenario.machinetypes.items():
        if machinetype.target_share > 0:
            length = max(1, machinetype.backoff_seconds)
            edges = [edge for period in measure.queues[name].periods for edge in period]
            for start, stop in zip([0.0, *edges[1::2]], [*edges[::2], end]):
                times = [time - measure.beginning for time in measure.creations[name]]
                counts = _per_period(times, start, min(stop, end), length)
                if counts:
                    middle, mean = statistics.median(counts), statistics.fmean(counts)
                    yield Probes(name, start, min(stop, end), len(counts), middle, mean, max(counts))


def _per_period(times: Sequence[float], start: float, stop: float, length: float) -> list[int]:
    """Return how many of the times fall into each period of this length; a last shorter one is left out."""
    if start >= stop:
        return []
    counts = [0] * int((stop - start) / length)
    for time in times:
        place = (time - start) // length
        if 0 <= place < len(counts):
            counts[int(place)] += 1
    return counts


def lines(result: Result) -> Iterator[str]:
    """Yield the lines of the summary."""
    space = result.space
    yield (
        f"{result.name}: {space['factories']} factories, {space['hours']:g} h, policy {space['policy']}, "
        f"seed {space['seed']}, {result.machines} machines"
    )
    yield f"  time to fill           {duration(result.fill_seconds)}"
    yield f"  in use                 {percent(result.used)} of the healthy processors, mean"
    yield f"  in use with work       {percent(result.useful)}"
    since = "since then" if result.fill_seconds is not None else "all the time"
    yield f"  free despite work      {percent(result.lost)}, {since}"
    yield f"  share error, filling   {_errors_text(result.way)}"
    if result.full is not None:
        yield f"  share error, settled   {_errors_text(result.full)}"
    if result.error is not None:
        yield f"  share error, full      {_errors_text(result.error)}"
    for hours, errors in result.windows.items():
        window = f"{hours} h" if int(hours) <= 24 else f"{int(hours) // 24} d"
        yield f"  processor time, {window:<6} {_errors_text(errors)}"
    longest = ", ".join(f"{name} {duration(wait)}" for name, wait in result.waits.items() if wait)
    yield f"  longest wait           {longest or 'none'}"
    for probes in result.probes:
        yield (
            f"  {probes.machinetype} without work, {_hours(probes.start_seconds)} to {_hours(probes.end_seconds)}: "
            f"per backoff period {probes.median:g} created (median), {probes.mean:.2f} (mean), "
            f"{probes.most} (most)"
        )
    for back in result.recoveries:
        yield (
            f"  {back.machinetype} with work again at {_hours(back.start_seconds)}: "
            f"first found after {duration(back.found_seconds)}, 90 % of its share after "
            f"{duration(back.arrived_seconds)}, possible after {duration(back.possible_seconds)}"
        )


def _errors_text(errors: Errors) -> str:
    return f"{percent(errors.mean)} mean, {percent(errors.most)} at most"


def percent(part: float) -> str:
    """Return `12.3 %`, or `2.34 %` below ten percent."""
    return f"{100 * part:.2f} %" if part < 0.1 else f"{100 * part:.1f} %"


def duration(seconds: float | None) -> str:
    """Return `50 s`, `12.5 min`, `3.2 h`, or `never`."""
    if seconds is None:
        return "never"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h"


TOP, LEGEND_WIDTH, LINE = 30, 180, 18
"""Space for the title and, at the right, the legend; height of its lines."""
STYLE = """
text { font: 11px sans-serif; } polygon { stroke: black; stroke-width: .3; }
.paper { fill: white; } .frame { fill: none; stroke: #767676; }
.wanted { fill: none; stroke: black; stroke-dasharray: 2 4; }
"""


def draw(result: Result) -> bytes:
    """Return the picture: the types' parts in percent, with the wanted ones dotted; below, the share error."""
    samples, space, names = result.samples, result.space, list(result.samples[0].parts)
    parts = {name: [100 * one.parts[name] for one in samples] for name in names}
    wanted = {name: [100 * one.wanted.get(name, 0.0) for one in samples] for name in names}
    errors = [100 * one.error for one in samples]
    styles = {name: f"c{number % COLOURS}" for number, name in enumerate((*names, "share error"))}
    hours = [f"{samples[-1].seconds * part / 4 / 3600:.3g} h" for part in range(5)]
    size = {"width": str(WIDTH + LEGEND_WIDTH), "height": str(TOP + 2 * (HEIGHT + LINE))}
    box = f"0 0 {size['width']} {size['height']}"
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": box, **size})
    ET.SubElement(svg, "style").text = STYLE + COLOUR_STYLES
    ET.SubElement(svg, "rect", {"class": "paper", **size})
    title = f"{result.name}: {space['factories']} factories, policy {space['policy']}, seed {space['seed']}"
    _text(svg, LEFT, TOP - LINE / 2, title)
    shares = area_chart(svg, "shares", parts, styles, 100, hours, wanted)
    error = area_chart(svg, "share error", {"share error": errors}, styles, max(errors), hours)
    for chart, y in ((shares, TOP), (error, TOP + HEIGHT + LINE)):
        chart.attrib.update({"y": str(y), "width": str(WIDTH), "height": str(HEIGHT)})
    for number, (name, style) in enumerate(styles.items()):
        y = TOP + LINE * number if name in parts else TOP + HEIGHT + LINE
        ET.SubElement(
            svg, "rect", {"x": str(WIDTH + 10), "y": str(y), "width": "12", "height": "12", "class": style}
        )
        _text(svg, WIDTH + 28, y + 10, f"{name}, %")
    _text(svg, WIDTH + 10, TOP + LINE * len(names) + 10, "dotted: wanted")
    picture: bytes = ET.tostring(svg, encoding="utf-8", xml_declaration=True)
    return picture


def _text(svg: ET.Element, x: float, y: float, words: str) -> None:
    ET.SubElement(svg, "text", {"x": f"{x:g}", "y": f"{y:g}"}).text = words
