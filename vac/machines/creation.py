"""Making a machine's directory: complete in tmp/, then renamed into machines/, then named by its slot."""

from __future__ import annotations

from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.machines.layout import StateDir
from vac.machines.machine import Machine


@dataclass(frozen=True)
class Access:
    """Who may use a machine's user_data, joboutputs and mnt."""

    uid: int = 0
    gid: int = 0
    """The container's user: root for VMs and for Docker, singularity_user (or nobody) for process containers."""
    any_user: bool = False
    """Docker: which users an image runs is not known, so joboutputs is for all of them, and the whole
    directory is closed to this host's other users."""
    reader_gid: int | None = None
    """Group that may enter a closed directory all the same: that of user `vac`, as which the responder runs."""


def create(
    state: StateDir,
    machinetype: Machinetype,
    settings: Settings,
    *,
    name: str,
    uuid: str,
    processors: int,
    shutdown_time: int,
    now: float,
    user_data: bytes,
    access: Access = Access(),
    ip: str | None = None,
    root_public_key: bytes | None = None,
) -> Machine: ...
