"""A run's result as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from vac.simulate.result import Errors, Probes, Recovery, Result


def lines(result: Result) -> Iterator[str]:
    """The summary."""
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
    yield f"  share error, filling   {_errors(result.way)}"
    if result.full is not None:
        yield f"  share error, settled   {_errors(result.full)}"
    if result.error is not None:
        yield f"  share error, full      {_errors(result.error)}"
    yield f"  misplaced machines     {percent(result.misplaced)}"
    for probes in result.probes:
        yield "  " + _probes(probes)
    for recovery in result.recoveries:
        yield "  " + _recovery(recovery)


def _errors(errors: Errors) -> str:
    return f"{percent(errors.mean)} mean, {percent(errors.most)} at most"


def _probes(probes: Probes) -> str:
    return (
        f"{probes.machinetype} without work, {_hours(probes.start_seconds)} to {_hours(probes.end_seconds)}: "
        f"per backoff period {probes.median:g} created (median), {probes.mean:.2f} (mean), "
        f"{probes.most} (most)"
    )


def _recovery(recovery: Recovery) -> str:
    return (
        f"{recovery.machinetype} with work again at {_hours(recovery.start_seconds)}: "
        f"first found after {duration(recovery.found_seconds)}, 90 % of its share after "
        f"{duration(recovery.arrived_seconds)}, possible after {duration(recovery.possible_seconds)}"
    )


def percent(part: float) -> str:
    """`12.3 %`; below one percent with a digit more."""
    return f"{100 * part:.2f} %" if part < 0.1 else f"{100 * part:.1f} %"


def duration(seconds: float | None) -> str:
    """`50 s`, `12.5 min`, `3.2 h`, or `never`."""
    if seconds is None:
        return "never"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h"
