"""What people ask of the running factory: draining, finishing and destroying, and the site's shutdown time."""

from __future__ import annotations

import dataclasses
import logging
import math

from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.slots import Slot
from vac.machines import machine as machines
from vac.machines import requests

log = logging.getLogger(__name__)


class Orders:
    """Carries out requests and lowers shutdown times."""

    def __init__(self, floor: Floor, ending: Ending) -> None:
        self.floor = floor
        self.ending = ending
        self.drain: requests.Drain | None = None

    def look(self) -> None:
        """Read what is asked and do it. Each request is forgotten after it has been carried out."""
        now, before = self.floor.clock(), self.drain
        self.drain = requests.draining(self.floor.state, now)
        if before is not None and self.drain == dataclasses.replace(before, since=now):
            self.drain = before  # the order doesn't say since when it is in force
        if before != self.drain:
            log.info(
                "%s", f"draining: {self.drain.reason or 'as asked'}" if self.drain else "no longer draining"
            )
            self.floor.changed = True
        for request in requests.pending(self.floor.state):
            if self._carry_out(request):
                requests.done(self.floor.state, request)

    def _carry_out(self, request: requests.Request) -> bool:
        """Do one thing that was asked; True when it is done or can't be: a destruction, when the machine has ended."""
        slot = self.floor.slots.get(request.machine)
        if slot is None or slot.machine is None or slot.machine.uuid != request.uuid or slot.machine.finished:
            return True
        if request.action == "finish":
            log.info("%s: asked to finish", slot.name)
            return self._lower(slot, self.floor.clock())
        self.ending.stop(slot, "100 Destroyed by the administrator")
        return False

    def obey_shutdown_time(self) -> None:
        """Lower the end of every machine to the site's shutdown_time."""
        shutdown_time = self.floor.settings.shutdown_time
        if shutdown_time is not None:
            for slot in self.floor.slots:
                self._lower(slot, shutdown_time)

    def _lower(self, slot: Slot, wanted: float) -> bool:
        """To that time, but not to less than grace_secs from now. False: to be tried again."""
        machine = slot.machine
        if machine is None or machine.finished or machine.shutdown_time <= wanted:
            return True
        end = math.ceil(max(wanted, self.floor.clock() + self.floor.settings.grace_secs))
        before = machine.shutdown_time
        text = f"{machine.name}: its end can't be lowered"
        if not self.floor.written(
            machine.uuid, text, lambda: machines.lower_shutdown_time(self.floor.state, machine, end)
        ):
            return False
        if machine.shutdown_time < before:
            log.info("%s (%s): must end by %d", machine.name, machine.machinetype, machine.shutdown_time)
            self.floor.changed = True
        return True
