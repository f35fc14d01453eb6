"""From what libvirt tells of all domains at once to machines and their usage. Needs no libvirt.

The numbers are those of virDomainState and virDomainPausedReason, the names of statistics those of
virConnectGetAllDomainStats.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from vac.config.settings import slot_number
from vac.drivers.base import EngineState, Observed, Usage

PAUSED = 3
STARTING_UP = 11
SHUTTING_DOWN = 8
NO_PAUSE = (SHUTTING_DOWN, STARTING_UP)
"""Reasons for which a domain is paused for a moment at its beginning and end."""
SUSPENDED = 7
"""PMSUSPENDED: the guest has put itself to sleep, and nobody here will wake it."""
OVER = (5, 6)
"""SHUTOFF and CRASHED."""
NANO = 1_000_000_000

_Number = TypeVar("_Number", int, float)


def machine_state(statistics: Mapping[str, object]) -> EngineState:
    """What a domain's state and its reason mean for the machine."""
    state, reason = statistics.get("state.state"), statistics.get("state.reason")
    if state in OVER:
        return EngineState.ENDED
    if state == SUSPENDED or (state == PAUSED and reason not in NO_PAUSE):
        return EngineState.PAUSED
    return EngineState.RUNNING


def starting_up(statistics: Mapping[str, object]) -> bool:
    """Is its creation not over yet?"""
    return (statistics.get("state.state"), statistics.get("state.reason")) == (PAUSED, STARTING_UP)


def usage_of(statistics: Mapping[str, object], cpu_nanoseconds: int) -> Usage:
    """A domain's usage. Its memory is what the hypervisor's process occupies."""
    memory = statistics.get("balloon.rss")
    memory_bytes = memory * 1024 if isinstance(memory, int) else None
    return Usage(
        cpu_seconds=cpu_nanoseconds / NANO,
        memory_bytes=memory_bytes,
        peak_memory_bytes=memory_bytes,
        network_received_bytes=_cards(statistics, "rx"),
        network_sent_bytes=_cards(statistics, "tx"),
    )


def may_be_ours(name: str, factory: str) -> bool:
    """Is this the name of a machine of that factory's slots?"""
    return slot_number(factory, name) is not None


class Samples:
    """What was seen last of each machine. A domain that has ended is gone, and its usage with it: so its last
    sample is kept here until the machine is destroyed. Can be used from any thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._seen: dict[str, Observed] = {}

    def take(self, machines: Sequence[Observed]) -> None:
        """All machines as they are now; those that were there before and are not among them have ended."""
        now = {machine.uuid: machine for machine in machines}
        with self._condition:
            ended = {
                uuid: replace(before, state=EngineState.ENDED)
                for uuid, before in self._seen.items()
                if uuid not in now
            }
            self._seen = {
                **ended,
                **{uuid: _grown(machine, self._seen.get(uuid)) for uuid, machine in now.items()},
            }
            self._condition.notify_all()

    def all(self) -> Sequence[Observed]:
        """Machines that run, and those that have ended and not been forgotten."""
        with self._condition:
            return list(self._seen.values())

    def forget(self, uuid: str) -> None:
        """Nothing of this machine is left."""
        with self._condition:
            self._seen.pop(uuid, None)

    def wait_for_end(self, uuid: str, seconds: float) -> bool:
        """Wait until the machine has been seen to have ended, at most so long; whether it has."""

        def ended() -> bool:
            machine = self._seen.get(uuid)
            return machine is not None and machine.state is EngineState.ENDED

        with self._condition:
            return self._condition.wait_for(ended, seconds)


def _grown(machine: Observed, before: Observed | None) -> Observed:
    """Counters never go back: at its end a process may already tell less. The peak is the largest sample."""
    if before is None:
        return machine
    new, old = machine.usage, before.usage
    usage = Usage(
        cpu_seconds=_larger(new.cpu_seconds, old.cpu_seconds),
        memory_bytes=new.memory_bytes,
        peak_memory_bytes=_larger(new.peak_memory_bytes, old.peak_memory_bytes),
        network_received_bytes=_larger(new.network_received_bytes, old.network_received_bytes),
        network_sent_bytes=_larger(new.network_sent_bytes, old.network_sent_bytes),
    )
    return replace(machine, usage=usage)


def _larger(one: _Number | None, other: _Number | None) -> _Number | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)


def _cards(statistics: Mapping[str, object], direction: str) -> int | None:
    """Bytes that all network cards have received (rx) or sent (tx)."""
    count = statistics.get("net.count")
    if not isinstance(count, int):
        return None
    values = (statistics.get(f"net.{card}.{direction}.bytes") for card in range(count))
    return sum(value for value in values if isinstance(value, int))
