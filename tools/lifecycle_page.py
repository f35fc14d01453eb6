"""Writes docs/lifecycle.md from the table in vac/lifecycle: `python -m tools.lifecycle_page`."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from vac.lifecycle.phases import PHASES
from vac.lifecycle.recovery import RECOVERIES
from vac.lifecycle.table import TRANSITIONS, Ignored, Transition

PAGE = Path(__file__).parents[1] / "docs" / "lifecycle.md"
HEAD = """# A slot's life

This page is generated from `vac/lifecycle/table.py` by `python -m tools.lifecycle_page`; a test keeps it true.

A slot is always in one of these phases. Whatever may happen to it is a *stimulus*: an answer of the scheduler, the
engine or the disk, a request, time. The table says for each phase and stimulus which phase comes next and which
*effects* the factory carries out, in order. A listing of the engine counts only if it was asked for after the phase
began. Durations are measured with a monotonic clock.
"""


def page() -> str:
    """Return the page's text."""
    return "\n".join([HEAD, _phases(), _diagram(), _transitions(), _ignored(), _recovery()])


def _phases() -> str:
    rows = [f"| {phase.__name__} | {_first_line(phase)} |" for phase in PHASES]
    return "\n".join(["| phase | meaning |", "| --- | --- |", *rows, ""])


def _diagram() -> str:
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (phase, stimulus), row in TRANSITIONS.items():
        if isinstance(row, Transition) and row.next not in (None, phase):
            assert row.next is not None
            edges[phase.__name__, row.next.__name__].append(_words(stimulus.__name__))
    lines = [f"    {a} --> {b}: {', '.join(labels)}" for (a, b), labels in edges.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> Empty", *lines, "```", ""])


def _transitions() -> str:
    rows = ["## Transitions", "", "| phase | stimulus | next | effects |", "| --- | --- | --- | --- |"]
    for (phase, stimulus), row in TRANSITIONS.items():
        if isinstance(row, Transition):
            after = f" (after {row.after_seconds:.0f} s)" if row.after_seconds else ""
            following = row.next.__name__ if row.next else "the same"
            effects = "; ".join(effect.value for effect in row.effects) or "–"
            rows.append(
                f"| {phase.__name__} | {_words(stimulus.__name__)}{after} | {following} | {effects} |"
            )
    return "\n".join([*rows, ""])


def _ignored() -> str:
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (phase, stimulus), row in TRANSITIONS.items():
        if isinstance(row, Ignored):
            reasons[phase.__name__, row.reason].append(_words(stimulus.__name__))
    head = ["## Ignored, and why", "", "| phase | stimuli | reason |", "| --- | --- | --- |"]
    rows = [f"| {phase} | {', '.join(stimuli)} | {reason} |" for (phase, reason), stimuli in reasons.items()]
    return "\n".join([*head, *rows, ""])


def _recovery() -> str:
    rows = [
        "## After a start",
        "",
        "The factory looks at every machine's directory. Phases are rebuilt from what is there:",
        "",
        "| slot file | `started` | `finished` | what is done | phase |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (slot_file, started, finished), (recovery, phase) in RECOVERIES.items():
        marks = " | ".join("yes" if mark else "no" for mark in (started, finished))
        rows.append(
            f"| {slot_file.value} | {marks} | {recovery.value} | {phase.__name__ if phase else '–'} |"
        )
    return "\n".join([*rows, ""])


def _first_line(phase: type) -> str:
    return " ".join((phase.__doc__ or "").split())


def _words(name: str) -> str:
    """Return a class's name as words: `listed absent`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
