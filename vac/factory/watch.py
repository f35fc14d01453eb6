"""Conclusions from engines' listings, and the rules that end running machines."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from vac.background import BackgroundWork, Outcome
from vac.clock import Moment
from vac.config.machinetype import VM_MODELS
from vac.drivers.base import WRITES_TO, EngineState, Observed
from vac.drivers.engine import Observation
from vac.factory.effects import Effects
from vac.factory.state import FactoryState, ObservedState, Slot
from vac.host.facts import EnergyMeter
from vac.host.probes import MEASURE_SECONDS, DiskUse, measure_disk
from vac.lifecycle.phases import Running, SetAside, Starting, StopOrder, Uncertain
from vac.lifecycle.table import (
    Listed,
    ListedAbsent,
    ListedAlive,
    ListedEnded,
    ListedHalfMade,
    StopOrdered,
)
from vac.machines import files, outputs
from vac.machines.machine import Machine

LEAST_SECONDS = 1.0
"""Between two rounds of the rules, whatever the deadlines are."""
LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 30.0, 300.0
"""Between two measurements of a machine's disk use."""
MEASURE_PART = 0.001
"""Between these limits, measuring one machine may take this part of the time."""
UNMEASURED_SECONDS = 3600.0
"""A machine with a disk limit may have more files than can be counted in time for so long."""
GB = 1000**3
_STIMULI: Mapping[EngineState, type[Listed]] = {
    EngineState.RUNNING: ListedAlive,
    EngineState.PAUSED: ListedAlive,
    EngineState.ENDED: ListedEnded,
    EngineState.HALF_MADE: ListedHalfMade,
}
_NEVER_RAN = (ListedAbsent, ListedHalfMade)
_FAULTS_OF_THE_HOST = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Listings that say so of a machine whose start nobody saw, unless it has left something in its joboutputs."""

log = logging.getLogger(__name__)


class Watcher:
    """Conclusions from listings. Machines that are this factory's by name but in no slot are *foreign*."""

    def __init__(self, state: FactoryState, effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self._foreign: dict[str, dict[str, str]] = {}
        """By engine, what it listed last that is foreign: names by uuid."""

    def observed(self, seen: Observation) -> None:
        """Take in one listing of one engine."""
        listed = {machine.uuid: machine for machine in seen.machines}
        for slot in self.state.slots_of(seen.engine):
            assert slot.machine is not None
            found = listed.pop(slot.machine.uuid, None)
            self._note(slot, slot.machine, found, seen)
            self._slot(slot, found, seen)
        self._doubt_unknown(seen.engine, listed)
        if self.state.doubt is None:
            self.effects.account_for_orphans(seen.engine, listed)
            self._remove_foreign(seen.engine, listed)

    def _slot(self, slot: Slot, found: Observed | None, seen: Observation) -> None:
        machine = slot.machine
        assert machine is not None
        if seen.asked_time < slot.phase.since or (found is None and self._may_be_elsewhere(machine)):
            return
        stimulus: type[Listed] = ListedAbsent
        if found is not None:
            stimulus = _STIMULI[found.state]
            slot.observed.usage = found.usage
            if found.state is not slot.observed.engine_state:
                slot.observed.engine_state = found.state
                self.state.changed = True
        if stimulus in _NEVER_RAN and isinstance(slot.phase, Uncertain) and outputs.has_any(machine):
            stimulus = ListedEnded
        self.effects.handle(slot, stimulus(seen.asked_time))

    def _may_be_elsewhere(self, machine: Machine) -> bool:
        """Return True if this listing may be another factory's than the machine's, so that it isn't in it."""
        doubts = set(self.state.doubts)
        if doubts == {"configuration"}:
            return machine.settings.factory_name != self.state.settings.factory_name
        return bool(doubts)

    def _note(self, slot: Slot, machine: Machine, found: Observed | None, seen: Observation) -> None:
        """Keep what the engine has told of a machine for people and incident teams."""
        state, now, uuid = self.state, self.state.clock.unix(), machine.uuid
        if found is not None and (details := found.details) != slot.observed.details:
            text = f"{machine.name}: details from its engine can't be written"
            if state.written(
                f"details {uuid}", text, lambda: outputs.note_details(state.dir, machine, details)
            ):
                slot.observed.details = details
        if ends := seen.contacts.get(uuid):
            text = f"{machine.name}: its connections can't be written"
            state.written(
                f"contacts {uuid}", text, lambda: outputs.note_contacts(state.dir, machine, ends, now)
            )

    def released(self, engine: str, uuid: str) -> None:
        """Note that the engine has released this machine, wherever it was."""
        if self._foreign.get(engine, {}).pop(uuid, None) is not None:
            self.state.changes.clear(f"foreign {uuid}")
            self._note_foreign()

    def _doubt_unknown(self, engine: str, listed: Mapping[str, Observed]) -> None:
        """Doubt that this is the right state_dir if it was empty and yet the engine has machines of this name."""
        state = self.state
        unknown = [one.name for uuid, one in listed.items() if uuid not in state.own_uuids]
        text = None
        if state.began_empty and unknown and not state.dir.remove_unknown.exists():
            text = (
                f"{engine} has machines of {state.settings.factory_name} ({', '.join(sorted(unknown)[:5])}), but "
                f"{state.dir.root} knew of none: if it is the wrong directory (not mounted?), put it right and start "
                f"vacd again; if those machines are to be removed, make the file "
                f"{state.dir.remove_unknown}"
            )
        state.doubts_about(f"unknown {engine}", text)

    def _remove_foreign(self, engine: str, listed: Mapping[str, Observed]) -> None:
        """Remove foreign machines that two listings in a row have shown, unless their slot's machine isn't known."""
        before = self._foreign.get(engine, {})
        self._foreign[engine] = {uuid: found.name for uuid, found in listed.items()}
        for uuid, name in self._foreign[engine].items():
            slot = self.state.slots.get(name)
            if uuid in before and not (slot and isinstance(slot.phase, (Starting, SetAside))):
                text = f"{name} ({uuid}) is in no slot: removing it"
                self.state.changes.say(f"foreign {uuid}", text, logging.WARNING)
                self.state.engines[engine].destroy(name, uuid)
        for uuid in before.keys() - listed.keys():
            self.state.changes.clear(f"foreign {uuid}")
        self._note_foreign()

    def _note_foreign(self) -> None:
        """Keep slots free whose name a foreign machine has: an engine has no two machines of one name."""
        now, before = self.state.clock.boot(), self.state.foreign
        names = {name for found in self._foreign.values() for name in found.values()}
        self.state.changed |= bool(before.keys() - names)
        self.state.foreign = {name: before.get(name, now) for name in names}


class Rules:
    """Rules that end machines which are late, stuck, idle or too large."""

    def __init__(self, state: FactoryState, effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self._disk: BackgroundWork[DiskUse] = state.background(
            "disk", self.measured, deadline_seconds=MEASURE_SECONDS
        )
        self.next_time: float | None = None

    def check(self, now: Moment) -> None:
        """Ask the rules for every machine that is seen to run, if it is time to."""
        if self.next_time is not None and now.boot < self.next_time:
            return
        times = [time for slot in self.state.slots if (time := self._check(slot, now)) is not None]
        self.next_time = max(min(times), now.boot + LEAST_SECONDS) if times else None

    def look_again(self) -> None:
        """Ask at once: there is news of machines."""
        self.next_time = self.state.clock.boot()

    def measure(self) -> None:
        """Have disk use measured of those machines for which it's time; once a cycle."""
        now = self.state.clock.boot()
        for slot in self.state.slots:
            machine, observed = slot.machine, slot.observed
            if machine is None or not slot.running or _disk_limit(machine) is None:
                continue
            if observed.measured_time is None or now - observed.measured_time >= observed.measure_seconds:
                observed.measured_time = now
                self._disk.start(
                    machine.uuid, functools.partial(measure_disk, machine.uuid, _directories(machine))
                )

    def measured(self, outcome: Outcome[DiskUse]) -> None:
        """Take in a measurement. Unknown is not too much, unless it is the machine that makes du take too long."""
        if outcome.value is None:
            reason = "du can't even be killed" if outcome.late else outcome.failure
            log.info("disk use of machine %s can't be measured: %s", outcome.key, reason)
            return
        for slot in self.state.slots:
            if slot.machine is not None and slot.machine.uuid == outcome.key:
                observed, used_bytes = slot.observed, outcome.value.used_bytes
                if used_bytes is not None:
                    observed.disk_used_bytes, observed.unmeasured_time = used_bytes, None
                elif observed.unmeasured_time is None:
                    observed.unmeasured_time = self.state.clock.boot()
                    text = "%s: du takes too long to measure its disk use; ended if that goes on for %.0f minutes"
                    log.warning(text, slot.name, UNMEASURED_SECONDS / 60)
                pause_seconds = outcome.value.seconds / MEASURE_PART
                observed.measure_seconds = min(max(LEAST_PAUSE_SECONDS, pause_seconds), MOST_PAUSE_SECONDS)
        self.look_again()

    def _check(self, slot: Slot, now: Moment) -> float | None:
        """Judge one machine; return when to ask again. All times are in seconds since boot."""
        machine, observed = slot.machine, slot.observed
        if machine is None or machine.started_time is None or not isinstance(slot.phase, Running):
            return None
        if observed.engine_state is None or self.state.engine_of(machine.model).problem():
            return None
        least_percent, percent, sample = machine.kind.idle_cpu_percent, machine.cpu_percent, machine.sample
        if least_percent is not None and percent is not None and sample and percent >= least_percent:
            observed.busy_time = now.boot - machine.age(now) + sample[0]
        _look_at_heartbeat_file(machine, observed, now)
        verdict = judge(machine, observed, self.state.started.boot, now)
        if not isinstance(verdict, str):
            return verdict
        self.effects.handle(slot, StopOrdered(StopOrder(verdict)))
        return None


def judge(machine: Machine, observed: ObservedState, factory_started_time: float, now: Moment) -> str | float:
    """Return the message of the first rule that a running machine breaks; else when time alone may change that.

    The factory's own start delays rules about what it must have seen. Times are seconds since boot.
    """
    rules = [*_rules(machine, observed, factory_started_time, now.boot - machine.age(now))]
    for due_time, message in rules:
        if now.boot >= due_time:
            return message
    return min(due_time for due_time, _ in rules)


def _rules(
    machine: Machine, observed: ObservedState, factory_started_time: float, started_time: float
) -> Iterator[tuple[float, str]]:
    """Yield the times from which shutdown messages apply, with these. An option that is 0 or None makes no rule."""
    kind, disk_bytes = machine.kind, _disk_limit(machine)
    if observed.engine_state is EngineState.PAUSED:
        yield started_time, "700 Paused"
    yield started_time + machine.shutdown_time - (machine.started_time or 0.0), "100 Shutdown time reached"
    if disk_bytes and observed.disk_used_bytes is not None and observed.disk_used_bytes > disk_bytes:
        yield started_time, "700 Disk limit"
    if disk_bytes and observed.unmeasured_time is not None:
        yield observed.unmeasured_time + UNMEASURED_SECONDS, "700 Disk use takes too long to measure"
    if kind.heartbeat_file and kind.fizzle_seconds > 0:
        earliest = max(started_time, factory_started_time) + kind.fizzle_seconds
        if observed.heartbeat_file is None:
            yield earliest, "700 Heartbeat file not created"
        elif kind.heartbeat_seconds > 0:
            late = observed.heartbeat_file[1] + kind.heartbeat_seconds
            yield max(earliest, late), "700 Heartbeat file not updated"
    if kind.idle_cpu_percent is not None:
        fizzled_time = started_time + kind.fizzle_seconds
        since = max(fizzled_time, factory_started_time, observed.busy_time or 0.0)
        yield since + kind.idle_seconds, "700 Idle"


def _look_at_heartbeat_file(machine: Machine, observed: ObservedState, now: Moment) -> None:
    """Note when the machine last wrote its heartbeat_file, however the wall clock was set meanwhile."""
    name = machine.kind.heartbeat_file
    if not name:
        return
    looked, observed.heartbeat_checked_time = observed.heartbeat_checked_time, now.boot
    try:
        mtime = files.untrusted_mtime(machine.directory / "joboutputs", name)
    except (FileNotFoundError, files.Unreadable) as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _FAULTS_OF_THE_HOST:
            observed.heartbeat_file = None
        return
    if observed.heartbeat_file is None or observed.heartbeat_file[0] != mtime:
        most = machine.age(now) if looked is None else now.boot - looked
        observed.heartbeat_file = (mtime, now.boot - min(max(0.0, now.unix - mtime), most))


class EnergyShares:
    """Divides this host's energy among its machines by the CPU time that they use."""

    def __init__(self, state: FactoryState) -> None:
        self.state = state
        self.meter = EnergyMeter()
        self._cpu_seconds: dict[str, float] = {}
        """By uuid, what had been used at the last call."""

    def divide(self) -> None:
        """Add to each machine its part of what has been used since the last call; once a cycle."""
        running = {
            slot.machine.uuid: slot.machine for slot in self.state.slots if slot.running and slot.machine
        }
        used, before = self.meter.read(), self._cpu_seconds
        self._cpu_seconds = {uuid: machine.cpu_seconds for uuid, machine in running.items()}
        if used is None:
            return
        self.state.joules = (self.state.joules or 0.0) + used[0]
        spent = {uuid: max(0.0, now - before.get(uuid, 0.0)) for uuid, now in self._cpu_seconds.items()}
        whole = max(used[1], sum(spent.values()))
        for uuid, machine in running.items() if whole else ():
            machine.joules = (machine.joules or 0.0) + used[0] * spent[uuid] / whole


def _disk_limit(machine: Machine) -> int | None:
    """Return the bytes that a container's directories may use; None: a VM's disk has its size, or no limit is set."""
    per_processor = machine.kind.disk_gb_per_processor
    if not per_processor or machine.model in VM_MODELS:
        return None
    return per_processor * machine.processors * GB


def _directories(machine: Machine) -> list[Path]:
    """Return the machine's own directory and others that its engine has told of."""
    told = outputs.read_details(machine).get(WRITES_TO, "")
    return [machine.directory, *(Path(path) for path in told.split(":") if path)]
