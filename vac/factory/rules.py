"""The rules for running machines, asked when time may have changed the answer."""

from __future__ import annotations

from vac.drivers.base import EngineState
from vac.factory.ending import Ending
from vac.factory.floor import Floor
from vac.factory.slots import Slot
