"""What a run has shown, in numbers that answer an administrator's questions."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vac.simulate.measure import ARRIVED, Measure, Return, Sample
from vac.simulate.scenario import Scenario

MOST_POINTS = 600
"""Samples in the JSON and in the plot."""


@dataclass(frozen=True)
class Errors:
    """Distances from the wanted shares, as parts of the space."""

    mean: float
    most: float


@dataclass(frozen=True)
class Probes:
    """What was created of a machinetype while it had no work, per backoff period in the whole space."""

    machinetype: str
    start_seconds: float
    end_seconds: float
    periods: int
    median: float
    mean: float
    most: int


@dataclass(frozen=True)
class Recovery:
    """How a machinetype came back; times in seconds after its work did, None: not before the end."""

    machinetype: str
    start_seconds: float
    found_seconds: float | None
    """Until the first machine found some."""
    possible_seconds: float | None
    """Until enough had become free for 90 % of its share."""
    arrived_seconds: float | None
    """Until it had that."""


@dataclass(frozen=True)
class Result:
    """A run in numbers; parts are of what the healthy factories have."""

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
    misplaced: float
    """Part of the machines that were created of a type above its share while another lacked some of its."""
    machines: int
    """Created in all."""
    overbooked: int
    """Processors in use beyond those that a factory has: always 0."""
    probes: Sequence[Probes]
    recoveries: Sequence[Recovery]
    samples: Sequence[Sample]

    def json(self) -> dict[str, Any]:
        """For json.dump."""
        return dataclasses.asdict(self)


def from_json(data: Mapping[str, Any]) -> Result:
    """What Result.json() has made."""

    def errors(of: Mapping[str, float] | None) -> Errors | None:
        return None if of is None else Errors(**of)

    way = errors(data["way"])
    assert way is not None
    lists = {
        "probes": [Probes(**one) for one in data["probes"]],
        "recoveries": [Recovery(**one) for one in data["recoveries"]],
        "samples": [Sample(**one) for one in data["samples"]],
    }
    return Result(
        **{**data, **lists, "way": way, "full": errors(data["full"]), "error": errors(data["error"])}
    )


def summarize(scenario: Scenario, measure: Measure) -> Result:
    """The numbers of a run that has finished."""
    samples = measure.samples
    hours = samples[-1].seconds if samples[-1].seconds else 1.0
    filled = None if measure.filled_time is None else measure.filled_time - measure.beginning
    on_the_way = [one for one in samples if filled is None or one.seconds <= filled]
    since_full = [one for one in samples if filled is not None and one.seconds >= filled]
    settled = [one for one in since_full if _settled(one)] if measure.returns else since_full
    used = statistics.fmean(one.used for one in samples)
    idle, since = (
        (measure.idle_seconds, 0.0)
        if filled is None
        else (measure.idle_seconds - measure.idle_at_fill, filled)
    )
    created = sum(map(len, measure.creations.values()))
    return Result(
        name=scenario.name,
        space=dataclasses.asdict(scenario.space),
        used=used,
        useful=used - measure.useless_seconds / (measure.processors * hours),
        lost=idle / (measure.processors * max(1.0, samples[-1].seconds - since)),
        fill_seconds=filled,
        way=_errors([one.way_error for one in on_the_way]),
        full=_errors([one.error for one in settled]) if settled else None,
        error=_errors([one.error for one in since_full]) if since_full else None,
        misplaced=measure.misplaced / created if created else 0.0,
        machines=created,
        overbooked=measure.overbooked,
        probes=tuple(_all_probes(scenario, measure)),
        recoveries=tuple(_recovery(one, measure.beginning) for one in measure.returns),
        samples=samples[:: -(-len(samples) // MOST_POINTS)],
    )


def _settled(sample: Sample) -> bool:
    return all(sample.parts[name] >= ARRIVED * wanted for name, wanted in sample.wanted.items())


def _errors(errors: Sequence[float]) -> Errors:
    return Errors(statistics.fmean(errors), max(errors))


def _recovery(one: Return, beginning: float) -> Recovery:
    def after(time: float | None) -> float | None:
        return None if time is None else time - one.time

    return Recovery(
        one.machinetype,
        one.time - beginning,
        after(one.found_time),
        after(one.possible_time),
        after(one.arrived_time),
    )


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
    """How many of the times fall into each period of this length; a last shorter one is left out."""
    if start >= stop:
        return []
    counts = [0] * int((stop - start) / length)
    for time in times:
        place = (time - start) // length
        if 0 <= place < len(counts):
            counts[int(place)] += 1
    return counts
