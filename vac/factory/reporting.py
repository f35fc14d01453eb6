"""What the factory tells others: status.json, counts, heartbeat, and the upkeep of its state directory."""

from __future__ import annotations

import dataclasses
import logging

import vac
from vac.context.downloads import ImageCache
from vac.drivers.base import EngineState
from vac.factory.deciding import Deciding
from vac.factory.ending import ZOMBIE_SECONDS
from vac.factory.floor import Floor
from vac.factory.slots import Slot
from vac.machines import statefiles
from vac.machines import status as statuses
from vac.machines.expiry import Expiry, remove_orphaned_slots
from vac.machines.status import Drain, Status, TypeFacts
from vac.scheduling.backoff import reported_message
from vac.vacquery.signed_json import identity

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
"""status.json is written at most this often."""
UNUSED_IMAGE_DAYS = 30
"""How long a downloaded image is kept that no machinetype names any more."""


class Reporting:
    """Writes what the responder, `vac`, Nagios and people's eyes read."""

    def __init__(self, floor: Floor, deciding: Deciding) -> None:
        self.floor = floor
        self.deciding = deciding
        self.expiry = Expiry(floor.state, reported_message)
        self.images = ImageCache(floor.state.imagecache, floor.state.tmp)
        self._report_time = 0.0

    @property
    def next_time(self) -> float | None:
        """When status.json may be written again, if it has to be."""
        return None if self.floor.reported else self._report_time + REPORT_SECONDS

    def cycle(self) -> None:
        """Once a cycle: show that the factory lives, and remove what is old."""
        now, state, settings = self.floor.clock(), self.floor.state, self.floor.settings
        statefiles.touch_heartbeat(state, "factory", now)
        state.keep_reserve()
        occupied = [slot for slot in self.floor.slots if slot.occupied]
        remove_orphaned_slots(
            state, settings.factory_name, settings.host_processors, [slot.name for slot in occupied]
        )
        if self.floor.configuration_problem is None:
            directories = [slot.machine.directory for slot in self.floor.slots if slot.machine]
            machinetypes = self.floor.configuration.machinetypes
            self.expiry.run(machinetypes, directories, now)
            named = [one.root_image for one in machinetypes.values() if one.root_image]
            self.images.expire(named, now, UNUSED_IMAGE_DAYS)
        self.floor.sweeper.start()
        self.floor.monitor.cycle(settings)
        self.floor.reported = False

    def report_if_due(self) -> None:
        """Write status.json and counts if something has changed, but not more than once a second."""
        now = self.floor.clock()
        if self.floor.reported or 0 <= now - self._report_time < REPORT_SECONDS:
            return
        self._report_time = now
        self.floor.reported = True
        self._counts()
        statuses.write(self.floor.state, self.status(now))

    def _counts(self) -> None:
        settings = self.floor.settings
        running = [slot.machine for slot in self.floor.slots if slot.running and slot.machine]
        processors = sum(machine.processors for machine in running)
        statefiles.write_counts(
            self.floor.state,
            len(running),
            settings.host_processors,
            processors,
            settings.total_processors,
            processors * settings.hs06,
        )

    def status(self, now: float) -> Status:
        """Everything that others want to know and that isn't in the machines' directories."""
        floor, settings, decision = self.floor, self.floor.settings, self.deciding.decision
        order = self.deciding.orders.drain
        return Status(
            time=now,
            space=settings.vac_space,
            site=settings.site,
            factory=settings.factory_name,
            version=vac.__version__,
            factories=settings.factories,
            vacquery_allow=tuple(str(network) for network in settings.vacquery_allow),
            vacquery=identity(settings.vacquery_port, settings.vacquery_key_file),
            slots=settings.host_processors,
            total_processors=settings.total_processors,
            mb_per_processor=settings.mb_per_processor,
            hs06_per_processor=settings.hs06,
            machinetypes=tuple(self._facts()),
            engines={name: engine.problem() for name, engine in floor.engines.items()},
            problems=floor.problems,
            warnings=(*self.deciding.warnings, *self._notices()),
            drain=Drain(order.reason, order.since, order.until) if order else None,
            shutdown_time=settings.shutdown_time,
            decision_time=self.deciding.decision_time,
            next_time=self.deciding.next_time,
            guard=decision.guard,
            guard_name=decision.guard_name,
            passed_over=decision.passed_over,
            held_here=decision.held_here,
            held_in_space=decision.held_in_space,
            silent=self.deciding.space.silent(settings),
            unusable=self.deciding.space.last.unusable,
            dropped=self.deciding.space.last.dropped,
            created=tuple(floor.created),
            failed=dict(floor.failed),
            pipes=dict(floor.pipes),
            slot_states=self._slot_states(now),
            disk_used={
                slot.machine.uuid: slot.disk_used_bytes
                for slot in floor.slots
                if slot.running and slot.machine and slot.disk_used_bytes is not None
            },
            begin=floor.started_time,
            tallies=floor.tallies.tell(floor.configuration.machinetypes),
        )

    def _notices(self) -> list[str]:
        return [notice for engine in self.floor.engines.values() for notice in engine.notices()]

    def _facts(self) -> list[TypeFacts]:
        names = [field.name for field in dataclasses.fields(TypeFacts) if field.name != "fqan"]
        return [
            TypeFacts(fqan=one.accounting_fqan, **{name: getattr(one, name) for name in names})
            for one in self.floor.configuration.machinetypes.values()
        ]

    def _slot_states(self, now: float) -> dict[str, str]:
        found = {slot.name: self._slot_state(slot, now) for slot in self.floor.slots}
        return {name: state for name, state in found.items() if state}

    def _slot_state(self, slot: Slot, now: float) -> str | None:
        """What only the engine knows; None if the machine's directory tells all."""
        stranger = slot.stranger_since is not None and now - slot.stranger_since > ZOMBIE_SECONDS
        if slot.zombie or (stranger and not slot.occupied):
            return "Zombie"
        if slot.machine is None or slot.machine.finished:
            return None
        if slot.running and self.floor.engine_of(slot.machine.model).problem():
            return "Unknown"
        return "Paused" if slot.engine_state is EngineState.PAUSED else None
