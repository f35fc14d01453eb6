"""How often things have happened since this process began, and how long they took: for metrics."""

from __future__ import annotations

from collections.abc import Collection

from vac.machines.status import Happening, Tally


class Tallies:
    """Counts by what happened, of which kind and with which outcome."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[Happening, str, str], tuple[int, float]] = {}

    def add(self, what: Happening, kind: str, outcome: str, seconds: float) -> None:
        """It has happened once more and took so long, by a clock that may have been set back meanwhile."""
        count, total = self._tallies.get((what, kind, outcome), (0, 0.0))
        self._tallies[what, kind, outcome] = count + 1, total + max(0.0, seconds)

    def tell(self, machinetypes: Collection[str]) -> tuple[Tally, ...]:
        """All counts, after forgetting ends of machinetypes other than these, which pipes may bring without number."""
        for key in [key for key in self._tallies if key[0] is Happening.END and key[1] not in machinetypes]:
            del self._tallies[key]
        return tuple(
            Tally(what.value, kind, outcome, count, seconds)
            for (what, kind, outcome), (count, seconds) in sorted(
                self._tallies.items(), key=lambda item: (item[0][0].value, *item[0][1:])
            )
        )
