"""When to decide, on what, and carrying the decision out; and which CernVM-FS repositories machinetypes need."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Mapping

from vac.background import BackgroundWork, Outcome
from vac.config.checks import needed_repositories
from vac.config.machinetype import Machinetype
from vac.decoding import filled
from vac.factory.effects import Effects
from vac.factory.peers import Space
from vac.factory.state import FactoryState, Slot
from vac.host.probes import ANSWER_SECONDS, CVMFS, late_problem, repository_problem
from vac.lifecycle.phases import Preparing
from vac.logs import OnChange
from vac.machines import files
from vac.scheduling.backoff import broken_here
from vac.scheduling.decide import Memory, decide
from vac.scheduling.eligibility import NO_ANSWER, Situation, total_processors
from vac.scheduling.model import Decision, Host, Occupied
from vac.scheduling.shares import Ledger
from vac.scheduling.space import CYCLE_SECONDS, own_reports

log = logging.getLogger(__name__)

AT_ONCE = 32
MOST_HANGING = 256
"""No more repositories are looked at while so many children hang: each keeps a thread and open files."""
FETCH_SECONDS = 86400.0
"""So often an image of a pipe may be got though no machine can be made, so that it is there when one can."""
LOAD_SECONDS = 60.0
"""In so long a 1-minute load falls to 1/e of what it was."""


class Repositories:
    """The repositories that are needed. A machinetype whose repository doesn't answer has to wait."""

    def __init__(self, state: FactoryState) -> None:
        self._state = state
        self._work: BackgroundWork[str | None] = state.background(
            "cvmfs", self.seen, at_once=AT_ONCE, deadline_seconds=ANSWER_SECONDS, most_late=MOST_HANGING
        )
        self._problems: dict[str, str | None] = {}
        """By repository that has been looked at."""

    def look(self) -> None:
        """Once a cycle: look at all that machinetypes need which have a share or machines."""
        running = {slot.machine.machinetype for slot in self._state.slots if slot.machine and slot.occupied}
        types = self._state.configuration.machinetypes.values()
        needing = (one for one in types if one.target_share > 0 or one.name in running)
        wanted = {each for one in needing for each in needed_repositories(one)}
        self._problems = {each: problem for each, problem in self._problems.items() if each in wanted}
        for name in sorted(wanted):
            self._work.start(name, functools.partial(repository_problem, name))

    def seen(self, outcome: Outcome[str | None]) -> None:
        """Take in that a repository has answered, or has not in time."""
        name, problem = outcome.key, outcome.value
        if outcome.late:
            problem = late_problem(ANSWER_SECONDS)
        elif outcome.failure:
            problem = f"can't be looked at: {outcome.failure}"
        if self._problems.get(name, "") != problem:
            self._state.changed = True
        self._problems[name] = problem
        self._state.changes.tell(("cvmfs", name), problem and f"{CVMFS / name} {problem}")

    def problem(self, machinetype: Machinetype) -> str | None:
        """Return why no machine of this type can be made now: the first of its repositories that can't be used."""
        for name in needed_repositories(machinetype):
            problem = self._problems.get(name, "has not answered yet")
            if problem is not None:
                return f"repository {CVMFS / name} {problem}"
        return None


class Decisions:
    """The last decision. A new one is made when something, or time alone, may have changed the answer."""

    def __init__(
        self,
        state: FactoryState,
        effects: Effects,
        space: Space,
        repositories: Repositories,
    ) -> None:
        self.state = state
        self.effects = effects
        self.space = space
        self.repositories = repositories
        self.memory = Memory(ledger=filled(Ledger(), files.read_json(state.dir.share_ledger)))
        self.health_problem: str | None = None
        self._prepared: set[tuple[str, str | None]] = set()
        """Machinetypes that were prepared with these images."""
        self._fetch_times: dict[str, float] = {}
        """By pipe, FETCH_SECONDS before the next image may be got in any case, by the monotonic clock."""
        self._excess, self._excess_time = 0.0, 0.0
        """The last peak of _excess_load(), and when it was measured, by the monotonic clock."""
        self._notes, self._warnings = OnChange(log), OnChange(log)
        self.decision = Decision()
        self.decision_time: float | None = None
        self.warnings: tuple[str, ...] = ()
        """Problems for people to solve though creation goes on."""
        self.next_time: float | None = None
        """When time alone may change the decision, Unix seconds."""
        self.due_time: float | None = None
        """The same by the monotonic clock."""

    def decide_if_due(self) -> None:
        """Decide if something has changed or the time has come, and the space is known well enough."""
        now = self.state.clock.moment()
        if not self.state.changed and (self.due_time is None or now.boot < self.due_time):
            return
        if not self.space.fresh(self.state.configuration):
            self.next_time = self.due_time = None
            return
        self.state.changed = False
        self.decide(now.unix)
        if self.next_time is not None:
            self.due_time = now.boot + max(0.0, self.next_time - now.unix)

    def clock_was_set(self) -> None:
        """Decide anew, without what was noted by the wrong clock."""
        self.memory = Memory(ledger=dataclasses.replace(self.memory.ledger, time=None))
        self.due_time = None
        self.state.changed = True

    def decide(self, now: float) -> None:
        """Make one decision and begin what it says."""
        occupied = [one for slot in self.state.slots if (one := self._occupied(slot)) is not None]
        settings, order = self.state.settings, self.state.drain
        full = sum(one.processors for one in occupied) >= total_processors(settings)
        machinetypes, unusable = self._usable(fetch=not (full or settings.draining or order))
        situation = Situation(
            settings=settings,
            machinetypes=machinetypes,
            occupied=occupied,
            history=self.state.history,
            space=self.space.view(
                settings,
                lambda: own_reports(machinetypes, occupied, self.state.history, settings.hs06, now),
                now,
            ),
            host=self._host(),
            engines=self._engines(machinetypes),
            now=now,
            config_problem=self.state.configuration_problem or self.state.doubt,
            drain=order.reason or "as asked by `vac drain`" if order else None,
        )
        decision, self.memory = decide(situation, self.memory, self.state.rng)
        self._tell(decision)
        self.decision = dataclasses.replace(decision, passed_over={**decision.passed_over, **unusable})
        self.decision_time = now
        mixed = self.space.warning(settings)
        warnings = [*broken_here(decision.held_here, situation.space).values(), *([mixed] if mixed else [])]
        self._warnings.only({text: text for text in warnings}, logging.WARNING)
        self.warnings = tuple(warnings)
        times = (decision.next_time, now + CYCLE_SECONDS)
        self.next_time = min(time for time in times if time is not None)
        for create in decision.creates:
            slot = self.state.slots.lowest_free(self.state.foreign)
            if slot is not None:
                self.effects.begin(slot, create)
        self.state.reported = False

    def _occupied(self, slot: Slot) -> Occupied | None:
        """Return what is in a slot that isn't free, with its times by the wall clock as it is set now."""
        machine, now = slot.machine, self.state.clock.moment()
        if isinstance(slot.phase, Preparing):
            order, begin = slot.phase.pending.order, now.at(slot.phase.pending.begin).unix
            return Occupied(order.machinetype, order.processors, begin, None, order.shutdown_time)
        if machine is None or not slot.occupied:
            return None
        step = round(machine.clock_step(now))
        started = None if machine.started_time is None else machine.started_time + step
        return Occupied(
            machine.machinetype,
            machine.processors,
            machine.created_time + step,
            started,
            machine.shutdown_time + step,
        )

    def _usable(self, *, fetch: bool) -> tuple[dict[str, Machinetype], dict[str, str]]:
        """Return machinetypes of which machines could be made, and why not of the others.

        Unless fetch is set, one image a day is prepared of what a pipe names: no machine can be made now anyway, and
        its publisher could fill the disk.
        """
        state, usable, reasons = self.state, {}, dict(self.state.configuration.unusable)
        for name, one in state.configuration.machinetypes.items():
            if name in reasons:
                continue
            unprepared = None
            if one.target_share > 0:
                files = state.dir.machinetype_files(one.pipe or name)
                engine = state.engine_of(one.machine_model)
                unprepared = self.repositories.problem(one)
                known = (name, one.root_image) in self._prepared or not one.pipe
                if unprepared is None and (known or fetch or self._fetches_anyway(one.pipe)):
                    self._prepared.add((name, one.root_image))
                    unprepared = engine.prepare(one, state.settings, files)
            if unprepared is None:
                usable[name] = one
            else:
                reasons[name] = unprepared
        return usable, reasons

    def _fetches_anyway(self, pipe: str | None) -> bool:
        """Return True once in FETCH_SECONDS for each pipe, the first time after so long."""
        now = self.state.clock.boot()
        if now - self._fetch_times.setdefault(pipe or "", now) < FETCH_SECONDS:
            return False
        self._fetch_times[pipe or ""] = now
        return True

    def _engines(self, machinetypes: Mapping[str, Machinetype]) -> dict[str, str | None]:
        """By machine model, why its engine can't be used now; None if it can."""
        problems: dict[str, str | None] = {}
        for one in machinetypes.values():
            if one.target_share > 0:
                engine = self.state.engine_of(one.machine_model)
                waiting = None if engine.name in self.state.observed else NO_ANSWER
                problems[one.machine_model] = engine.problem() or waiting
        return problems

    def _host(self) -> Host:
        free_bytes = 0
        with contextlib.suppress(OSError):  # a file system that can't be asked takes no machine either
            free = os.statvfs(self.state.dir.root)
            free_bytes = free.f_bavail * free.f_frsize
        return Host(
            load=os.getloadavg(),
            state_dir_free_bytes=free_bytes,
            processors=self.state.settings.host_processors,
            health_problem=self.health_problem,
            excess_load=self._excess_load(),
        )

    def _excess_load(self) -> float:
        """Return the most that machines' tasks beyond their processors have added to the 1-minute load.

        One machine's tasks must not stop the creation of all others: cgroups keep them to their share of the
        processors. Those that have ended, perhaps a cycle after they were counted, go out of the load slowly.
        """
        now = self.state.clock.boot()
        rest = self._excess * math.exp(min(0.0, self._excess_time + CYCLE_SECONDS - now) / LOAD_SECONDS)
        excess = sum(
            max(0, (slot.observed.usage.busy_tasks or 0) - slot.machine.processors)
            for slot in self.state.slots
            if slot.machine is not None and slot.running
        )
        if excess >= rest:
            self._excess, self._excess_time = float(excess), now
        return max(float(excess), rest)

    def _tell(self, decision: Decision) -> None:
        """Log what is new in a decision; a changed deadline of a hold-back isn't."""
        if decision.guard is None or decision.guard_name == "full" or self._begins(decision):
            self.state.changes.clear("guard")
        elif self.decision.guard_name != decision.guard_name:
            self.state.changes.say("guard", f"nothing is created: {decision.guard}")
        self._notes.only({note: note for note in decision.notes})
        before, holds = _holds(self.decision), _holds(decision)
        for name, where in holds.items():
            if before.get(name) != where:
                log.info("%s: %s", name, decision.passed_over[name])
        for name in before.keys() - holds.keys():
            log.info("%s: no longer held back", name)

    def _begins(self, decision: Decision) -> bool:
        """Return True while only the first answers of engines or health_command are missing."""
        if decision.guard_name == "engines":
            return not any(engine.problem() for engine in self.state.engines.values())
        return decision.guard_name == "health" and self.health_problem == NO_ANSWER


def _holds(decision: Decision) -> dict[str, str]:
    """Return, by machinetype that is held back, whose aborts did that."""
    return {
        **dict.fromkeys(decision.held_in_space, "in the space"),
        **dict.fromkeys(decision.held_here, "here"),
    }
