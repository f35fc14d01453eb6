"""Writes docs/lifecycle.md from the table in vac/lifecycle: `python -m tools.lifecycle_page`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vac.lifecycle.phases import PHASES, RECOVERIES, SetAside
from vac.lifecycle.table import TRANSITIONS, Ignored, Transition

PAGE = Path(__file__).parents[1] / "docs" / "lifecycle.md"
HEAD = """# A slot's life

`python -m tools.lifecycle_page` makes this page from `vac/lifecycle` (phases, table). A test keeps it true.

A slot is always in one of these phases. Whatever may happen to it is a *stimulus*: an answer of the scheduler, the
engine or the disk, a request, time. The table says for each phase and stimulus which phase comes next and which
*effects* the factory carries out, in order. Durations are measured with a monotonic clock.

A listing of the engine counts only if it was asked for after the phase began. While `state_dir` or `factory_name` is in
doubt, a machine's absence proves nothing. In phase Uncertain, a machine that is absent or half made, but has left
something in its joboutputs, counts as *listed ended*.
"""
AFTER_THE_TABLE = """\
* If slot file or directory can't be read, the slot is SetAside. Each cycle reads them again, by the same table.
* If the slot file's directory is missing, the slot is Empty.
* Of several machines without a slot file, the newest that has started and not finished gets the slot; for the others,
  the slot file then names another.
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
    return "\n".join(["```mermaid", "stateDiagram-v2", *_starts(), *lines, "```", ""])


def _starts() -> Iterator[str]:
    """Yield the edges that load_slots() of machines/slots.py makes, when the factory starts and in each cycle."""
    rebuilt = [phase for phase in PHASES if any(phase is known for _, known in RECOVERIES.values())]
    for phase in (*rebuilt, SetAside):
        yield f"    [*] --> {phase.__name__}: restart"
    for phase in rebuilt:
        yield f"    {SetAside.__name__} --> {phase.__name__}: files can be read"


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
        "What was left in `tmp/` is discarded. Phases are rebuilt from every machine's directory:",
        "",
        "| slot file | `started` | `finished` | what is done | phase |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (slot_file, started, finished), (recovery, phase) in RECOVERIES.items():
        marks = " | ".join("yes" if mark else "no" for mark in (started, finished))
        rows.append(
            f"| {slot_file.value} | {marks} | {recovery.value} | {phase.__name__ if phase else '–'} |"
        )
    return "\n".join([*rows, "", AFTER_THE_TABLE])


def _first_line(phase: type) -> str:
    return " ".join((phase.__doc__ or "").split())


def _words(name: str) -> str:
    """Return a class's name as words: `listed absent`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
