"""The contract between the factory and whatever makes machines.

A driver creates, lists, measures and destroys machines of one engine; it knows nothing of shares or of
slots' history. One driver object is used from three threads at once (observing, acting, listening for
events): a driver whose connection isn't safe for that keeps one per thread.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.host.contacts import Contact


class EngineUnavailable(Exception):
    """The engine can't be asked just now. Nothing may be concluded about its machines."""


class CreationFailed(Exception):
    """The engine refused or failed to make this machine; the text is the reason that people are shown."""


class EngineState(enum.Enum):
    """What an engine says of a machine that it knows. A machine that it doesn't list has ended."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    """It doesn't run any more, but the engine still holds remains of it, so that its usage can be read."""
    HALF_MADE = "half made"
    """Its creation was cut short: it has never run, and only its removal is due. Not said of one that a
    create() in progress is about to start."""


@dataclass(frozen=True)
class Usage:
    """What a machine has used since its start. None: the engine doesn't tell."""

    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    ended_time: float | None = None
    """When it ended, Unix seconds, for where nobody has seen it end."""


@dataclass(frozen=True)
class Observed:
    """One machine of this factory, as its engine lists it."""

    name: str
    """The machine's host name, such as factory1-00.example.com."""
    uuid: str
    state: EngineState
    usage: Usage = field(default_factory=Usage)


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


class Driver(Protocol):
    """What every engine offers. All calls may block, and may take for ever when the engine hangs.

    Each raises EngineUnavailable when the engine can't be reached.
    """

    def list(self) -> Sequence[Observed]:
        """All machines of this factory, in one call; strangers' are not in it. Usage may be left out."""

    def usage(self) -> Mapping[str, Usage]:
        """Usage by uuid of all machines that list() names, in one pass."""

    def create(self, spec: MachineSpec) -> None:
        """Make and start the machine. Returns when it runs; raises CreationFailed with a reason.

        A failed creation leaves nothing behind, or something that list() shows.
        """

    def stop(self, name: str, uuid: str) -> None:
        """End the machine, by force, but keep what tells its final usage until destroy().

        Returns when nothing of it runs any more; then list() shows it as ENDED, or not at all where the
        engine keeps no remains. No error if there is no such machine.
        """

    def destroy(self, name: str, uuid: str) -> None:
        """Release everything that the engine holds of the machine; if it still runs, it is ended first.

        Returns when that is done; no error if there is no such machine. A machine of the same name with
        another uuid is left alone.
        """

    def events(self) -> Iterator[str]:
        """Block until something has changed, then yield the machine's name, "" if unknown; and so on."""

    def close(self) -> None:
        """Let go of connections and wake events(). Machines go on running."""


class Fetch(Protocol):
    """What a driver gets images with."""

    def __call__(self, source: str, signing_dn: str | None = None) -> Path:
        """The local path of the image with this URL or path; if signing_dn is given, it is signed by that DN.

        source is an http or https URL, or an absolute path, which is the answer, too. Blocks as long as downloading
        and reading it take; the same file is read through for its signature once only. Raises OSError with a reason.
        """


@runtime_checkable
class Preparing(Protocol):
    """A driver that needs something before it can create, which it gets in the background."""

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """None if a machine of this type can be created now; else why not yet, for people ("…: 45 %").

        To be asked whenever a creation is considered: asking starts what is needed. It answers from memory,
        and the first time within about a second, however the engine fares. events() yields "" when an answer
        changes to None, or to another failure. files is the machinetype's files/ directory.
        """


WRITES_TO = "writes_to"
"""The detail that names directories of this host outside the machine's own which only this machine writes, such as a
container's layer; absolute, with colons between them. They count for its disk limit."""


@runtime_checkable
class Detailing(Protocol):
    """A driver that can tell more of a machine than usage."""

    def details(self, uuid: str) -> Mapping[str, str]:
        """What people and incident teams want to know of one machine, by name of the fact; empty if it isn't known yet:
        then it is asked again.

        May block, as the calls of Driver do.
        """


@dataclass(frozen=True)
class Trace:
    """What there is to tell anew of a machine, for incident teams."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """As Detailing's; they add to those or replace them."""
    contacts: frozenset[Contact] = frozenset()
    """With whom it has connections just now."""


@runtime_checkable
class Tracing(Protocol):
    """A driver that looks, now and then, at what its machines do."""

    def traces(self) -> Mapping[str, Trace]:
        """By uuid, of machines that run, what has changed. To be asked after each list(); it need not look each time.

        May block, as the calls of Driver do.
        """


@runtime_checkable
class Noticing(Protocol):
    """A driver that sees what is probably wrong with this host though machines can be made."""

    def notices(self) -> Sequence[str]:
        """One line each, from memory."""


@runtime_checkable
class Adopting(Protocol):
    """A driver whose engine may hold machines made by an older Vac, without the marks that we go by."""

    def adopt(self, machines: Mapping[str, str]) -> None:
        """From now on these machines, names by uuid, count as the factory's own if they exist.

        They come from the factory's own records; those that bear our marks may be among them. Replaces what
        was said before. Doesn't block.
        """


@dataclass(frozen=True)
class LeftProcess:
    """A machine that is processes of this host, as an older Vac has left it."""

    name: str
    """Host name of the machine."""
    pid: int
    """Of its first process."""
    noted_time: float
    """When that number was written down, Unix seconds: the process had begun by then."""
    user: str
    """The account it runs as."""
    processors: int
    memory_bytes: int
    cpu_seconds: float
    """What it had used when it was last looked at."""


@runtime_checkable
class Following(Protocol):
    """A driver that can watch and end machines which an older Vac has made of processes."""

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        """From now on these, by uuid, are machines like its own, as far as they still run. Doesn't block."""
