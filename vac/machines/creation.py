"""Making a machine's directory: complete in tmp/, then renamed into machines/, then named by its slot.

It holds the Machine/Job Features (HSF-TN-2016-02, and the older keys that payloads still read).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vac.clock import Moment
from vac.config.machinetype import VM_MODELS
from vac.config.settings import Settings
from vac.lifecycle.phases import PendingCreation
from vac.machines import files
from vac.machines.layout import DirectoryName, StateDir
from vac.machines.machine import Machine, boot_text, retained
from vac.machines.slots import write_slot

_MIB = 1024 * 1024


def decimal(value: float) -> str:
    """Return a number as plain decimal text, with one to six digits after the point."""
    text = f"{value:.6f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def machinefeatures(settings: Settings, machine: Machine) -> dict[str, str]:
    """Return the keys of $MACHINEFEATURES."""
    processors = str(machine.processors)
    return {
        **settings.machinefeatures_options,
        "total_cpu": processors,
        "phys_cores": processors,
        "log_cores": processors,
        "jobslots": "1",
        "shutdowntime": str(machine.shutdown_time),
        "grace_secs": str(settings.grace_secs),
        **_benchmarks(settings, machine, ""),
    }


def jobfeatures(settings: Settings, machine: Machine) -> dict[str, str]:
    """Return the keys of $JOBFEATURES; its start is its creation."""
    processors = machine.processors
    wall_seconds = max(0, machine.shutdown_time - machine.created_time)
    memory_bytes = settings.mb_per_processor * processors * _MIB
    return {
        "job_id": machine.uuid,
        "jobstart_secs": str(machine.created_time),
        "shutdowntime_job": str(machine.shutdown_time),
        "grace_secs_job": str(settings.grace_secs),
        "allocated_cpu": str(processors),
        "cpu_limit_secs": str(wall_seconds * processors),
        "wall_limit_secs": str(wall_seconds),
        "max_rss_bytes": str(memory_bytes),
        "allocated_CPU": str(processors),
        "cpufactor_lrms": "1.0",
        "cpu_limit_secs_lrms": str(wall_seconds * processors),
        "wall_limit_secs_lrms": str(wall_seconds),
        "mem_limit_MB": str(memory_bytes // 1_000_000),
        **_benchmarks(settings, machine, "_job"),
    }


def _benchmarks(settings: Settings, machine: Machine, suffix: str) -> dict[str, str]:
    levels = {"hs06": settings.hs06_per_processor, "hepscore23": settings.hepscore23_per_processor}
    return {name + suffix: decimal(level * machine.processors) for name, level in levels.items() if level}


@dataclass(frozen=True)
class Access:
    """Owner and mode of a machine's user_data, joboutputs and mnt."""

    uid: int = 0
    gid: int = 0
    """The container's user, who alone can read and run user_data: root for most Docker images, singularity_user
    (or nobody) for process containers. For VMs: whoever stores what they send to joboutputs; their user_data
    is root's."""
    any_user: bool = False
    """Docker: other users inside may write joboutputs and mnt, too, as those do that run payloads.
    The machine's directory is closed to this host's users instead."""
    reader_gid: int | None = None
    """Group that may enter a closed directory: that of user `vac`, as which the responder runs."""

    @property
    def owner(self) -> files.Owner | None:
        """Return the owner to chown files to; None where that changes nothing."""
        return None if (self.uid, self.gid) == (os.geteuid(), os.getegid()) else (self.uid, self.gid)

    @property
    def mode(self) -> int:
        """Mode of the machine's directory: it is open to everybody unless joboutputs is writable for everybody."""
        if not self.any_user:
            return 0o755
        return 0o700 if self.reader_gid is None else 0o750


ROOT = Access()


def create(
    state: StateDir,
    pending: PendingCreation,
    settings: Settings,
    *,
    name: str,
    now: Moment,
    user_data: bytes,
    access: Access = ROOT,
    ip: str | None = None,
    root_public_key: bytes | None = None,
) -> Machine:
    """Make the directory and slot file of a machine that an engine is to create next.

    name is the slot's host name, ip a VM's address. Raises OSError, having left nothing.
    """
    machinetype = pending.machinetype
    directory = DirectoryName(int(now.unix), machinetype.name, name)
    while state.machine(directory).exists():
        directory = directory._replace(created_time=directory.created_time + 1)
    machine = Machine(
        directory=state.machine(directory),
        created_time=directory.created_time,
        machinetype=machinetype.name,
        name=name,
        uuid=pending.uuid,
        processors=pending.order.processors,
        kind=machinetype,
        settings=settings,
        shutdown_time=int(pending.order.shutdown_time),
        created_boot=(now.boot_id, now.boot),
        fqan=machinetype.accounting_fqan,
    )
    building = files.temporary_path(state.tmp)
    try:
        _fill(building, machine, settings, user_data, access)
        for extra, content in (("ip", ip and ip.encode("ascii")), ("root_public_key", root_public_key)):
            if content:
                files.write_new(building / extra, content)
        if access.any_user and access.reader_gid is not None:
            os.chown(building, -1, access.reader_gid)
        building.chmod(access.mode)
        files.sync_directory(building)
        files.rename(building, machine.directory, sync=True)
        write_slot(state, machine)
    except OSError:
        files.remove_tree(building)
        files.remove_tree(machine.directory)
        raise
    return machine


def _fill(building: Path, machine: Machine, settings: Settings, user_data: bytes, access: Access) -> None:
    """Fill a machine's directory, which only root can enter yet."""
    files.make_directory(building, mode=0o700)
    writable = 0o1777 if access.any_user else 0o755
    for own in ("joboutputs", "mnt"):
        files.make_directory(building / own, mode=writable, owner=access.owner)
    _write_features(building / "machinefeatures", machinefeatures(settings, machine))
    _write_features(building / "jobfeatures", jobfeatures(settings, machine))
    files.write_new(
        building / "user_data",
        user_data,
        mode=0o600 if machine.model in VM_MODELS else 0o500,
        owner=None if machine.model in VM_MODELS else access.owner,
    )
    if machine.created_boot:
        files.write_new(building / "created_boot", boot_text(machine.created_boot))
    kept = json.dumps({**retained(machine.kind), **retained(settings)}, indent=1, sort_keys=True) + "\n"
    files.write_new(building / "machinetype.json", kept.encode("ascii"), sync=True)
    if machine.fqan:
        files.write_new(building / "accounting_fqan", _bytes(machine.fqan), sync=True)


def _write_features(directory: Path, keys: dict[str, str]) -> None:
    files.make_directory(directory)
    for key, value in keys.items():
        files.write_new(directory / key, _bytes(value), sync=key == "job_id")
    files.sync_directory(directory)


def _bytes(text: str) -> bytes:
    """Return a configured text's own bytes, which may not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")
