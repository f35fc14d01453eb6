"""The rules for running machines, asked when time or news may have changed the answer."""

from __future__ import annotations

import logging
from pathlib import Path

from vac.config.machinetype import VM_MODELS
from vac.drivers.base import WRITES_TO, EngineState
from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.slots import Slot
from vac.host.probes import DiskMeasured, DiskMeter, DiskNotMeasured
from vac.machines import files
from vac.machines.machine import Machine, read_details
from vac.scheduling.kill_rules import Limits, Watched, judge

log = logging.getLogger(__name__)

LEAST_SECONDS = 1.0
"""Between two rounds, whatever the deadlines are."""
STOP_AGAIN_SECONDS = 15.0
"""From an engine's failing to end a machine to the next attempt."""
MEASURE_SECONDS = (30.0, 300.0)
"""Shortest and longest time between two measurements of a machine's disk use."""
MEASURE_PART = 0.001
"""Between these limits, measuring one machine may take this part of the time."""
GB = 1000**3


class Rules:
    """Ends machines that are late, stuck, idle or too large."""

    def __init__(self, floor: Floor, ending: Ending, meter: DiskMeter) -> None:
        self.floor = floor
        self.ending = ending
        self.meter = meter
        self.next_time: float | None = None

    def check(self, now: float) -> None:
        """Ask the rules for every machine that is seen to run, if it is time to."""
        if self.next_time is not None and now < self.next_time:
            return
        times = [time for slot in self.floor.slots if (time := self._check(slot, now)) is not None]
        self.next_time = max(min(times), now + LEAST_SECONDS) if times else None

    def look_again(self) -> None:
        """There is news of machines: ask at once."""
        self.next_time = self.floor.clock()

    def measure(self) -> None:
        """Once a cycle: have disk use measured of those machines for which it's time."""
        now = self.floor.clock()
        for slot in self.floor.slots:
            machine = slot.machine
            if machine is None or not slot.running or _disk_limit(machine) is None:
                continue
            if slot.measured_time is None or not 0 <= now - slot.measured_time < slot.measure_seconds:
                slot.measured_time = now
                self.meter.start(machine.uuid, *_directories(machine))

    def measured(self, message: DiskMeasured) -> None:
        """A measurement has come."""
        for slot in self.floor.slots:
            if slot.machine is not None and slot.machine.uuid == message.key:
                slot.disk_used_bytes = message.used_bytes
                least, most = MEASURE_SECONDS
                slot.measure_seconds = min(max(least, message.seconds / MEASURE_PART), most)
        self.look_again()

    def not_measured(self, message: DiskNotMeasured) -> None:
        """Unknown is not too much."""
        log.info("disk use of machine %s can't be measured: %s", message.key, message.reason)

    def _check(self, slot: Slot, now: float) -> float | None:
        """Judge one machine; returns when to ask again."""
        machine = slot.machine
        if machine is None or machine.started_time is None or not slot.running or slot.stopping:
            return None
        if slot.engine_state is None or self.floor.engine_of(machine.model).problem():
            return None
        _note_activity(slot, machine)
        watched = Watched(
            started_time=machine.started_time,
            shutdown_time=machine.shutdown_time,
            paused=slot.engine_state is EngineState.PAUSED,
            heartbeat_file_time=_heartbeat_file_time(machine),
            disk_used_bytes=slot.disk_used_bytes,
            busy_time=slot.busy_time,
        )
        verdict = judge(watched, _limits(machine), self.floor.started_time, now)
        if verdict.message is not None:
            failed_time = slot.stop_failed_time
            if failed_time is not None and 0 <= now - failed_time < STOP_AGAIN_SECONDS:
                return failed_time + STOP_AGAIN_SECONDS
            self.ending.stop(slot, verdict.message)
        return verdict.next_time


def _limits(machine: Machine) -> Limits:
    options = machine.options
    return Limits(
        fizzle_seconds=options.fizzle_seconds,
        heartbeat_file=options.heartbeat_file,
        heartbeat_seconds=options.heartbeat_seconds,
        idle_cpu_percent=options.idle_cpu_percent,
        idle_seconds=options.idle_seconds,
        disk_bytes=_disk_limit(machine),
    )


def _disk_limit(machine: Machine) -> int | None:
    """Bytes that a container's directories may use; None: a VM's disk has its size, or nothing is configured."""
    per_processor = machine.options.disk_gb_per_processor
    if not per_processor or machine.model in VM_MODELS:
        return None
    return per_processor * machine.processors * GB


def _directories(machine: Machine) -> list[Path]:
    """Its own, and others that its engine has told of."""
    told = read_details(machine).get(WRITES_TO, "")
    return [machine.directory, *(Path(path) for path in told.split(":") if path)]


def _heartbeat_file_time(machine: Machine) -> float | None:
    name = machine.options.heartbeat_file
    if not name:
        return None
    try:
        return files.untrusted_mtime(machine.directory / "joboutputs", name)
    except (FileNotFoundError, files.Unreadable):
        return None


def _note_activity(slot: Slot, machine: Machine) -> None:
    """Recent CPU use that isn't below the limit counts until it was measured."""
    limit, percent = machine.options.idle_cpu_percent, machine.cpu_percent
    if limit is not None and percent is not None and machine.sample is not None and percent >= limit:
        slot.busy_time = machine.sample[0]
