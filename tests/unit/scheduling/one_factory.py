"""A factory in virtual time, for tests of decisions: its machines start at once and end as they are told to."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.scheduling.backoff import History, reported_message
from vac.scheduling.decide import Memory, decide
from vac.scheduling.eligibility import Situation
from vac.scheduling.model import Create, Decision, Host, MachineEnd, Occupied
from vac.scheduling.space import own_reports, view

START = 1_000_000_000.0
MODEL = "bubblewrap"
IDLE_HOST = Host((0.0, 0.0, 0.0), 10**12, 64)
FACTORY = "f.example.com"


@dataclass(frozen=True)
class End:
    """The end of a machine to be."""

    lifetime_seconds: float
    message: str | None = "200 Success"
    starts: bool = True


Work = Callable[[Create, random.Random], End]
"""Chooses the end of a machine that is being created."""


def settings(processors: int = 64, **options: object) -> Settings:
    """Settings of a factory with so many processors."""
    common = {"vac_space": "s.example.com", "factory_name": FACTORY, "total_processors": processors}
    return Settings(**{**common, "host_processors": processors, **options})  # type: ignore[arg-type]


def machinetype(name: str, target_share: float = 1.0, **options: object) -> Machinetype:
    """A machinetype whose engine works; as when configuration is read, its group is its name."""
    common = {"target_share": target_share, "machine_model": MODEL, "machinegroup": name}
    wallclock = options.get("max_wallclock_seconds", 86400)
    common["min_wallclock_seconds"] = wallclock
    return Machinetype(name=name, **{**common, **options})  # type: ignore[arg-type]


class OneFactory:
    """Decides after each event, and when the last decision said that time alone may change something."""

    def __init__(
        self,
        conf: Settings,
        types: Sequence[Machinetype],
        work: Work,
        seed: int = 1,
        cycle_seconds: float = 60,
    ) -> None:
        self.settings = conf
        self.types = {one.name: one for one in types}
        self.work = work
        self.rng = random.Random(seed)
        self.cycle_seconds = cycle_seconds
        self.now = START
        self.occupied: list[Occupied] = []
        self.outcomes: list[MachineEnd] = []
        self.history = History()
        self.memory = Memory()
        self.created: list[tuple[float, Create]] = []
        self.decision = Decision()
        self.processor_seconds: Counter[str] = Counter()
        self._ends: list[tuple[float, int, Occupied, End]] = []

    def count(self, name: str) -> int:
        """Machines of a type that there are now."""
        return sum(one.machinetype == name for one in self.occupied)

    def situation(self) -> Situation:
        """Return the input of the next decision."""
        reports = own_reports(self.types, self.occupied, self.history, self.settings.hs06, self.now)
        capacity = {FACTORY: self.settings.total_processors * self.settings.hs06}
        space = view(FACTORY, (FACTORY,), {FACTORY: reports}, capacity, self.now)
        engines: dict[str, str | None] = {MODEL: None}
        return Situation(
            self.settings, self.types, self.occupied, self.history, space, IDLE_HOST, engines, self.now
        )

    def decide(self) -> Decision:
        """Decide now and carry it out."""
        self.decision, self.memory = decide(self.situation(), self.memory, self.rng)
        for create in self.decision.creates:
            end = self.work(create, self.rng)
            started = self.now if end.starts else None
            one = Occupied(create.machinetype, create.processors, self.now, started, create.shutdown_time)
            self.occupied.append(one)
            ends = min(self.now + end.lifetime_seconds, create.shutdown_time)
            heapq.heappush(self._ends, (ends, len(self.created), one, end))
            self.created.append((self.now, create))
        return self.decision

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Let so much time pass; `each` is called after each decision."""
        until = self.now + seconds
        while True:
            self.decide()
            each()
            times = [
                self.now + self.cycle_seconds,
                self.decision.next_time,
                self._ends[0][0] if self._ends else None,
            ]
            following = min(time for time in times if time is not None)
            assert following > self.now, "a decision may not ask to be made again at once"
            self._pass(min(following, until))
            if following >= until:
                return

    def _pass(self, time: float) -> None:
        for one in self.occupied:
            self.processor_seconds[one.machinetype] += int(one.processors * (time - self.now))
        self.now = time
        while self._ends and self._ends[0][0] <= time:
            _, _, one, end = heapq.heappop(self._ends)
            self.occupied = [other for other in self.occupied if other is not one]
            fizzle_seconds = self.types[one.machinetype].fizzle_seconds
            message = None
            if one.started_time is not None:
                message = reported_message(end.message, one.started_time, time, fizzle_seconds)
            outcome = MachineEnd(one.machinetype, one.created_time, one.started_time, time, message)
            self.outcomes.append(outcome)
            self.history = self.history.add(outcome, fizzle_seconds)
