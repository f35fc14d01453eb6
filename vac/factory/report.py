"""Reports of the factory: status.json, counts, heartbeat; and the upkeep of its state directory."""

from __future__ import annotations

import dataclasses
import json
import logging

from vac.context.downloads import ImageCache
from vac.drivers.base import EngineState
from vac.factory.decisions import Decisions
from vac.factory.effects import Effects
from vac.factory.state import FactoryState, Slot
from vac.lifecycle.phases import SetAside, Stuck
from vac.lifecycle.table import STUCK_SECONDS
from vac.machines import status as statuses
from vac.machines.slots import Expiry, remove_orphaned_slots
from vac.machines.status import Status

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
"""status.json and the ledger of shares are written at most this often."""
UNUSED_IMAGE_DAYS = 30
"""Days for which a downloaded image is kept that no machinetype names any more."""


class Report:
    """Files for the responder, `vac`, Nagios and people."""

    def __init__(self, state: FactoryState, decisions: Decisions, effects: Effects) -> None:
        self.state = state
        self.decisions = decisions
        self.effects = effects
        self.expiry = Expiry(state.dir)
        self.images = ImageCache(state.dir.imagecache, state.dir.tmp)
        self._report_time = float("-inf")

    @property
    def next_time(self) -> float | None:
        """When status.json may be written again, if it has to be, in seconds since boot."""
        return None if self.state.reported else self._report_time + REPORT_SECONDS

    def cycle(self) -> None:
        """Show that the factory lives, and remove what is old; once a cycle."""
        self.state.written("upkeep", f"{self.state.dir.root} can't be kept in order", self._upkeep)
        self.effects.vacmon.tell(self.state.settings.vacmon_hostport)
        self.state.reported = False

    def _upkeep(self) -> None:
        now, directory, settings = self.state.clock.unix(), self.state.dir, self.state.settings
        statuses.touch_heartbeat(directory, "factory", now)
        directory.keep_reserve()
        occupied = [slot.name for slot in self.state.slots if slot.occupied]
        remove_orphaned_slots(directory, settings.factory_name, settings.host_processors, occupied)
        if self.state.configuration_problem is None and self.state.doubt is None:
            directories = [slot.machine.directory for slot in self.state.slots if slot.machine]
            machinetypes = self.state.configuration.machinetypes
            self.expiry.run(machinetypes, directories, now)
            named = [one.root_image for one in machinetypes.values() if one.root_image]
            self.images.expire(named, now, UNUSED_IMAGE_DAYS)
        self.effects.trash.start()

    def report_if_due(self) -> None:
        """Write status.json, counts, error and ledger if something has changed, but not more than once a second."""
        now = self.state.clock.moment()
        if self.state.reported or now.boot - self._report_time < REPORT_SECONDS:
            return
        self._report_time = now.boot
        self.state.reported = True
        running = [slot.machine for slot in self.state.slots if slot.running and slot.machine]
        processors, settings = sum(machine.processors for machine in running), self.state.settings
        statuses.write_counts(
            self.state.dir,
            len(running),
            settings.host_processors,
            processors,
            settings.total_processors,
            processors * settings.hs06,
        )
        statuses.write(self.state.dir, self.status(now.unix))
        statuses.write_error(self.state.dir, self._error())
        ledger = json.dumps(dataclasses.asdict(self.decisions.memory.ledger))
        statuses.write_text(self.state.dir, self.state.dir.share_ledger, f"{ledger}\n")

    def _error(self) -> tuple[str, str] | None:
        """Return subject and text of the worst that people have to mend."""
        state = self.state
        errors = (
            ("configuration", state.configuration_problem or next(iter(state.problems), None)),
            ("disk", next(iter(state.troubles.values()), None)),
            ("creation", state.creation_error),
        )
        return next(((subject, text) for subject, text in errors if text), None)

    def status(self, now: float) -> Status:
        """Return what others may want to know and what isn't in the machines' directories."""
        state, settings, decision = self.state, self.state.settings, self.decisions.decision
        notices = [notice for engine in state.engines.values() for notice in engine.notices()]
        return dataclasses.replace(
            statuses.configured(state.configuration),
            time=now,
            engines={name: engine.problem() for name, engine in state.engines.items()},
            problems=state.problems,
            warnings=(*self.decisions.warnings, *state.doubts.values(), *state.troubles.values(), *notices),
            drain=state.drain,
            decision_time=self.decisions.decision_time,
            next_time=self.decisions.next_time,
            guard=decision.guard,
            guard_name=decision.guard_name,
            passed_over=decision.passed_over,
            held_here=decision.held_here,
            held_in_space=decision.held_in_space,
            silent=self.decisions.space.silent(settings),
            unusable=self.decisions.space.last.unusable,
            dropped=self.decisions.space.last.dropped,
            created=tuple(state.created),
            failed=dict(state.failed),
            pipes=dict(state.pipes),
            slot_states={slot.name: told for slot in state.slots if (told := self._slot_state(slot))},
            joules=state.joules,
            disk_used={
                slot.machine.uuid: slot.observed.disk_used_bytes
                for slot in state.slots
                if slot.running and slot.machine and slot.observed.disk_used_bytes is not None
            },
            begin=state.started.unix,
            event_counts=state.counters.totals(state.configuration.machinetypes),
        )

    def _slot_state(self, slot: Slot) -> str | None:
        """Return what only the engine knows; None if the machine's directory tells all."""
        foreign = self.state.foreign.get(slot.name)
        long_foreign = foreign is not None and self.state.clock.boot() - foreign > STUCK_SECONDS
        if isinstance(slot.phase, SetAside):
            return "Unknown"
        if isinstance(slot.phase, Stuck) or (long_foreign and not slot.occupied):
            return "Zombie"
        if slot.machine is None or slot.machine.finished:
            return None
        if slot.running and self.state.engine_of(slot.machine.model).problem():
            return "Unknown"
        return "Paused" if slot.observed.engine_state is EngineState.PAUSED else None
