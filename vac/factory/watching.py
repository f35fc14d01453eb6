"""What an engine's listing means for the machines in the slots, and for those that are in none."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from vac.drivers.base import EngineState, Observed, Usage
from vac.drivers.engine import Observation
from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.slots import Slot
from vac.host.connections import Contact
from vac.machines import contacts
from vac.machines import machine as machines
from vac.machines.machine import Machine

log = logging.getLogger(__name__)

RENEW_SECONDS = 30.0
"""Heartbeat files are written at most this often, however often events make the factory look."""


class Watcher:
    """Draws conclusions from listings; it acts through Ending."""

    def __init__(self, floor: Floor, ending: Ending) -> None:
        self.floor = floor
        self.ending = ending
        self._strangers: dict[str, dict[str, str]] = {}
        """By engine, what it listed last that is in no slot: names by uuid."""

    def observed(self, seen: Observation) -> None:
        """Take in one listing of one engine."""
        listed = {machine.uuid: machine for machine in seen.machines}
        for slot in self.floor.slots_of(seen.engine):
            if slot.machine and slot.machine.uuid in seen.details:
                self._note_details(slot.machine, seen.details[slot.machine.uuid])
            if slot.machine and slot.machine.uuid in seen.contacts:
                self._note_contacts(slot.machine, seen.contacts[slot.machine.uuid], seen.time)
            found = listed.pop(slot.machine.uuid, None) if slot.machine else None
            usage = seen.usage.get(found.uuid, found.usage) if found else Usage()
            self._slot(slot, found, usage, seen.asked_time)
        if self.floor.sure:
            self.ending.account_for_strays(seen.engine, listed)
            self._remove_zombies(seen.engine, listed)

    def _listed_elsewhere(self, machine: Machine) -> bool:
        """Whether this listing may be another factory's than the machine's, so that it isn't in it."""
        return not self.floor.sure and machine.options.factory_name != self.floor.settings.factory_name

    def _slot(self, slot: Slot, found: Observed | None, usage: Usage, asked_time: float) -> None:
        machine = slot.machine
        if machine is None or slot.creating or asked_time < slot.known_since:
            return
        if found is None and self._listed_elsewhere(machine):
            return
        if slot.stopped_time is not None and asked_time >= slot.stopped_time:
            slot.stopping, slot.stopped_time = False, None
        if machine.finished:
            self._remains(slot, found)
        elif machine.started_time is None and (found is None or found.state is EngineState.HALF_MADE):
            self.ending.discard(slot, "its creation was cut short")
        else:
            self._started(slot, found, usage)

    def _started(self, slot: Slot, found: Observed | None, usage: Usage) -> None:
        machine = slot.machine
        assert machine is not None
        if machine.started_time is None:
            if not self.floor.mark_started(machine, machine.created_time):
                return
            log.info("%s (%s): found started", machine.name, machine.machinetype)
            self.floor.creation_succeeded(machine)
        state = found.state if found else None
        if state is not slot.engine_state:
            slot.engine_state = state
            self.floor.changed = True
        if state is EngineState.RUNNING or state is EngineState.PAUSED:
            self._alive(slot, usage)
        else:
            self.ending.ended(slot, usage)

    def _remains(self, slot: Slot, found: Observed | None) -> None:
        """A machine that has been accounted for: see that the engine lets go of it."""
        if found is None and slot.removing_since is not None:
            self.ending.released(slot)
        elif found is None and slot.machine is not None:
            self.ending.empty(slot.machine)
        elif found is not None:
            if slot.removing_since is None:
                slot.removing_since = self.floor.clock()
            self.ending.retry_release(slot)

    def _alive(self, slot: Slot, usage: Usage) -> None:
        machine, now = slot.machine, self.floor.clock()
        assert machine is not None
        slot.seen_alive_time = now
        slot.usage = usage
        if machine.heartbeat_time is None or not 0 <= now - machine.heartbeat_time < RENEW_SECONDS:
            self.floor.written(
                f"heartbeat {machine.uuid}",
                f"{machine.name}: that it is alive can't be written",
                lambda: machines.renew_heartbeat(self.floor.state, machine, now, usage),
            )

    def _note_details(self, machine: Machine, details: Mapping[str, str]) -> None:
        text = f"{machine.name}: what its engine tells of it can't be written"
        self.floor.written(
            f"details {machine.uuid}",
            text,
            lambda: machines.note_details(self.floor.state, machine, details),
        )

    def _note_contacts(self, machine: Machine, found: frozenset[Contact], time: float) -> None:
        text = f"{machine.name}: with whom it has connections can't be written"
        self.floor.written(
            f"contacts {machine.uuid}",
            text,
            lambda: contacts.note_contacts(self.floor.state, machine, found, time),
        )

    def gone(self, engine: str, uuid: str) -> None:
        """The engine has let go of this machine, wherever it was."""
        if self._strangers.get(engine, {}).pop(uuid, None) is not None:
            self.floor.changes.clear(f"zombie {uuid}")
            self._note_strangers()

    def _remove_zombies(self, engine: str, listed: Mapping[str, Observed]) -> None:
        """What is this factory's but in no slot is removed once two observations have shown it."""
        before = self._strangers.get(engine, {})
        self._strangers[engine] = {uuid: found.name for uuid, found in listed.items()}
        for uuid, name in self._strangers[engine].items():
            if uuid in before:
                text = f"{name} ({uuid}) is in no slot: removing it"
                self.floor.changes.say(f"zombie {uuid}", text, logging.WARNING)
                self.floor.engines[engine].destroy(name, uuid)
        for uuid in before.keys() - listed.keys():
            self.floor.changes.clear(f"zombie {uuid}")
        self._note_strangers()

    def _note_strangers(self) -> None:
        """Keep slots free whose name something else still has: an engine has no two machines of one name."""
        taken = {name for strangers in self._strangers.values() for name in strangers.values()}
        for slot in self.floor.slots:
            if slot.name not in taken:
                self.floor.changed |= slot.stranger_since is not None
                slot.stranger_since = None
            elif slot.stranger_since is None:
                slot.stranger_since = self.floor.clock()
