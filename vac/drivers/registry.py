"""Engines by machine model, and their drivers, loaded only when a machinetype needs them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from vac.config.settings import Settings
from vac.drivers.base import Driver, EngineUnavailable, Fetch
from vac.drivers.engine import ActionKind

ENGINES = {
    "cernvm3": "libvirt",
    "cernvm4": "libvirt",
    "vm-raw": "libvirt",
    "docker": "docker",
    "singularity": "processes",
    "bubblewrap": "processes",
}
"""By machine model. Singularity and bubblewrap share one, as their machines share one tree of cgroups."""
MODULES = {
    "libvirt": "vac.drivers.libvirt.libvirt_driver",
    "docker": "vac.drivers.docker.docker_driver",
    "processes": "vac.drivers.processes.process_driver",
}
"""By engine; each has a function open_driver(settings, fetch)."""
APART: Mapping[str, frozenset[ActionKind]] = {
    "libvirt": frozenset([ActionKind.STOP]),
    "processes": frozenset(ActionKind),
}
"""By engine what must not wait for other machines: stops where machines get time to end by themselves, and all where a
creation may hang with the file system that its image is on."""
PACKAGES = {"libvirt": "python3-libvirt", "docker": "python3-docker"}
"""Packages of engines' Python libraries, by the names that Debian and EL9 share."""


def engine_name(machine_model: str) -> str:
    """The engine that makes machines of this model; an unknown one, as a slot of another version may have, is an
    engine of its own that can't be reached."""
    return ENGINES.get(machine_model, machine_model)


def driver_for(machine_model: str, settings: Settings, fetch: Fetch | None = None) -> Driver:
    """A new driver for the engine of this machine model.

    fetch is what it gets images with; None: it can do without.

    Raises EngineUnavailable, also if the engine's library is not installed.
    """
    engine = engine_name(machine_model)
    if engine not in MODULES:
        raise EngineUnavailable(f"machine_model {machine_model} is not known to this version")
    try:
        module = importlib.import_module(MODULES[engine])
    except ImportError as error:
        if error.name == MODULES[engine]:
            reason = f"machine_model {machine_model} is not available in this version"
        else:
            reason = f"{error}; install {PACKAGES.get(engine, 'it')}"
        raise EngineUnavailable(reason) from error
    return cast(Driver, module.open_driver(settings, fetch))
