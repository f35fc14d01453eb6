"""The contract between the factory and the engines that make machines.

A driver creates, lists, measures and destroys the machines of one engine; it knows nothing of shares or of slots'
history. One driver is used from three threads at once (observing, acting, listening for events): a driver whose
connection isn't safe for that keeps one per thread.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Callable, Protocol

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.host.cgroups import CPU_PERIOD, LEAST_CPU_QUOTA, Limits
from vac.host.cgroups import Usage as Usage
from vac.host.connections import Contact
from vac.host.filesystems import CVMFS, FileStamp

WRITES_TO = "writes_to"
"""Name of the detail with directories of this host, outside the machine's own, that only this machine writes, such as
a container's layer; absolute, separated by colons. They count towards its disk limit."""


def with_growing_counters(new: Usage, old: Usage) -> Usage:
    """Return new usage whose counters never go back: a dying process may tell less. The peak is the largest sample."""
    both = {field.name: (getattr(new, field.name), getattr(old, field.name)) for field in fields(Usage)}
    largest: dict[str, Any] = {
        name: max((each for each in pair if each is not None), default=None) for name, pair in both.items()
    }
    return Usage(**{**largest, "memory_bytes": new.memory_bytes, "busy_tasks": new.busy_tasks})


class EngineUnavailable(Exception):
    """The engine can't be asked now. Conclude nothing about its machines."""


class CreationFailed(Exception):
    """The engine refused or failed to make this machine; the text is the reason shown to people."""


class EngineState(enum.Enum):
    """State of a machine according to its engine. A machine that isn't listed has ended."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    """It doesn't run any more, but the engine still has its final usage."""
    HALF_MADE = "half made"
    """Its creation was interrupted: it has never run, and only has to be removed. A machine that a create() in
    progress is about to start isn't listed."""


@dataclass(frozen=True)
class Observed:
    """One machine of this factory, as its engine lists it."""

    name: str
    """The machine's host name, such as factory1-00.example.com."""
    uuid: str
    state: EngineState
    usage: Usage = field(default_factory=Usage)
    details: Mapping[str, str] = field(default_factory=dict)
    """Facts about it by name, for incident teams: all that are known now."""


@dataclass(frozen=True)
class MachineSpec:
    """Everything that a driver needs to make a machine. Its directory is complete on disk."""

    name: str
    """Host name of the machine; unique on this host among machines that have not been destroyed."""
    uuid: str
    machinetype: Machinetype
    settings: Settings
    processors: int
    memory_bytes: int
    """mb_per_processor × processors, in bytes."""
    directory: Path
    """The machine's directory, which holds user_data, machinefeatures/, jobfeatures/, joboutputs/, mnt/."""
    files: Path
    """The machinetype's files/ directory, to which a relative root_image refers."""
    address: str | None = None
    """The IPv4 address of a VM."""
    hidden: tuple[Path, ...] = ()
    """Files and directories of this host that no machine may see, where an image shows the host's own tree."""

    def mounts(self, features: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """Return what a container sees of this host: mode (ro or rw), source, and place inside.

        features: places of machinefeatures, jobfeatures and joboutputs, by the variables that tell them.
        """
        sources = {"/user_data": self.directory / "user_data"}
        sources |= {place: self.directory / variable.lower() for variable, place in features.items()}
        if self.machinetype.cvmfs_repositories:
            sources[CVMFS] = Path(CVMFS)
        if self.machinetype.token_dir is not None:
            sources["/etc/vac-tokens"] = self.machinetype.token_dir
        writable = features["JOBOUTPUTS"]
        return [
            ("rw" if place == writable else "ro", str(source), place) for place, source in sources.items()
        ]

    @property
    def limits(self) -> Limits:
        """Resources that a container gets."""
        settings = self.settings
        quota = int(settings.cpu_limit_factor * self.processors * CPU_PERIOD)
        return Limits(
            self.processors,
            self.memory_bytes,
            int(self.memory_bytes * settings.memory_limit_factor) if settings.memory_limit_factor else None,
            settings.pids_per_processor * self.processors,
            max(quota, LEAST_CPU_QUOTA) if quota else None,
        )

    def hand_over(self, uid: int, gid: int = -1) -> None:
        """Give the container's user what it must execute and write: user_data is for that user alone."""
        os.chown(self.directory / "joboutputs", uid, gid)
        user_data = self.directory / "user_data"
        os.chown(user_data, uid, gid)
        user_data.chmod(0o500)


@dataclass(frozen=True)
class LeftProcess:
    """A machine made of processes of this host that an older Vac has left running."""

    name: str
    """Host name of the machine."""
    pid: int
    """Its first process."""
    noted_time: float
    """Time at which that number was written down, Unix seconds: the process had started by then."""
    user: str
    """The account it runs as."""
    processors: int
    memory_bytes: int
    cpu_seconds: float
    """CPU time recorded when it was last measured."""


class Fetch(Protocol):
    """Source of images for drivers."""

    def __call__(self, source: str, signing_dn: str | None = None) -> tuple[Path, FileStamp]:
        """Return the local path of the image with this URL or path, and the stamp of the file that it was then.

        With signing_dn, only if that very file is signed by that DN. source is an http or https URL, or an absolute
        path, which is then the result as well. Blocks while it downloads and reads; the same file is read for its
        signature only once. Raises OSError with a reason.
        """


def no_images(source: str, signing_dn: str | None = None) -> tuple[Path, FileStamp]:
    """Refuse as a Fetch, for drivers that make no machines."""
    raise OSError("images can't be downloaded or checked here")


class Driver(ABC):
    """One engine. Calls may block, and for ever when the engine hangs, unless their description says otherwise.

    Calls that block raise EngineUnavailable when the engine can't be reached. The methods from prepare() on are
    optional abilities: a driver overrides those that its engine has.
    """

    wake: Callable[[], object] | None = None
    """Set by Engine; see changed()."""

    def changed(self) -> None:
        """Tell, from any thread, that an answer of prepare() has changed to None or to another failure."""
        if self.wake is not None:
            self.wake()

    @abstractmethod
    def list(self) -> Sequence[Observed]:
        """Return all machines of this factory, and no others, in one pass."""

    @abstractmethod
    def create(self, spec: MachineSpec) -> None:
        """Make and start the machine. Return when it runs; raise CreationFailed with a reason.

        A failed creation leaves nothing behind, or something that list() shows.
        """

    @abstractmethod
    def stop(self, name: str, uuid: str) -> None:
        """End the machine, by force, but keep its final usage until destroy().

        Return when nothing of it runs any more; then list() shows it as ENDED, or not at all where the engine keeps
        nothing of it. No error if there is no such machine.
        """

    @abstractmethod
    def destroy(self, name: str, uuid: str) -> None:
        """Release everything that the engine holds of the machine; if it still runs, end it first.

        No error if there is no such machine. A machine of the same name with another uuid is left alone.
        """

    @abstractmethod
    def events(self) -> Iterator[str]:
        """Block until a machine has changed, then yield its name, "" if unknown; and so on until close()."""

    @abstractmethod
    def close(self) -> None:
        """Close connections and end events(). Machines go on running."""

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """Return None if a machine of this type can be created now; else the reason, for people ("…: 45 %").

        Called whenever a creation is considered: it starts what is needed in the background. It answers from memory,
        and the first time within about a second, whatever the engine does. files is the machinetype's files/ directory.
        """
        return None

    def notices(self) -> Sequence[str]:
        """Return probable faults of this host that don't prevent creations, one line each. Doesn't block."""
        return ()

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        """Return the remote ends of present connections by uuid of running machines. Raises OSError and CgroupError."""
        return {}

    def adopt(  # noqa: B027  optional
        self, machines: Mapping[str, str], processes: Mapping[str, LeftProcess]
    ) -> None:
        """Count these machines, names by uuid, as the factory's own if the engine has them without our marks.

        They come from the factory's records, as an older Vac has made them. Those that are processes of this host are
        treated as machines as far as they still run. Replaces what was said before. Doesn't block.
        """
