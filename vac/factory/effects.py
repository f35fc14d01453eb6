"""Carries out what the table of vac.lifecycle says, through engines, machines' directories and accounting."""

from __future__ import annotations

import logging
import math
import uuid as uuids
from collections.abc import Callable, Collection
from pathlib import Path

from vac import background
from vac.accounting import history
from vac.background import BackgroundWork
from vac.clock import Moment
from vac.config.load import Configuration
from vac.config.machinetype import VM_MODELS, Machinetype
from vac.context.user_data import ContextRequest, UserData, make_user_data
from vac.drivers.base import CreationFailed, MachineSpec, Usage
from vac.drivers.engine import engine_name
from vac.drivers.processes.launch_plan import account
from vac.factory.state import FactoryState, Slot
from vac.host.privileges import unprivileged_user
from vac.lifecycle.phases import PendingCreation, Phase, Preparing, Releasing, Starting, Stopping, Stuck
from vac.lifecycle.table import (
    ContextFailed,
    ContextReady,
    Decided,
    DirectoryFailed,
    EndLowered,
    EndWritten,
    Listed,
    NotWanted,
    ReleaseFailed,
    Started,
    Step,
    Stimulus,
)
from vac.lifecycle.table import step as take_step
from vac.machines import creation
from vac.machines import machine as machines
from vac.machines import slots as slot_files
from vac.machines.files import TrashCollector
from vac.machines.layout import slot_address, slot_number
from vac.machines.machine import Machine
from vac.machines.outputs import set_shutdown_message
from vac.machines.status import CountedEvent, Creation
from vac.scheduling.backoff import code_group, says_no_work
from vac.scheduling.model import Create, MachineEnd
from vac.text import without_url_secrets
from vac.vacquery.snapshot import VacMon

RENEW_SECONDS = 30.0
"""Heartbeat files are written at most this often, however often events cause a listing."""
WATCHED_SECONDS = 150.0
"""A machine that was listed alive so recently, by an engine that has answered since, has ended just now."""

MOST_CONTEXTS = 1000
"""Contexts made at once: as many as a node may have slots, since any of their servers may be slow."""

log = logging.getLogger(__name__)


class Effects:
    """Application of stimuli to slots, and what the effects do."""

    def __init__(self, state: FactoryState, vacmon: VacMon) -> None:
        self.state = state
        self.trash = TrashCollector(state.dir.tmp, state.spawn)
        self.vacmon = vacmon
        self._contexts: BackgroundWork[UserData] = state.background(
            "context", self._context_done, at_once=MOST_CONTEXTS
        )

    def handle(self, slot: Slot, stimulus: Stimulus) -> None:
        """Apply a stimulus to a slot."""
        taken = take_step(slot.phase, stimulus, self.state.clock.boot())
        slot.phase = taken.after
        if type(taken.before) is not type(taken.after):
            self.state.changed = True
        for effect in taken.effects:
            carry_out: Callable[[Slot, Step], Stimulus | None] = getattr(self, f"_{effect.name.lower()}")
            follows = carry_out(slot, taken)
            if follows is not None:
                self.handle(slot, follows)
                return

    def begin(self, slot: Slot, order: Create) -> None:
        """Give the slot a machine that has been decided on."""
        machinetype = self.state.configuration.machinetypes[order.machinetype]
        uuid = str(uuids.UUID(int=self.state.rng.getrandbits(128), version=4))
        self.handle(slot, Decided(PendingCreation(order, uuid, machinetype, self.state.clock.boot())))

    def account_for_orphans(self, engine: str, listed: Collection[str]) -> None:
        """Write the end of machines that are in no slot, once their engine doesn't list their uuids any more."""
        for machine in list(self.state.orphans):
            if engine_name(machine.model) != engine or machine.uuid in listed:
                continue
            if self._finish(machine, Usage(), self.state.clock.moment(), watched=False):
                self.state.orphans.remove(machine)
                log.warning("%s: was in no slot; its end is written", machine.directory.name)

    # Beginning

    def _prepare_context(self, slot: Slot, taken: Step) -> None:
        assert isinstance(taken.after, Preparing)
        pending, settings = taken.after.pending, self.state.settings
        machinetype, end = pending.machinetype, pending.order.shutdown_time
        directory = self.state.dir.machinetype(machinetype.pipe or machinetype.name)
        now = self.state.clock.unix()
        wanted = ContextRequest(machinetype, settings, slot.name, pending.uuid, directory, now, end)
        self._contexts.start(pending.uuid, lambda: make_user_data(wanted))

    def _context_done(self, made: background.Outcome[UserData]) -> None:
        for slot in self.state.slots:
            if isinstance(slot.phase, Preparing) and slot.phase.pending.uuid == made.key:
                machinetype = slot.phase.pending.machinetype
                if made.value is None:
                    self.handle(slot, ContextFailed(made.failure))
                    return
                place, mistakes = without_url_secrets(machinetype.user_data or ""), made.value.mistakes
                text = f"{machinetype.name}: user_data {place}: {mistakes}" if mistakes else None
                self.state.changes.tell(f"user_data {machinetype.name}", text)
                wanted = self._wanted(slot, machinetype)
                self.handle(slot, ContextReady(made.value.content) if wanted else NotWanted())
                return

    def _wanted(self, slot: Slot, machinetype: Machinetype) -> bool:
        """Return False if things have changed since the machine was decided on."""
        state = self.state
        refused = state.drain or state.settings.draining or state.configuration_problem or state.doubt
        unchanged = state.configuration.machinetypes.get(machinetype.name) == machinetype
        usable = machinetype.name not in state.configuration.unusable
        return unchanged and usable and not refused and slot.name not in state.foreign

    def _make_directory(self, slot: Slot, taken: Step) -> Stimulus | None:
        assert isinstance(taken.after, Starting)
        assert isinstance(taken.stimulus, ContextReady)
        pending = taken.after.pending
        machinetype = pending.machinetype
        try:
            machine = creation.create(
                self.state.dir,
                pending,
                self.state.settings,
                name=slot.name,
                now=self.state.clock.moment(),
                user_data=taken.stimulus.user_data,
                access=self._access(machinetype),
                ip=self._address(slot, machinetype),
                root_public_key=self._root_key() if machinetype.machine_model in VM_MODELS else None,
            )
        except (CreationFailed, OSError) as problem:
            slot.put(None)
            return DirectoryFailed(str(problem))
        slot.put(machine)
        return None

    def _start(self, slot: Slot, taken: Step) -> None:
        assert isinstance(taken.after, Starting)
        machine, pending, settings = _machine(slot), taken.after.pending, self.state.settings
        machinetype, processors = pending.machinetype, pending.order.processors
        reason = pending.order.reason
        log.info("%s (%s): creating it, %s: %s", slot.name, machinetype.name, pending.uuid, reason)
        self.state.own_uuids.add(pending.uuid)
        self.state.engine_of(machinetype.machine_model).create(
            MachineSpec(
                name=slot.name,
                uuid=pending.uuid,
                machinetype=machinetype,
                settings=settings,
                processors=processors,
                memory_bytes=settings.mb_per_processor * processors * 1024 * 1024,
                directory=machine.directory,
                files=self.state.dir.machinetype_files(machinetype.pipe or machinetype.name),
                address=self._address(slot, machinetype),
                hidden=_hidden(self.state.configuration),
            )
        )

    def _access(self, machinetype: Machinetype) -> creation.Access:
        if machinetype.machine_model == "docker":
            reader = unprivileged_user()
            return creation.Access(any_user=True, reader_gid=reader.pw_gid if reader else None)
        if machinetype.machine_model in VM_MODELS:
            writer = unprivileged_user()
            return creation.Access(writer.pw_uid, writer.pw_gid) if writer else creation.Access()
        user = account(self.state.settings)
        return creation.Access(user.pw_uid, user.pw_gid)

    def _address(self, slot: Slot, machinetype: Machinetype) -> str | None:
        number = slot_number(self.state.settings.factory_name, slot.name)
        return slot_address(number) if machinetype.machine_model in VM_MODELS and number is not None else None

    def _root_key(self) -> bytes | None:
        """Return the ssh key offered to VMs; None if the site has none. A broken one holds no machine up."""
        path, key, problem = self.state.settings.root_public_key, None, None
        try:
            key = path.read_bytes()
            problem = "it holds a private key" if b"PRIVATE KEY" in key else None
        except OSError as error:
            problem = None if isinstance(error, FileNotFoundError) else error.strerror
        text = problem and f"root_public_key {path} is not offered to VMs: {problem}"
        self.state.changes.tell("root_public_key", text)
        return None if problem else key

    def _write_started(self, slot: Slot, taken: Step) -> None:
        machine, now = _machine(slot), self.state.clock.moment()
        if isinstance(taken.stimulus, Started):
            started = now.at(taken.stimulus.time)
            log.info("%s (%s): started", machine.name, machine.machinetype)
        else:
            age, told = machine.age_of_creation(now), slot.observed.usage.started_time
            started = Moment(machine.created_time, now.boot - age, now.boot_id)
            if told is not None and 0.0 <= now.unix - told <= age:
                started = now.at(now.boot - (now.unix - told))
            log.info("%s (%s): found started", machine.name, machine.machinetype)
        slot.observed.alive_time = now.boot if isinstance(taken.stimulus, Started) else None
        text = f"{machine.name}: its start can't be written"
        self.state.written(
            machine.uuid, text, lambda: machines.mark_started(self.state.dir, machine, started)
        )

    def _count_creation(self, slot: Slot, taken: Step) -> None:
        state, machine = self.state, _machine(slot)
        seconds = state.clock.boot() - self._begin(slot, taken.before)
        state.counters.add(CountedEvent.CREATION, machine.model, "created", seconds)
        state.failed.pop(machine.machinetype, None)
        state.changes.clear(f"create {machine.machinetype}")
        state.creation_error, state.reported = None, False
        made = Creation(machine.created_time, machine.machinetype, machine.name, machine.processors)
        state.created.appendleft(made)

    def _count_failure(self, slot: Slot, taken: Step) -> None:
        """Count a failed creation. One that an earlier process left undone is cleaned up: no error for people."""
        state, now, begin = self.state, self.state.clock.moment(), self._begin(slot, taken.before)
        if isinstance(taken.before, (Preparing, Starting)):
            machinetype = taken.before.pending.order.machinetype
        else:
            machinetype = _machine(slot).machinetype
        made = not isinstance(taken.before, Preparing) and not isinstance(taken.stimulus, DirectoryFailed)
        reason = f"{slot.name}: {taken.reason}" if made else taken.reason
        state.remember(MachineEnd(machinetype, now.at(begin).unix, None, now.unix, None), 0.0)
        kind = state.configuration.machinetypes.get(machinetype)
        model = kind.machine_model if kind else "unknown"
        state.counters.add(CountedEvent.CREATION, model, "failed", now.boot - begin)
        state.failed[machinetype] = Creation(now.unix, machinetype, reason=reason)
        state.changes.say(f"create {machinetype}", f"{machinetype}: not created: {reason}", logging.WARNING)
        if begin >= state.started.boot:
            state.creation_error, state.reported = f"{machinetype}: {reason}", False

    def _begin(self, slot: Slot, before: Phase) -> float:
        """Return when the creation was begun, in seconds since boot."""
        if isinstance(before, (Preparing, Starting)):
            return before.pending.begin
        now = self.state.clock.moment()
        return now.boot - _machine(slot).age_of_creation(now)

    def _report_unwanted(self, slot: Slot, taken: Step) -> None:
        assert isinstance(taken.before, Preparing)
        name = taken.before.pending.machinetype.name
        log.info("%s (%s): not created, for things have changed", slot.name, name)

    def _discard(self, slot: Slot, taken: Step) -> None:
        machine = _machine(slot)
        log.info("%s (%s): discarding %s: %s", machine.name, machine.machinetype, machine.uuid, taken.reason)
        key, text = f"discard {slot.name}", f"{machine.name}: its directory can't be discarded"
        if self.state.written(key, text, lambda: slot_files.discard(self.state.dir, machine)):
            self.trash.start()
        slot.put(None)

    # Running

    def _look(self, slot: Slot, taken: Step) -> None:
        self.state.engine_of(_machine(slot).model).request_observation()

    def _renew_heartbeat(self, slot: Slot, taken: Step) -> None:
        assert isinstance(taken.stimulus, Listed)
        slot.observed.alive_time = taken.stimulus.asked_time
        self.renew_heartbeat(slot, RENEW_SECONDS)

    def renew_heartbeat(self, slot: Slot, after_seconds: float = 0.0) -> None:
        """Write when the machine was last seen alive, if the last time is so long ago."""
        machine, alive_time = _machine(slot), slot.observed.alive_time
        if alive_time is None:
            return
        moment = self.state.clock.moment().at(alive_time)
        noted = machine.alive_seconds if machine.start_written else None
        if noted is not None and machine.age(moment) - noted < after_seconds:
            return
        self.state.written(
            f"heartbeat {machine.uuid}",
            f"{machine.name}: that it is alive can't be written",
            lambda: machines.renew_heartbeat(self.state.dir, machine, moment, slot.observed.usage),
        )

    def _lower_end(self, slot: Slot, taken: Step) -> None:
        """Lower the machine's shutdown time, but not to less than grace_secs from now."""
        assert isinstance(taken.stimulus, EndLowered)
        machine, now = _machine(slot), self.state.clock.moment()
        wanted, step = taken.stimulus.shutdown_time, machine.clock_step(now)
        if machine.shutdown_time + step <= wanted:
            return
        end = math.ceil(max(wanted, now.unix + self.state.settings.grace_secs))
        before = machine.shutdown_time

        def lower() -> None:
            if machines.lower_shutdown_time(self.state.dir, machine, end, step):
                machines.note_people(self.state.dir, machine)

        text = f"{machine.name}: its end can't be lowered"
        self.state.written(f"end {machine.uuid}", text, lower)
        if machine.shutdown_time < before:
            log.info("%s (%s): must end by %d", machine.name, machine.machinetype, machine.shutdown_time)
            self.state.changed = True

    # Ending

    def _write_message(self, slot: Slot, taken: Step) -> None:
        assert isinstance(taken.after, Stopping)
        machine, order = _machine(slot), taken.after.order

        def write() -> None:
            set_shutdown_message(self.state.dir, machine, order.message)
            if order.by_people:
                machines.note_people(self.state.dir, machine)

        self.state.written(machine.uuid, f"{machine.name}: why it is stopped can't be written", write)
        log.info("%s (%s): stopping it: %s", machine.name, machine.machinetype, order.message)

    def _stop(self, slot: Slot, taken: Step) -> None:
        machine = _machine(slot)
        self.state.engine_of(machine.model).stop(machine.name, machine.uuid)

    def _account(self, slot: Slot, taken: Step) -> Stimulus | None:
        machine, alive_time, now = _machine(slot), slot.observed.alive_time, self.state.clock.moment()
        unobserved = self.state.unobserved_times.get(engine_name(machine.model), -math.inf)
        if slot.observed.ended_time is None:
            slot.observed.ended_time = now.boot
        ended, usage = slot.observed.ended_time, slot.observed.usage
        if alive_time is not None and not machine.final:
            machine.alive_seconds = max(machines.last_seen(machine), machine.age(now.at(alive_time)))
        watched = alive_time is not None and unobserved < alive_time and ended - alive_time < WATCHED_SECONDS
        return EndWritten() if self._finish(machine, usage, now.at(ended), watched=watched) else None

    def _finish(self, machine: Machine, usage: Usage, now: Moment, *, watched: bool) -> bool:
        return self.state.written(
            f"finish {machine.uuid or machine.directory.name}",
            f"{machine.name}: its end can't be written",
            lambda: history.finish(self.state.dir, machine, usage, now, watched=watched),
        )

    def _remember_end(self, slot: Slot, taken: Step) -> None:
        machine = _machine(slot)
        end = slot_files.outcome(machine, machine.clock_step(self.state.clock.moment()))
        for key in [key for key in self.state.troubles if key.endswith(machine.uuid)]:
            self.state.trouble(key, None)
        self.state.remember(end, machine.kind.fizzle_seconds)
        lived = end.ended_time - (end.started_time or end.ended_time)
        words = f"{end.message or 'no shutdown message'}, after {lived:.0f} s"
        if says_no_work(end.message):
            words += "; that is how long it took to find no work (see fizzle_seconds)"
        log.info("%s (%s): ended: %s", machine.name, machine.machinetype, words)
        self.state.counters.add(CountedEvent.END, machine.machinetype, code_group(end.message), lived)
        self.vacmon.tell(self.state.settings.vacmon_hostport, machine.directory)

    def _release(self, slot: Slot, taken: Step) -> None:
        machine = _machine(slot)
        self.state.engine_of(machine.model).destroy(machine.name, machine.uuid)

    def _count_release(self, slot: Slot, taken: Step) -> None:
        assert isinstance(taken.before, (Releasing, Stuck))
        outcome = "failed" if isinstance(taken.stimulus, ReleaseFailed) else "destroyed"
        if isinstance(taken.before, Stuck) and outcome == "destroyed":
            log.info("%s: what was left of its machine is gone", slot.name)
        seconds = self.state.clock.boot() - taken.before.begin
        self.state.counters.add(CountedEvent.DESTRUCTION, _machine(slot).model, outcome, seconds)

    def _report_stuck(self, slot: Slot, taken: Step) -> None:
        log.warning("%s: what is left of its machine can't be removed; its slot stays taken", slot.name)

    def _give_back_scratch(self, slot: Slot, taken: Step) -> None:
        """Discard what was the machine's own disk; what fails is tried again at the next listing."""
        machine = slot.machine
        if machine is None:
            return
        problem = None
        try:
            if slot_files.discard_scratch(self.state.dir, machine.directory):
                self.trash.start()
        except OSError as error:
            problem = f"{machine.name}: its scratch space can't be removed: {error}"
        self.state.changes.tell(f"scratch {machine.uuid}", problem)


def _machine(slot: Slot) -> Machine:
    assert slot.machine is not None, f"{slot.name} has no machine in phase {slot.phase}"
    return slot.machine


def _hidden(configuration: Configuration) -> tuple[Path, ...]:
    """Return files with VOs' secrets that other machines' user may be able to read: configuration and tokens."""
    tokens = (one.token_dir for one in configuration.machinetypes.values())
    return (*(Path(file).absolute() for file in configuration.files), *filter(None, tokens))
