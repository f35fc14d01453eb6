"""Administrators' requests to the running factory: draining, finishing, destroying; and the site's shutdown time."""

from __future__ import annotations

import dataclasses
import functools
import logging

from vac.factory.effects import Effects
from vac.factory.state import FactoryState, Slot
from vac.lifecycle.phases import Starting, StopOrder, Uncertain
from vac.lifecycle.table import EndLowered, StopOrdered
from vac.machines import requests

DESTROYED = StopOrder("100 Destroyed by the administrator", by_people=True)

log = logging.getLogger(__name__)


class AdminRequests:
    """Requests to be carried out, and shutdown times to be lowered."""

    def __init__(self, state: FactoryState, effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self.waiting = False
        """True while a machine is to be destroyed whose engine hasn't reported its creation yet."""

    def look(self) -> None:
        """Read what is asked and do it. Each request is removed after it has been carried out."""
        self._look_at_drain()
        self.waiting = False
        try:
            pending = requests.pending(self.state.dir)
        except OSError as error:
            self.state.trouble("requests", f"{self.state.dir.requests} can't be read: {error}")
            return
        self.state.no_trouble("requests")
        for request in pending:
            if self._carry_out(request):
                text = f"{request.machine}: the request to {request.action} it can't be removed"
                remove = functools.partial(requests.done, self.state.dir, request)
                self.state.written("requests", text, remove)

    def _look_at_drain(self) -> None:
        now, before = self.state.clock.unix(), self.state.drain
        order = requests.draining(self.state.dir, now)
        if before is not None and order == dataclasses.replace(before, since=now):
            order = before  # the request doesn't say since when it is in force
        if before != order:
            self.state.drain, self.state.changed = order, True
            log.info("%s", f"draining: {order.reason or 'as asked'}" if order else "no longer draining")

    def _carry_out(self, request: requests.Request) -> bool:
        """Carry out one request. Return True when it is done or can't be; a destruction, when the machine has ended."""
        slot = self.state.slots.get(request.machine)
        if slot is None or slot.machine is None or slot.machine.uuid != request.uuid or slot.machine.finished:
            return True
        if request.action == "finish":
            log.info("%s: asked to finish", slot.name)
            return self._lower(slot, self.state.clock.unix())
        self.waiting |= isinstance(slot.phase, (Starting, Uncertain))
        self.effects.happen(slot, StopOrdered(DESTROYED))
        return False

    def obey_shutdown_time(self) -> None:
        """Lower the end of every machine to the site's shutdown_time."""
        shutdown_time = self.state.settings.shutdown_time
        if shutdown_time is not None:
            for slot in self.state.slots:
                if slot.occupied:
                    self._lower(slot, shutdown_time)

    def _lower(self, slot: Slot, wanted: float) -> bool:
        """Lower a machine's end; return False if it has to be tried again."""
        self.effects.happen(slot, EndLowered(wanted))
        return slot.machine is None or f"end {slot.machine.uuid}" not in self.state.troubles
