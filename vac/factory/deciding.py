"""When to decide, on what, and carrying the decision out."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping

from vac.config.machinetype import Machinetype
from vac.factory.creation import Creation
from vac.factory.floor import Floor
from vac.factory.orders import Orders
from vac.factory.repositories import Repositories
from vac.factory.space import Space
from vac.scheduling.backoff import broken_here
from vac.scheduling.decide import Memory, Situation, decide
from vac.scheduling.eligibility import NO_ANSWER
from vac.scheduling.model import Decision, Host, Occupied, SpaceView
from vac.scheduling.space import CYCLE_SECONDS, own_reports

log = logging.getLogger(__name__)

_ORDINARY = ("full",)
"""Guards that are no news."""


class Deciding:
    """Asks the scheduler whenever something has changed, or time alone may have changed the answer."""

    def __init__(
        self, floor: Floor, creation: Creation, orders: Orders, space: Space, repositories: Repositories
    ) -> None:
        self.floor = floor
        self.creation = creation
        self.orders = orders
        self.space = space
        self.repositories = repositories
        self.memory = Memory()
        self.health_problem: str | None = None
        self.decision = Decision()
        self.decision_time: float | None = None
        self.warnings: tuple[str, ...] = ()
        """What people should see to though creating goes on."""
        self.next_time: float | None = None

    def decide_if_due(self) -> None:
        """Decide if something has changed or the time has come, and the space is known well enough."""
        now = self.floor.clock()
        if not self.floor.changed and (self.next_time is None or now < self.next_time):
            return
        if not self.space.fresh(self.floor.configuration):
            self.next_time = None
            return
        self.floor.changed = False
        self.decide(now)

    def decide(self, now: float) -> None:
        """Make one decision and begin what it says."""
        occupied = self.occupied()
        machinetypes, unusable = self._usable()
        settings, order = self.floor.settings, self.orders.drain
        reports = own_reports(machinetypes, occupied, self.floor.history, settings.hs06, now)
        situation = Situation(
            settings=settings,
            machinetypes=machinetypes,
            occupied=occupied,
            history=self.floor.history,
            space=self.space.view(settings, reports, now),
            host=self._host(),
            engines=self._engines(machinetypes),
            now=now,
            config_problem=self.floor.configuration_problem,
            drain=order.reason or "as asked by `vac drain`" if order else None,
        )
        decision, self.memory = decide(situation, self.memory, self.floor.rng)
        self._tell(decision)
        self.decision = dataclasses.replace(decision, passed_over={**decision.passed_over, **unusable})
        self.decision_time = now
        self._warn(decision, situation.space)
        times = (decision.next_time, now + CYCLE_SECONDS)
        self.next_time = min(time for time in times if time is not None)
        for create in decision.creates:
            self.creation.begin(create)
        self.floor.reported = False

    def occupied(self) -> list[Occupied]:
        """The slots that aren't free, in the scheduler's terms."""
        machines = [
            Occupied(m.machinetype, m.processors, m.created_time, m.started_time, m.shutdown_time)
            for m in (slot.machine for slot in self.floor.slots if slot.occupied)
            if m is not None
        ]
        begun = [
            Occupied(b.order.machinetype, b.order.processors, b.time, None, b.order.shutdown_time)
            for b in (slot.begun for slot in self.floor.slots)
            if b is not None
        ]
        return machines + begun

    def _usable(self) -> tuple[dict[str, Machinetype], dict[str, str]]:
        """Machinetypes of which machines could be made now, and why not of the others."""
        floor, usable, reasons = self.floor, {}, dict(self.floor.configuration.unusable)
        for name, one in floor.configuration.machinetypes.items():
            if name in reasons:
                continue
            unprepared = None
            if one.target_share > 0:
                files = floor.state.machinetype_files(one.pipe or name)
                engine = floor.engine_of(one.machine_model)
                missing = self.repositories.problem(one)
                unprepared = missing or engine.prepare(one, floor.settings, files)
            if unprepared is None:
                usable[name] = one
            else:
                reasons[name] = unprepared
        return usable, reasons

    def _engines(self, machinetypes: Mapping[str, Machinetype]) -> dict[str, str | None]:
        """By machine model, why its engine can't be used now; None if it can."""
        problems: dict[str, str | None] = {}
        for one in machinetypes.values():
            if one.target_share > 0:
                engine = self.floor.engine_of(one.machine_model)
                waiting = None if engine.name in self.floor.observed else NO_ANSWER
                problems[one.machine_model] = engine.problem() or waiting
        return problems

    def _host(self) -> Host:
        free = os.statvfs(self.floor.state.root)
        return Host(
            load=os.getloadavg(),
            state_dir_free_bytes=free.f_bavail * free.f_frsize,
            processors=self.floor.settings.host_processors,
            health_problem=self.health_problem,
        )

    def _warn(self, decision: Decision, space: SpaceView) -> None:
        mixed = self.space.warning(self.floor.settings)
        warnings = [*broken_here(decision.held_here, space).values(), *([mixed] if mixed else [])]
        for text in set(self.warnings).difference(warnings):
            self.floor.changes.clear(("warning", text))
        for text in warnings:
            self.floor.changes.say(("warning", text), text, logging.WARNING)
        self.warnings = tuple(warnings)

    def _tell(self, decision: Decision) -> None:
        if decision.guard is None or decision.guard_name in _ORDINARY or self._begins(decision):
            self.floor.changes.clear("guard")
        elif self.decision.guard_name != decision.guard_name:
            self.floor.changes.say("guard", f"nothing is created: {decision.guard}")
        self._tell_holds(decision)
        for note in set(self.decision.notes).difference(decision.notes):
            self.floor.changes.clear(("note", note))
        for note in decision.notes:
            self.floor.changes.say(("note", note), note)

    def _tell_holds(self, decision: Decision) -> None:
        """Say which types are held back from now on, and which no longer; how long still is no news."""
        before, holds = _holds(self.decision), _holds(decision)
        for name, where in holds.items():
            if before.get(name) != where:
                log.info("%s: %s", name, decision.passed_over[name])
        for name in before.keys() - holds.keys():
            log.info("%s: no longer held back", name)

    def _begins(self, decision: Decision) -> bool:
        """Is nothing known against creating but that the engines, or the health command, have yet to answer?"""
        if decision.guard_name == "engines":
            return not any(engine.problem() for engine in self.floor.engines.values())
        return decision.guard_name == "health" and self.health_problem == NO_ANSWER


def _holds(decision: Decision) -> dict[str, str]:
    """By machinetype that is held back, whose aborts did that."""
    return {
        **dict.fromkeys(decision.held_in_space, "in the space"),
        **dict.fromkeys(decision.held_here, "here"),
    }
