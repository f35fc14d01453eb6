"""The factory's slots, and what is under way in each of them.

What must survive is in the machine's directory (vac.machines); what is here is rebuilt by looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vac.config.machinetype import Machinetype
from vac.drivers.base import EngineState, Usage
from vac.machines.machine import Machine
from vac.scheduling.model import Create


@dataclass(frozen=True)
class Begun:
    """A machine that was decided on and of which nothing is on disk yet: its context is being made."""

    order: Create
    uuid: str
    machinetype: Machinetype
    """As it was then."""
    time: float


@dataclass
class Slot:
    """One slot: its present or last machine, and what this process has seen and begun."""

    name: str
    """Host name of the machine in it."""
    machine: Machine | None = None
    known_since: float = 0.0
    """A listing that was asked for before may not know the machine yet, or show what is gone since."""
    begun: Begun | None = None
    """What is about to take its place."""
    begun_time: float | None = None
    """When its machine was decided on, if this process did that."""
    creating: bool = False
    """The engine has been told to make it and hasn't answered."""
    stopping: bool = False
    """The engine has been told to end it, and hasn't been seen to fail."""
    stopped_time: float | None = None
    """When the engine said that it had ended it."""
    stop_failed_time: float | None = None
    """When the engine last said that it couldn't end it."""
    removing_since: float | None = None
    """Since when the engine has been asked to release what is left of the finished machine."""
    seen_alive_time: float | None = None
    """When this process last saw it run."""
    engine_state: EngineState | None = None
    usage: Usage = field(default_factory=Usage)
    disk_used_bytes: int | None = None
    measured_time: float | None = None
    """When its disk use was last asked for."""
    measure_seconds: float = 300.0
    """After which it is asked for again; what takes long is measured less often."""
    busy_time: float | None = None
    """When its CPU use was last seen to be enough."""
    zombie: bool = False
    """What is left of the machine can't be removed."""
    stranger_since: float | None = None
    """Since when an engine has shown another machine of this name, which is being removed."""

    @property
    def occupied(self) -> bool:
        """Whether a machine is in it that hasn't ended, or of which something is left."""
        if self.machine is None:
            return False
        return not self.machine.finished or self.removing_since is not None or self.zombie

    @property
    def running(self) -> bool:
        """Whether its machine has started and not finished."""
        return bool(self.machine and self.machine.started_time is not None and not self.machine.finished)

    @property
    def free(self) -> bool:
        """Whether a machine can be made in it."""
        return not self.occupied and self.begun is None and self.stranger_since is None

    def clear(self, machine: Machine | None) -> None:
        """Put another machine in it, or none: everything that this process knew is about the one before."""
        self.__init__(self.name, machine)  # type: ignore[misc]


class Slots:
    """All slots by name, in order."""

    def __init__(self, names: Iterable[str], machines: Mapping[str, Machine]) -> None:
        self._slots = {name: Slot(name, machines.get(name)) for name in names}
        self._wanted = frozenset(self._slots)
        for name, machine in machines.items():
            if name not in self._slots and not machine.finished:
                self._slots[name] = Slot(name, machine)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, name: str) -> Slot | None:
        """The slot of that name."""
        return self._slots.get(name)

    def lowest_free(self) -> Slot | None:
        """Where the next machine goes."""
        free = (slot for slot in self if slot.free)
        return next((slot for slot in free if slot.name in self._wanted), None)

    def resize(self, names: Iterable[str]) -> None:
        """Have slots of these names; those that are no longer wanted go when they are empty."""
        kept = {name: self._slots.get(name) or Slot(name) for name in names}
        self._wanted = frozenset(kept)
        self._slots = {
            **kept,
            **{slot.name: slot for slot in self if slot.occupied and slot.name not in kept},
        }
