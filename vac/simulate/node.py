"""One simulated factory: what the daemon would remember, and its decisions by the daemon's own code."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.scheduling.backoff import History, TypeHistory
from vac.scheduling.decide import Situation, decide
from vac.scheduling.model import Decision, Host, Occupied, Outcome, SpaceView, TypeReport
from vac.scheduling.own import own_reports
from vac.scheduling.ramp import RampState
from vac.scheduling.space import the_odd_ones
from vac.simulate.bulletin import Bulletin, Reports

PLENTY_BYTES = 10**12
LOAD_SECONDS = (60.0, 300.0, 900.0)


class Load:
    """The kernel's load averages of a host on which every processor in use is busy."""

    def __init__(self, now: float) -> None:
        self._time = now
        self._averages = (0.0, 0.0, 0.0)
        self._busy = 0

    def change(self, processors: int, now: float) -> None:
        """So many processors more are busy from now on."""
        self._averages = self.averages(now)
        self._time = now
        self._busy += processors

    def averages(self, now: float) -> tuple[float, float, float]:
        """1, 5 and 15 minute averages."""
        one, five, fifteen = (
            self._busy + (average - self._busy) * math.exp((self._time - now) / tau)
            for average, tau in zip(self._averages, LOAD_SECONDS)
        )
        return one, five, fifteen


@dataclass
class Node:
    """One factory and what it remembers. Processors are its slots."""

    name: str
    settings: Settings
    machinetypes: Mapping[str, Machinetype]
    factories: tuple[str, ...]
    rng: random.Random
    load: Load
    classic: bool = False
    """A factory of the classic kind: it looks round once a minute and doesn't count its own aborts."""
    broken: bool = False
    up: bool = False
    """Whether its daemon runs."""
    life: int = 0
    """Counts the daemon's starts, so that what was begun before one can be told from what came after."""
    machines: dict[int, Occupied] = field(default_factory=dict)
    """By the world's number: those that there are as far as this factory has noticed."""
    used: int = 0
    ended: list[tuple[int, float, str | None]] = field(default_factory=list)
    """Machines that have ended unnoticed: number, when, message."""
    history: History = field(default_factory=History)
    ramp: RampState = field(default_factory=RampState)
    view: SpaceView | None = None
    asked_time: float | None = None
    """When the poll began that the view comes from."""
    answered_time: float | None = None
    """When it ended: the view's age is counted from then, as in the daemon."""
    polling: bool = False
    unheard: dict[str, float | None] = field(default_factory=dict)
    """Factories that did not answer the last poll, and when they did last."""
    capacity_time: float | None = None
    capacities_of: int = 0
    """How many factories, in the order of their starts, had told their capacity by then."""
    alarm: float | None = None
    """When it wakes up by itself, if nothing happens before."""
    started_once: bool = False

    @property
    def free(self) -> int:
        """Processors not in use, as far as it has noticed."""
        return self.settings.total_processors - self.used

    @property
    def capacity_hs06(self) -> float:
        """max_hs06, as VacQuery calls it."""
        return self.settings.total_processors * self.settings.hs06

    def reports(self, now: float) -> dict[str, TypeReport]:
        """What it says of itself."""
        occupied = self.machines.values()
        return own_reports(self.machinetypes, occupied, self.history, self.settings.hs06, now)

    def see(self, bulletin: Bulletin, own: Reports, capacity_hs06: float) -> None:
        """Take in what a poll has brought; own is what this factory contributed to it."""
        self.view = SpaceView(
            factory=self.name,
            factories=self.factories,
            capacity_hs06=capacity_hs06,
            types=bulletin.types,
            own=own,
            failing=the_odd_ones(bulletin.failing, bulletin.idle, bulletin.answering),
            silent=tuple(self.unheard),
        )

    def decide(self, now: float) -> Decision:
        """Make one decision, and remember what the daemon would."""
        assert self.view is not None
        situation = Situation(
            settings=self.settings,
            machinetypes=self.machinetypes,
            occupied=tuple(self.machines.values()),
            history=self.history,
            space=self.view,
            host=Host(self.load.averages(now), PLENTY_BYTES, self.settings.host_processors),
            engines={one.machine_model: None for one in self.machinetypes.values()},
            now=now,
        )
        decision, self.ramp = decide(situation, self.ramp, self.rng)
        return decision

    def begin(self, number: int, machine: Occupied) -> None:
        """A machine is being made."""
        self.machines[number] = machine
        self.used += machine.processors

    def started(self, number: int, now: float) -> None:
        """It runs."""
        self.machines[number] = dataclasses.replace(self.machines[number], started_time=now)

    def notice(self, number: int, ended_time: float, message: str | None) -> None:
        """It has been seen to have ended."""
        machine = self.machines.pop(number)
        self.used -= machine.processors
        outcome = Outcome(
            machine.machinetype, machine.created_time, machine.started_time, ended_time, message
        )
        history = self.history.add(outcome, self.machinetypes[machine.machinetype].fizzle_seconds)
        self.history = _without_own_holds(history) if self.classic else history

    def forget(self) -> None:
        """The daemon has died: what a new one can't know is gone."""
        self.up, self.polling, self.alarm = False, False, None
        self.ramp = RampState()
        self.view = self.asked_time = self.answered_time = self.capacity_time = None
        self.unheard = {}
        self.life += 1


def _without_own_holds(history: History) -> History:
    """What the classic remembers: the abort time that it reports."""
    return History(
        {
            name: TypeHistory(
                newest_created=one.newest_created,
                abort_time=one.abort_time,
                abort_says_no_work=one.abort_says_no_work,
            )
            for name, one in history.types.items()
        }
    )
