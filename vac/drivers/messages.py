"""What an engine's threads tell the factory's loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from vac.drivers.base import Observed, Usage
from vac.host.connections import Contact


@dataclass(frozen=True)
class Observation:
    """What the engine has and what it uses."""

    engine: str
    machines: tuple[Observed, ...]
    usage: Mapping[str, Usage]
    """By uuid."""
    asked_time: float
    """When the engine was asked: of a machine that was created after it, the listing says nothing."""
    time: float
    """When it had answered."""
    details: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By uuid what else there is to know of machines that run, as far as it hasn't been told before."""
    contacts: Mapping[str, frozenset[Contact]] = field(default_factory=dict)
    """By uuid with whom machines have connections, of those of which that was looked at."""


@dataclass(frozen=True)
class ObservationFailed:
    """The engine couldn't be asked: nothing may be concluded about its machines."""

    engine: str
    reason: str
    asked_time: float
    time: float


@dataclass(frozen=True)
class Created:
    """The machine runs."""

    engine: str
    name: str
    uuid: str
    time: float


@dataclass(frozen=True)
class CreationRefused:
    """The machine could not be made; what may be left of it is listed by the next observation."""

    engine: str
    name: str
    uuid: str
    reason: str
    unavailable: bool
    """The engine couldn't be reached: it is unknown whether the machine exists."""
    time: float


@dataclass(frozen=True)
class Stopped:
    """Nothing of the machine runs any more; its remains are still there to be measured."""

    engine: str
    name: str
    uuid: str
    time: float


@dataclass(frozen=True)
class StopFailed:
    """The machine could not be ended, or it is unknown whether it was."""

    engine: str
    name: str
    uuid: str
    reason: str
    time: float


@dataclass(frozen=True)
class Destroyed:
    """The engine holds nothing of the machine any more."""

    engine: str
    name: str
    uuid: str
    time: float


@dataclass(frozen=True)
class DestructionFailed:
    """The machine could not be removed, or it is unknown whether it was."""

    engine: str
    name: str
    uuid: str
    reason: str
    time: float


@dataclass(frozen=True)
class Changed:
    """Something has changed with the machine of this name, or with any if it is "": worth an observation."""

    engine: str
    name: str


ActionResult = Union[Created, CreationRefused, Stopped, StopFailed, Destroyed, DestructionFailed]
Message = Union[Observation, ObservationFailed, ActionResult, Changed]
