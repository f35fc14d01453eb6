"""Charts of the status page and of simulations as SVG, and the numbers behind them. Pure.

Machines' starts and ends tell how many processors each machinetype had at any time: nothing has to be sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 180, 54, 22
"""Size of a chart in its own units; space for the labels of the axes."""
_PALETTE = (
    *("#56b4e9", "#e69f00", "#2fb98c", "#f0e442", "#d98cb3", "#9db4ff", "#f28e75", "#b5cf6b"),
    *("#c7a5e8", "#bdbdbd"),
)
COLOURS = len(_PALETTE)
COLOUR_STYLES = "".join(f".c{n} {{ background: {one}; fill: {one}; }}\n" for n, one in enumerate(_PALETTE))
"""The classes `c0`, `c1`, … of areas, bars and legends."""


class Span(NamedTuple):
    """A machine's life; Unix seconds."""

    machinetype: str
    start: float
    end: float
    processors: int
    hs06: float = 0.0


def processors(spans: Iterable[Span], begin: float, end: float, steps: int) -> dict[str, list[float]]:
    """Return the mean number of processors by machinetype in each of so many equal parts of this time."""
    step, found = (end - begin) / steps, dict[str, list[float]]()
    for span in spans:
        first, last = max(span.start, begin), min(span.end, end)
        if last <= first:
            continue
        row = found.setdefault(span.machinetype, [0.0] * steps)
        for number in range(int((first - begin) // step), min(steps, int((last - begin) // step) + 1)):
            here = min(last, begin + (number + 1) * step) - max(first, begin + number * step)
            row[number] += max(0.0, here) / step * span.processors
    return found


def shares(spans: Iterable[Span], begin: float, end: float) -> dict[str, float]:
    """Return the share of each machinetype in the work (HS06 × seconds) of this time, from 0 to 1."""
    work: dict[str, float] = {}
    for span in spans:
        seconds = min(span.end, end) - max(span.start, begin)
        if seconds > 0:
            work[span.machinetype] = work.get(span.machinetype, 0.0) + seconds * span.hs06
    total = sum(work.values())
    return {name: one / total if total else 0.0 for name, one in work.items()}


def area_chart(
    body: Element,
    title: str,
    rows: Mapping[str, Sequence[float]],
    styles: Mapping[str, str],
    most: float,
    times: Sequence[str],
    wanted: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Element:
    """Append a chart of the rows, one above the other, up to most.

    styles: their classes; times: labels below; wanted: where they should end, a dotted line (class `wanted`).
    """
    svg = SubElement(body, "svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": title})
    wide, high = WIDTH - LEFT, HEIGHT - BOTTOM
    steps = max((len(row) for row in rows.values()), default=0)
    below = [0.0] * steps
    most = 2 * math.ceil(most / 2) or 2
    scale = high / most
    for name, row in rows.items():
        above = [low + value for low, value in zip(below, row)]
        edge = [*_steps(above, wide, high, scale), *reversed(_steps(below, wide, high, scale))]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
        area = SubElement(svg, "polygon", {"points": points, "class": styles[name]})
        SubElement(area, "title").text = name
        if name in wanted:
            edge = _steps([low + value for low, value in zip(below, wanted[name])], wide, high, scale)
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
            SubElement(svg, "polyline", {"points": points, "class": "wanted"})
        below = above
    for part in (0.0, 0.5, 1.0):
        label = _label(svg, LEFT - 4, high - part * high, f"{most * part:.0f}", "end")
        label.set("dy", f"{0.8 * part:g}em")
    for number, text in enumerate(times):
        x = LEFT + wide * number / max(1, len(times) - 1)
        anchor = "start" if number == 0 else "end" if number == len(times) - 1 else "middle"
        _label(svg, x, HEIGHT - 4, text, anchor)
    frame = {"x": str(LEFT), "y": "0", "width": str(wide), "height": str(high), "class": "frame"}
    SubElement(svg, "rect", frame)
    return svg


def _steps(values: Sequence[float], wide: int, high: int, scale: float) -> list[tuple[float, float]]:
    """Return the corners of a step line through these values."""
    step = wide / max(1, len(values))
    return [
        (LEFT + (number + side) * step, high - value * scale)
        for number, value in enumerate(values)
        for side in (0, 1)
    ]


def _label(svg: Element, x: float, y: float, text: str, anchor: str) -> Element:
    label = SubElement(svg, "text", {"x": f"{x:.0f}", "y": f"{y:.0f}", "text-anchor": anchor})
    label.text = text
    return label


def bar(parent: Element, value: float, target: float | None, style: str, words: str) -> None:
    """Append a bar of a share from 0 to 1, with a mark at its target."""
    svg = SubElement(
        parent, "svg", {"viewBox": "0 0 100 10", "class": "bar", "role": "img", "aria-label": words}
    )
    SubElement(svg, "rect", {"width": "100", "height": "10", "class": "frame"})
    SubElement(svg, "rect", {"width": f"{100 * value:.1f}", "height": "10", "class": style})
    if target is not None:
        place = f"{min(98.5, 100 * target):.1f}"
        SubElement(svg, "rect", {"x": place, "width": "1.5", "height": "10", "class": "mark"})
