"""The speed at which a factory fills with machines of types that may turn out to kill them.

A type that is known to be good needs no steps. Of the others a step creates at most as many machines as run here, and
of one type as many as run of it, at least one; steps are at least STEP_SECONDS apart. 64 empty slots are full in a
minute and a half, and a machinetype that kills its machines at once is seen after a handful, while known types go on. A
machine that ended is replaced at once, by whatever type.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

STEP_SECONDS = 15
REPLACE_SECONDS = 60
"""Time within which the place of a machine that ended may be taken without waiting for a step."""
PACE_SECONDS = 60
"""The cycle of machines_per_cycle."""


@dataclass(frozen=True)
class RampState:
    """Memory from one decision to the next; a new one does for a start of the factory."""

    step_time: float | None = None
    """When the last step (or cycle, with machines_per_cycle) began."""
    machines: Mapping[str, int] = field(default_factory=dict)
    """Machines by type after the last decision, those just created included."""
    freed_times: tuple[float, ...] = ()
    """When machines were found to have ended whose places have not been taken since."""
    created: int = 0
    """Machines created since step_time; used with machines_per_cycle."""


class Ramp:
    """The number of machines that one decision may create."""

    def __init__(
        self,
        state: RampState,
        machines: Mapping[str, int],
        known: Collection[str],
        machines_per_cycle: int,
        now: float,
    ) -> None:
        """Take the machines that there are now and the types known to be good.

        machines_per_cycle above 0 replaces the steps.
        """
        self._now = now
        self._known = known
        self._machines = dict(machines)
        self._per_cycle = machines_per_cycle
        self._freed_times = [time for time in state.freed_times if now - REPLACE_SECONDS < time <= now]
        for name, before in state.machines.items():
            self._freed_times.extend([now] * (before - machines.get(name, 0)))
        self._pause = PACE_SECONDS if machines_per_cycle else STEP_SECONDS
        self._step_time = state.step_time
        self._due = state.step_time is None or not state.step_time <= now < state.step_time + self._pause
        self._growth = max(1, sum(machines.values())) if self._due else 0
        self._growth_of: dict[str, int] = {}
        self._created = 0 if self._due else state.created

    def left(self, machinetypes: Collection[str]) -> float:
        """Return how many machines of these types together may be created now."""
        if self._per_cycle:
            return max(0, self._per_cycle - self._created)
        if any(name in self._known for name in machinetypes):
            return math.inf
        return len(self._freed_times) + self._growth

    def allows(self, machinetype: str) -> bool:
        """Return True if one more machine of this type may be created now."""
        if self._per_cycle or self._freed_times or machinetype in self._known:
            return self.left((machinetype,)) > 0
        return self._growth > 0 and self._growth_left(machinetype) > 0

    def take(self, machinetype: str) -> None:
        """Count one machine that is being created."""
        if self._per_cycle:
            if self._due and not self._created:
                self._step_time = self._now
            self._created += 1
        elif self._freed_times:
            self._freed_times.pop(0)
        elif machinetype not in self._known:
            self._growth -= 1
            self._growth_of[machinetype] = self._growth_left(machinetype) - 1
            self._step_time = self._now
        self._machines[machinetype] = self._machines.get(machinetype, 0) + 1

    def next_time(self) -> float:
        """Return when the next step begins."""
        return self._now if self._step_time is None else self._step_time + self._pause

    def state(self) -> RampState:
        """Return the memory for the next decision."""
        return RampState(self._step_time, self._machines, tuple(self._freed_times), self._created)

    def _growth_left(self, machinetype: str) -> int:
        return self._growth_of.get(machinetype, max(1, self._machines.get(machinetype, 0)))
