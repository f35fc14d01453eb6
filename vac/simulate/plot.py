"""A run's result as a picture: SVG, which every browser shows and which needs no library."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from vac.simulate.report import percent
from vac.simulate.result import Result

WIDTH, LEFT, RIGHT = 900, 60, 190
SHARES_HEIGHT, ERRORS_HEIGHT, TOP, GAP, BOTTOM = 320, 130, 40, 50, 40
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
FONT = {"font-family": "sans-serif", "font-size": "12"}


@dataclass(frozen=True)
class Panel:
    """A rectangle with time to the right and a part of the space upwards."""

    top: float
    height: float
    seconds: float
    most: float

    def point(self, seconds: float, part: float) -> str:
        """Coordinates as SVG writes them."""
        return f"{self.x(seconds):.1f},{self.y(part):.1f}"

    def x(self, seconds: float) -> float:
        """To the right."""
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds

    def y(self, part: float) -> float:
        """Downwards."""
        return self.top + self.height * (1 - min(part, self.most) / self.most)


def draw(result: Result) -> bytes:
    """The picture: what each type has, the wanted shares dashed; below, the share error."""
    height = TOP + SHARES_HEIGHT + GAP + ERRORS_HEIGHT + BOTTOM
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": str(WIDTH),
            "height": str(height),
            "viewBox": f"0 0 {WIDTH} {height}",
            **FONT,
        },
    )
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "white"})
    space = result.space
    title = f"{result.name}: {space['factories']} factories, policy {space['policy']}, seed {space['seed']}"
    _text(svg, LEFT, TOP - 15, title)
    seconds = max(1.0, result.samples[-1].seconds)
    shares = Panel(TOP, SHARES_HEIGHT, seconds, 1.0)
    _axes(svg, shares, [0, 0.25, 0.5, 0.75, 1.0])
    _shares(svg, shares, result)
    highest = max(0.01, *(one.error for one in result.samples))
    _text(svg, WIDTH - RIGHT + 10, TOP + SHARES_HEIGHT - 4, "dotted: wanted")
    errors = Panel(TOP + SHARES_HEIGHT + GAP, ERRORS_HEIGHT, seconds, highest)
    _axes(svg, errors, [0, highest / 2, highest])
    _line(svg, errors, [(one.seconds, one.error) for one in result.samples], COLOURS[1])
    _text(svg, WIDTH - RIGHT + 10, errors.top + 12, "share error")
    picture: bytes = ET.tostring(svg, encoding="utf-8", xml_declaration=True)
    return picture


def _shares(svg: ET.Element, panel: Panel, result: Result) -> None:
    floor = [0.0] * len(result.samples)
    for number, name in enumerate(result.samples[0].parts):
        colour = COLOURS[number % len(COLOURS)]
        ceiling = [low + one.parts[name] for low, one in zip(floor, result.samples)]
        times = [one.seconds for one in result.samples]
        outline = [panel.point(*at) for at in zip(times, ceiling)]
        outline += reversed([panel.point(*at) for at in zip(times, floor)])
        ET.SubElement(svg, "polygon", {"points": " ".join(outline), "fill": colour, "fill-opacity": "0.7"})
        wanted = [
            (one.seconds, low + one.wanted[name])
            for low, one in zip(floor, result.samples)
            if name in one.wanted
        ]
        _line(svg, panel, wanted, "black", "2 4")
        y = panel.top + 12 + 20 * number
        x = WIDTH - RIGHT + 10
        box = {"x": str(x), "y": str(y - 10), "width": "12", "height": "12", "fill": colour}
        ET.SubElement(svg, "rect", box)
        _text(svg, x + 18, y, name)
        floor = ceiling


def _line(
    svg: ET.Element, panel: Panel, points: Sequence[tuple[float, float]], colour: str, dashes: str = "none"
) -> None:
    ET.SubElement(
        svg,
        "polyline",
        {
            "points": " ".join(panel.point(*at) for at in points),
            "fill": "none",
            "stroke": colour,
            "stroke-dasharray": dashes,
        },
    )


def _axes(svg: ET.Element, panel: Panel, parts: Sequence[float]) -> None:
    for part in parts:
        y = f"{panel.y(part):.1f}"
        ends = {"x1": str(LEFT), "x2": str(WIDTH - RIGHT), "y1": y, "y2": y, "stroke": "#cccccc"}
        ET.SubElement(svg, "line", ends)
        _text(svg, LEFT - 6, panel.y(part) + 4, percent(part), "end")
    hours = panel.seconds / 3600
    step = 10 ** math.floor(math.log10(hours / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if hours / (step * factor) <= 8)
    for number in range(int(hours / step) + 1):
        _text(
            svg,
            panel.x(number * step * 3600),
            panel.top + panel.height + 18,
            f"{number * step:g} h",
            "middle",
        )


def _text(svg: ET.Element, x: float, y: float, words: str, anchor: str = "start") -> None:
    ET.SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}).text = words
