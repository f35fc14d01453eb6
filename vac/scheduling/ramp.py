"""How fast a factory fills: by doubling, so that 64 empty slots are full in under two minutes, and a machinetype
that kills its machines at once is seen after a handful.

A step creates at most as many machines as run here, and of one type at most as many as run of it, at least one
each; steps are at least STEP_SECONDS apart. A machine that ended is replaced at once, by whatever type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STEP_SECONDS = 15
REPLACE_SECONDS = 60
"""For so long the place of a machine that ended may be taken without waiting for a step."""
CYCLE_SECONDS = 60
"""The cycle of machines_per_cycle."""


@dataclass(frozen=True)
class RampState:
    """What has to be remembered from one decision to the next. A new one does for a start of the factory."""

    step_time: float | None = None
    """When the last step (or cycle, with machines_per_cycle) began."""
    machines: Mapping[str, int] = field(default_factory=dict)
    """Machines by type after the last decision, those just created included."""
    vacated: tuple[float, ...] = ()
    """When machines were found to have ended whose places have not been taken since."""
    created: int = 0
    """Machines created since step_time; used with machines_per_cycle."""


class Ramp:
    """How many machines one decision may create."""

    def __init__(
        self, state: RampState, machines: Mapping[str, int], machines_per_cycle: int, now: float
    ) -> None:
        """Machines are those that there are now, by type; machines_per_cycle above 0 replaces the doubling."""
        self._now = now
        self._machines = dict(machines)
        self._per_cycle = machines_per_cycle
        self._step_time = state.step_time
        self._created = state.created
        self._vacated = [time for time in state.vacated if now - REPLACE_SECONDS < time <= now]
        for name, before in state.machines.items():
            self._vacated.extend([now] * (before - machines.get(name, 0)))
        pause = CYCLE_SECONDS if machines_per_cycle else STEP_SECONDS
        due = state.step_time is None or not state.step_time <= now < state.step_time + pause
        self._growth = max(1, sum(machines.values())) if due else 0
        self._growth_of: dict[str, int] = {}
        self._due = due
        if due and machines_per_cycle:
            self._created = 0

    def left(self) -> int:
        """How many machines may be created now, of all types together."""
        if self._per_cycle:
            return max(0, self._per_cycle - self._created)
        return len(self._vacated) + self._growth

    def exhausted(self) -> bool:
        """Whether no machine of any type may be created now."""
        if self._per_cycle:
            return self._created >= self._per_cycle
        return not self._vacated and self._growth <= 0

    def allows(self, machinetype: str) -> bool:
        """Whether one more machine of this type may be created now."""
        if self._per_cycle or self._vacated:
            return not self.exhausted()
        return self._growth > 0 and self._growth_left(machinetype) > 0

    def take(self, machinetype: str) -> None:
        """Count one machine that is being created."""
        if self._per_cycle:
            if self._created == 0 or self._step_time is None:
                self._step_time = self._now
            self._created += 1
        elif self._vacated:
            self._vacated.pop(0)
        else:
            self._growth -= 1
            self._growth_of[machinetype] = self._growth_left(machinetype) - 1
            self._step_time = self._now
        self._machines[machinetype] = self._machines.get(machinetype, 0) + 1

    def next_time(self) -> float:
        """When the next step begins."""
        if self._step_time is None:
            return self._now
        return self._step_time + (CYCLE_SECONDS if self._per_cycle else STEP_SECONDS)

    def state(self) -> RampState:
        """What the next decision needs."""
        return RampState(self._step_time, self._machines, tuple(self._vacated), self._created)

    def _growth_left(self, machinetype: str) -> int:
        left = self._growth_of.get(machinetype)
        return max(1, self._machines.get(machinetype, 0)) if left is None else left
