"""The rules for running machines, asked when time may have changed the answer."""

from __future__ import annotations

from vac.factory.ending import Ending
from vac.factory.floor import Floor


class Rules:
    """Ends machines that are late, stuck, idle or too large."""

    def __init__(self, floor: Floor, ending: Ending) -> None:
        self.floor = floor
        self.ending = ending
        self.next_time: float | None = None

    def check(self, now: float) -> None:
        """Ask the rules for every machine that is seen to run, if it is time to."""
