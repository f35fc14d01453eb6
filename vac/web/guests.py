"""Who asks: a VM is known by its address, which is its slot's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vac.config.machinetype import VM_MODELS
from vac.machines import files
from vac.machines.joboutputs import FILE_LIMIT_BYTES
from vac.machines.layout import StateDir, address_slot, slot_name
from vac.machines.slots import read_slot


@dataclass(frozen=True)
class Guest:
    """A VM that has not ended."""

    name: str
    """Its host name."""
    address: str
    machinetype: str
    model: str
    factory_name: str
    directory: Path

    def read(self, name: str, below: str = "") -> bytes | None:
        """The content of a file in the machine's directory, or in one below that; None if there is none.

        What a machine has stored is never too large for it.
        """
        try:
            return files.read_untrusted(self.directory / below, name, FILE_LIMIT_BYTES)
        except (FileNotFoundError, files.Unreadable):
            return None

    def names(self, below: str) -> list[str]:
        """What files there are in a directory of the machine's."""
        try:
            return [path.name for path in (self.directory / below).iterdir()]
        except OSError:
            return []


@dataclass(frozen=True)
class Guests:
    """The VMs of one factory."""

    state: StateDir
    factory_name: str

    def find(self, address: str) -> Guest | None:
        """The VM that has this address; None if there is none, or it has ended."""
        number = address_slot(address)
        if number is None:
            return None
        name = slot_name(self.factory_name, number)
        slot = read_slot(self.state.slot(name))
        if slot is None or slot.model not in VM_MODELS:
            return None
        directory = self.state.machine(slot.directory)
        if not directory.is_dir() or (directory / "finished").exists():
            return None
        return Guest(name, address, slot.directory.machinetype, slot.model, self.factory_name, directory)
