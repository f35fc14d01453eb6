"""How a machine begins: its context, in the background; its directory, its slot, then the engine."""

from __future__ import annotations

import logging
import uuid as uuids
from pathlib import Path

from vac.config.load import Configuration
from vac.config.machinetype import VM_MODELS, Machinetype
from vac.context.user_data import ContextRequest
from vac.drivers.base import CreationFailed, EngineState, MachineSpec
from vac.drivers.engine import ActionDone
from vac.drivers.processes.launch_plan import account
from vac.factory.contexts import ContextFailed, ContextMade, Contexts
from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.slots import Begun, Slot
from vac.host.privileges import unprivileged_user
from vac.machines import creation
from vac.machines.layout import slot_address, slot_number
from vac.machines.status import Happening
from vac.scheduling.model import Create

LONGEST_CONTEXT_SECONDS = 300.0
"""A context that takes longer isn't waited for: another machine may have the slot."""

log = logging.getLogger(__name__)


class Creation:
    """Makes the machines that were decided on; the engine's answers come back to created() and refused()."""

    def __init__(self, floor: Floor, ending: Ending, contexts: Contexts) -> None:
        self.floor = floor
        self.ending = ending
        self.contexts = contexts

    def begin(self, order: Create) -> None:
        """Take a slot for one machine and have its context made; nothing is on disk before that has come."""
        machinetype = self.floor.configuration.machinetypes[order.machinetype]
        slot = self.floor.slots.lowest_free()
        if slot is None:
            return
        now = self.floor.clock()
        uuid = str(uuids.UUID(int=self.floor.rng.getrandbits(128), version=4))
        slot.begun = Begun(order, uuid, machinetype, now)
        directory = self.floor.state.machinetype(machinetype.pipe or machinetype.name)
        settings, end = self.floor.settings, order.shutdown_time
        self.contexts.start(ContextRequest(machinetype, settings, slot.name, uuid, directory, now, end))

    def context_made(self, message: ContextMade, *, draining: bool) -> None:
        """Make the machine's directory and tell the engine, unless it isn't wanted any more."""
        slot, begun = self._begun(message.name, message.uuid)
        if slot is None or begun is None:
            return
        slot.begun = None
        machinetype = begun.machinetype
        if draining or not slot.free or not self._still_wanted(machinetype):
            log.info("%s (%s): not created, for things have changed", slot.name, machinetype.name)
            self.floor.changed = True
            return
        try:
            self._make(slot, machinetype, begun, message.user_data)
        except (CreationFailed, OSError) as problem:
            slot.clear(None)
            self.floor.creation_failed(machinetype.name, str(problem), begun.time)
        else:
            log.info("%s (%s): creating it: %s", slot.name, machinetype.name, begun.order.reason)

    def _still_wanted(self, machinetype: Machinetype) -> bool:
        """Does the configuration say what it said when this machine was decided on?"""
        same = self.floor.configuration.machinetypes.get(machinetype.name) == machinetype
        return same and not self.floor.settings.draining and self.floor.configuration_problem is None

    def context_failed(self, message: ContextFailed) -> None:
        """There will be no machine."""
        slot, begun = self._begun(message.name, message.uuid)
        if slot is not None and begun is not None:
            slot.begun = None
            self.floor.creation_failed(begun.order.machinetype, message.reason, begun.time)

    def check(self, now: float) -> None:
        """Don't wait for a context any longer that takes too long."""
        for slot in self.floor.slots:
            begun = slot.begun
            if begun is not None and now - begun.time > LONGEST_CONTEXT_SECONDS:
                slot.begun = None
                reason = f"its user_data was not there after {LONGEST_CONTEXT_SECONDS:.0f} s"
                self.floor.creation_failed(begun.order.machinetype, reason, begun.time)

    def _begun(self, name: str, uuid: str) -> tuple[Slot | None, Begun | None]:
        """The slot that waits for the context of the machine with this uuid, and for what it waits."""
        slot = self.floor.slots.get(name)
        begun = slot.begun if slot is not None else None
        return (slot, begun) if begun is not None and begun.uuid == uuid else (None, None)

    def _make(self, slot: Slot, machinetype: Machinetype, begun: Begun, content: bytes) -> None:
        state, settings, order = self.floor.state, self.floor.settings, begun.order
        machine = creation.create(
            state,
            machinetype,
            settings,
            name=slot.name,
            uuid=begun.uuid,
            processors=order.processors,
            shutdown_time=int(order.shutdown_time),
            now=self.floor.clock(),
            user_data=content,
            access=self._access(machinetype),
            ip=self._address(slot, machinetype),
            root_public_key=self._root_key() if machinetype.machine_model in VM_MODELS else None,
        )
        slot.clear(machine)
        slot.creating, slot.begun_time = True, begun.time
        self.floor.changed = True
        self.floor.engine_of(machinetype.machine_model).create(
            MachineSpec(
                name=slot.name,
                uuid=begun.uuid,
                machinetype=machinetype,
                settings=settings,
                processors=order.processors,
                memory_bytes=settings.mb_per_processor * order.processors * 1024 * 1024,
                directory=machine.directory,
                files=state.machinetype_files(machinetype.pipe or machinetype.name),
                address=self._address(slot, machinetype),
                hidden=_hidden(self.floor.configuration),
            )
        )

    def _access(self, machinetype: Machinetype) -> creation.Access:
        if machinetype.machine_model == "docker":
            reader = unprivileged_user()
            return creation.Access(any_user=True, reader_gid=reader.pw_gid if reader else None)
        if machinetype.machine_model in VM_MODELS:
            writer = unprivileged_user()
            return creation.Access(writer.pw_uid, writer.pw_gid) if writer else creation.Access()
        user = account(self.floor.settings)
        return creation.Access(user.pw_uid, user.pw_gid)

    def _address(self, slot: Slot, machinetype: Machinetype) -> str | None:
        number = slot_number(self.floor.settings.factory_name, slot.name)
        return slot_address(number) if machinetype.machine_model in VM_MODELS and number is not None else None

    def _root_key(self) -> bytes | None:
        """The ssh key offered to VMs; None if the site has none. A broken one holds no machine up."""
        path = self.floor.settings.root_public_key
        try:
            key = path.read_bytes()
            problem = "it holds a private key" if b"PRIVATE KEY" in key else None
        except FileNotFoundError:
            return None
        except OSError as error:
            key, problem = b"", error.strerror
        if problem is None:
            return key
        text = f"root_public_key {path} is not offered to VMs: {problem}"
        self.floor.changes.say("root_public_key", text, logging.WARNING)
        return None

    def created(self, slot: Slot, answer: ActionDone) -> None:
        """The engine has made it: it runs from now on."""
        machine = slot.machine
        if machine is None:
            return
        slot.creating = False
        slot.known_since = slot.seen_alive_time = self.floor.clock()
        slot.engine_state = EngineState.RUNNING
        if machine.started_time is None and self.floor.mark_started(machine, answer.time):
            log.info("%s (%s): started", machine.name, machine.machinetype)
        begun = machine.created_time if slot.begun_time is None else slot.begun_time
        self.floor.tallies.add(Happening.CREATION, machine.model, "created", self.floor.clock() - begun)
        self.floor.creation_succeeded(machine)

    def refused(self, slot: Slot, answer: ActionDone) -> None:
        """The engine hasn't. If it couldn't be asked, the next observation tells whether there is a machine."""
        machine = slot.machine
        if machine is None:
            return
        slot.creating = False
        slot.known_since = self.floor.clock()
        if answer.unavailable:
            log.warning(
                "%s (%s): not known whether it was created: %s",
                slot.name,
                machine.machinetype,
                answer.problem,
            )
        else:
            self.ending.discard(slot, answer.problem or "")


def _hidden(configuration: Configuration) -> tuple[Path, ...]:
    """What holds a VO's secrets though other machines' user may be able to read it: the configuration, and tokens."""
    tokens = (one.token_dir for one in configuration.machinetypes.values())
    return (*(Path(file).absolute() for file in configuration.files), *filter(None, tokens))
