"""How a machine ends: told to, stopped, accounted once, its remains released, its slot free."""

from __future__ import annotations

import logging
from collections.abc import Collection

from vac.accounting import finishing
from vac.drivers.base import Usage
from vac.drivers.registry import engine_name
from vac.factory.floor import Floor
from vac.factory.slots import Slot
from vac.machines.machine import Machine
from vac.machines.messages import set_shutdown_message
from vac.machines.slots import discard, discard_scratch, outcome
from vac.machines.status import Happening
from vac.scheduling.backoff import code_group, reported_message, says_no_work
from vac.scheduling.model import Outcome

log = logging.getLogger(__name__)

ZOMBIE_SECONDS = 60.0
"""What can't be removed for so long keeps its slot, and is said to."""
LIVE_SECONDS = 150.0
"""A machine that this process saw run so recently has ended just now; else it ended when it was last seen alive."""


class Ending:
    """Carries machines from running to gone. Every step can be the last one; the next start goes on from there."""

    def __init__(self, floor: Floor) -> None:
        self.floor = floor

    def stop(self, slot: Slot, message: str) -> None:
        """End a machine by force. The message becomes its shutdown message, unless it has left one itself."""
        machine = slot.machine
        if machine is None or machine.finished or slot.stopping:
            return
        text = f"{machine.name}: why it is stopped can't be written"
        self.floor.written(
            machine.uuid, text, lambda: set_shutdown_message(self.floor.state, machine, message)
        )
        log.info("%s (%s): stopping it: %s", machine.name, machine.machinetype, message)
        slot.stopping = True
        self.floor.engine_of(machine.model).stop(machine.name, machine.uuid)
        self.floor.changed = True

    def ended(self, slot: Slot, usage: Usage) -> None:
        """Account for a machine that its engine says has ended, then have its remains released."""
        machine = slot.machine
        if machine is None or machine.finished:
            return
        now = self.floor.clock()
        live = slot.seen_alive_time is not None and now - slot.seen_alive_time < LIVE_SECONDS
        try:
            finishing.finish(self.floor.state, machine, usage, now, live=live)
        except finishing.FinishFailed as problem:
            self.floor.changes.say(f"finish {machine.uuid}", str(problem), logging.ERROR)
            return
        self.floor.changes.clear(f"finish {machine.uuid}")
        end = outcome(machine, reported_message)
        self.floor.remember(end, machine.options.fizzle_seconds)
        log.info("%s (%s): ended: %s", machine.name, machine.machinetype, _epitaph(end))
        lived = end.ended_time - (machine.started_time or end.ended_time)
        self.floor.tallies.add(Happening.END, machine.machinetype, code_group(end.message), lived)
        slot.stopping = False
        slot.removing_since = now
        self.release(slot)
        self.floor.monitor.finished(self.floor.settings, machine.directory)
        self.floor.changed = True

    def account_for_strays(self, engine: str, listed: Collection[str]) -> None:
        """Write the end of machines that are in no slot, once their engine doesn't list their uuids any more."""
        for machine in list(self.floor.strays):
            if engine_name(machine.model) != engine or machine.uuid in listed:
                continue
            try:
                finishing.finish(self.floor.state, machine, None, self.floor.clock(), live=False)
            except finishing.FinishFailed as problem:
                self.floor.changes.say(f"finish {machine.uuid}", str(problem), logging.ERROR)
            else:
                self.floor.strays.remove(machine)
                log.warning("%s: was in no slot; its end is written", machine.directory.name)

    def release(self, slot: Slot) -> None:
        """Ask the engine to let go of what is left of a finished machine."""
        if slot.machine is not None:
            self.floor.engine_of(slot.machine.model).destroy(slot.machine.name, slot.machine.uuid)

    def released(self, slot: Slot) -> None:
        """The engine has let go of it: the slot is free."""
        self.destroyed_or_not(slot, "destroyed")
        if slot.zombie:
            log.info("%s: what was left of its machine is gone", slot.name)
        slot.removing_since = None
        slot.zombie = False
        slot.known_since = self.floor.clock()
        self.floor.changed = True
        if slot.machine is not None:
            self.empty(slot.machine)

    def empty(self, machine: Machine) -> None:
        """Give back the disk of a finished machine that its engine has let go of; what fails is tried again."""
        try:
            discarded = discard_scratch(self.floor.state, machine.directory)
        except OSError as error:
            text = f"{machine.name}: its scratch space can't be removed: {error}"
            self.floor.changes.say(f"scratch {machine.uuid}", text, logging.WARNING)
            return
        self.floor.changes.clear(f"scratch {machine.uuid}")
        if discarded:
            self.floor.sweeper.start()

    def destroyed_or_not(self, slot: Slot, outcome: str) -> None:
        """Count that the engine has let go of a finished machine, or said that it couldn't."""
        if slot.machine is not None and slot.removing_since is not None:
            seconds = self.floor.clock() - slot.removing_since
            self.floor.tallies.add(Happening.DESTRUCTION, slot.machine.model, outcome, seconds)

    def retry_release(self, slot: Slot) -> None:
        """Ask again for what could not be removed; after a minute the slot counts as a zombie's."""
        since = slot.removing_since
        if since is None:
            return
        if not slot.zombie and self.floor.clock() - since > ZOMBIE_SECONDS:
            slot.zombie = True
            log.warning("%s: what is left of its machine can't be removed; its slot stays taken", slot.name)
            self.floor.changed = True
        self.release(slot)

    def discard(self, slot: Slot, reason: str) -> None:
        """Clean up a machine that never started: no record, its slot is free, and the reason is kept."""
        machine = slot.machine
        if machine is None:
            return
        self.release(slot)
        discard(self.floor.state, machine)
        self.floor.sweeper.start()
        slot.clear(None)
        self.floor.creation_failed(machine.machinetype, f"{machine.name}: {reason}", machine.created_time)


def _epitaph(outcome: Outcome) -> str:
    lived = outcome.ended_time - (outcome.started_time or outcome.ended_time)
    words = f"{outcome.message or 'no shutdown message'}, after {lived:.0f} s"
    if says_no_work(outcome.message):
        words += "; that is how long it took to find no work (see fizzle_seconds)"
    return words
