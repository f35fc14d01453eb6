"""How a machine begins: its context, its directory, its slot, then the engine."""

from __future__ import annotations

import logging
import uuid as uuids

import vac
from vac.config.machinetype import VM_MODELS, Machinetype
from vac.context import user_data
from vac.drivers.base import CreationFailed, EngineState, MachineSpec
from vac.drivers.messages import Created, CreationRefused
from vac.drivers.processes import account
from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.slots import Slot
from vac.host.privileges import unprivileged_user
from vac.machines import creation
from vac.machines.layout import slot_address, slot_number
from vac.scheduling.model import Create

log = logging.getLogger(__name__)


class Creation:
    """Makes the machines that were decided on; the engine's answers come back to created() and refused()."""

    def __init__(self, floor: Floor, ending: Ending) -> None:
        self.floor = floor
        self.ending = ending

    def begin(self, order: Create) -> bool:
        """Make one machine's directory and tell the engine; False if it can't be done, and why is kept."""
        machinetype = self.floor.configuration.machinetypes[order.machinetype]
        slot = self.floor.slots.lowest_free()
        if slot is None:
            return False
        try:
            self._begin(slot, machinetype, order)
        except (user_data.ContextError, CreationFailed, OSError) as problem:
            slot.clear(None)
            self.floor.creation_failed(machinetype.name, str(problem))
            return False
        log.info("%s (%s): creating it: %s", slot.name, machinetype.name, order.reason)
        return True

    def _begin(self, slot: Slot, machinetype: Machinetype, order: Create) -> None:
        state, settings = self.floor.state, self.floor.settings
        files = state.machinetype_files(machinetype.pipe or machinetype.name)
        uuid = str(uuids.UUID(int=self.floor.rng.getrandbits(128), version=4))
        content = user_data.make_user_data(
            machinetype, settings, name=slot.name, uuid=uuid, version=vac.__version__, files_dir=files
        )
        machine = creation.create(
            state,
            machinetype,
            settings,
            name=slot.name,
            uuid=uuid,
            processors=order.processors,
            shutdown_time=int(order.shutdown_time),
            now=self.floor.clock(),
            user_data=content,
            access=self._access(machinetype),
            ip=self._address(slot, machinetype),
            root_public_key=self._root_key() if machinetype.machine_model in VM_MODELS else None,
        )
        slot.clear(machine)
        slot.creating = True
        self.floor.changed = True
        self.floor.engine_of(machinetype.machine_model).create(
            MachineSpec(
                name=slot.name,
                uuid=uuid,
                machinetype=machinetype,
                settings=settings,
                processors=order.processors,
                memory_bytes=settings.mb_per_processor * order.processors * 1024 * 1024,
                directory=machine.directory,
                files=files,
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

    def created(self, slot: Slot, answer: Created) -> None:
        """The engine has made it: it runs from now on."""
        machine = slot.machine
        if machine is None or machine.uuid != answer.uuid:
            return
        slot.creating = False
        slot.known_since = slot.seen_alive_time = self.floor.clock()
        slot.engine_state = EngineState.RUNNING
        if machine.started_time is None and self.floor.mark_started(machine, answer.time):
            log.info("%s (%s): started", machine.name, machine.machinetype)
        self.floor.creation_succeeded(machine)

    def refused(self, slot: Slot, answer: CreationRefused) -> None:
        """The engine hasn't. If it couldn't be asked, the next observation tells whether there is a machine."""
        machine = slot.machine
        if machine is None or machine.uuid != answer.uuid:
            return
        slot.creating = False
        slot.known_since = self.floor.clock()
        if answer.unavailable:
            log.warning(
                "%s (%s): not known whether it was created: %s", slot.name, machine.machinetype, answer.reason
            )
        else:
            self.ending.discard(slot, answer.reason)
