"""Snapshot of a factory, and the answers made of it, to queries and for VacMon services.

A snapshot is made of state_dir (machines' directories, status.json) and the kernel's figures alone, without the
configuration and engines, so that any process can make one. Running and starting are VacQuery's definitions. Answers
are prepared as JSON with gaps for what differs between queries: cookie, time_sent and signature. An answer stays under
1500 bytes with its headers; long texts are cut for that.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vac import __version__
from vac.background import BackgroundWork, Outcome
from vac.config.machinetype import Machinetype
from vac.config.options import split_host_port
from vac.host.facts import measure
from vac.host.filesystems import stamp_if_there
from vac.logs import OnChange
from vac.machines import machine as machines
from vac.machines import outputs
from vac.machines import status as statuses
from vac.machines.layout import DirectoryName, StateDir, parse_directory_name, slot_name
from vac.machines.machine import Machine
from vac.machines.slots import read_finish, read_slot, reported
from vac.machines.status import Status, TypeFacts, state_of
from vac.text import untrusted
from vac.vacquery.messages import (
    ANSWER_LIMIT,
    QUERY_LIMIT,
    AnyStatus,
    FactoryStatus,
    Kind,
    MachineStatus,
    MachinetypeStatus,
    message_of,
    part,
    shortened,
)
from vac.vacquery.poll import Resolver
from vac.vacquery.signed_json import canonical, signature

log = logging.getLogger(__name__)

LONGEST_GUARD = 200
LONGEST_SILENCE_SECONDS = 3600
"""A machine not seen alive, or not started, for longer doesn't count as running."""
BYTES_PER_MB = 1024 * 1024


@dataclass(frozen=True)
class Slot:
    """A slot with its present or last machine and that one's shutdown message."""

    name: str
    machine: Machine | None = None
    message: str | None = None
    message_time: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """All answers of a factory, without cookie and time."""

    status: Status
    factory: FactoryStatus
    machinetypes: tuple[MachinetypeStatus, ...]
    machines: tuple[MachineStatus, ...]
    slots: tuple[Slot, ...] = ()
    """In the order of `machines`."""

    def answers(self, kind: Kind) -> Sequence[AnyStatus]:
        """Return the answers to a query of this kind."""
        if kind is Kind.FACTORIES:
            return (self.factory,)
        return self.machinetypes if kind is Kind.MACHINETYPES else self.machines


def is_starting(machine: Machine, now: float) -> bool:
    """Return True if it was created under an hour ago and hasn't started."""
    young = now - machine.created_time < LONGEST_SILENCE_SECONDS
    return machine.started_time is None and not machine.finished and young


def is_running(machine: Machine, now: float) -> bool:
    """Return True if it has started, hasn't finished, and was seen alive in the last hour."""
    if machine.started_time is None or machine.finished:
        return False
    return now - (machine.heartbeat_time or machine.started_time) < LONGEST_SILENCE_SECONDS


def is_before_fizzle(machine: Machine, now: float, fizzle_seconds: int) -> bool:
    """Return True if it is starting, or running and younger than fizzle_seconds."""
    if machine.started_time is None:
        return is_starting(machine, now)
    return is_running(machine, now) and now - machine.started_time < fizzle_seconds


def _common(status: Status, program: str) -> dict[str, Any]:
    return {"space": status.space, "site": status.site, "factory": status.factory, "version": program}


def machine_status(slot: Slot, status: Status, program: str) -> MachineStatus:
    """Return the answer about one slot."""
    machine = slot.machine
    empty = MachineStatus(
        **_common(status, program),
        machine=slot.name,
        num_machines=status.slots,
        state=state_of(slot.name, slot.machine, status),
    )
    if machine is None:
        return empty
    return replace(
        empty,
        machinetype=machine.machinetype,
        machine_model=machine.model,
        uuid=machine.uuid or None,
        created_time=machine.created_time,
        started_time=_whole(machine.started_time),
        heartbeat_time=_whole(machine.heartbeat_time),
        num_processors=machine.processors,
        cpu_seconds=int(machine.cpu_seconds),
        cpu_percentage=0 if machine.cpu_percent is None else machine.cpu_percent,
        hs06=float(machine.hs06),
        shutdown_message=slot.message,
        shutdown_time=slot.message_time,
        fqan=machine.fqan,
    )


def machinetype_status(
    facts: TypeFacts, slots: Sequence[Slot], finish: Slot | None, status: Status, now: float, program: str
) -> MachinetypeStatus:
    """Return the answer about one machinetype. finish: its most recently created finished machine."""
    mine = [slot.machine for slot in slots if slot.machine and slot.machine.machinetype == facts.name]
    running = [machine for machine in mine if is_running(machine, now)]
    counted = running + [machine for machine in mine if is_starting(machine, now)]
    processors = sum(machine.processors for machine in counted)
    return MachinetypeStatus(
        **_common(status, program),
        machinetype=facts.name,
        num_machinetypes=len(status.machinetypes),
        running_machines=len(counted),
        running_processors=float(processors) if running else processors,
        running_hs06=float(sum(machine.hs06 for machine in counted)),
        num_before_fizzle=sum(is_before_fizzle(machine, now, facts.fizzle_seconds) for machine in mine),
        bytes_per_processor=status.mb_per_processor * BYTES_PER_MB,
        shutdown_message=finish.message if finish else None,
        shutdown_time=finish.message_time if finish else None,
        shutdown_machine=finish.name if finish else None,
        fqan=facts.fqan or None,
        max_wallclock_seconds=facts.max_wallclock_seconds,
        min_wallclock_seconds=facts.min_wallclock_seconds,
        max_processors=facts.max_processors,
        min_processors=facts.min_processors,
    )


def factory_status(
    slots: Sequence[Slot], status: Status, host: Mapping[str, Any], now: float, program: str
) -> FactoryStatus:
    """Return the answer about the factory, without starting machines. host: fields about the host and heartbeats."""
    running = [slot.machine for slot in slots if slot.machine and is_running(slot.machine, now)]
    guard = None if status.guard_name == "full" else status.guard  # all processors in use is no reason
    return FactoryStatus(
        **_common(status, program),
        running_processors=sum(machine.processors for machine in running),
        running_machines=len(running),
        running_hs06=float(sum(machine.hs06 for machine in running)),
        max_processors=status.total_processors,
        max_machines=status.total_processors,
        max_hs06=float(status.total_processors * status.hs06_per_processor),
        **host,
        creation_blocked=untrusted(guard, LONGEST_GUARD) if guard else None,
    )


class SnapshotBuilder:
    """Maker of snapshots of a state_dir; unchanged machines aren't read again."""

    def __init__(
        self,
        state: StateDir,
        client: str = "vacd-responder",
        configured: Status | None = None,
    ) -> None:
        """configured: status to be used before the factory has written one, as on the classic's state."""
        self._configured = configured
        self._state = state
        self._program = f"Vac {__version__} {client}"
        self._machinetypes: Mapping[str, Machinetype] = {}
        """Known facts of the configured machinetypes."""
        self._slots: dict[Path, tuple[object, Slot]] = {}
        self._before = self._slots
        """By machine's directory what this build has read, and the one before: the files' stamps, and the slot."""

    def build(self, now: float) -> Snapshot | None:
        """Return the present snapshot; None if no factory has ever written its status. Raises OSError."""
        status = self._read_status()
        if status is None or not status.space or not status.factory:
            return None
        self._before, self._slots = self._slots, {}
        slots = [self._slot(slot_name(status.factory, number)) for number in range(status.slots)]
        finishes = {facts.name: self._finish(facts.name) for facts in status.machinetypes}
        host = measure(self._state.root)
        for role in ("factory", "responder", "mjf", "metadata"):
            host[f"{role}_heartbeat_time"] = int(self._state.heartbeat_time(role) or 0)
        return Snapshot(
            status,
            factory_status(slots, status, host, now, self._program),
            tuple(
                machinetype_status(facts, slots, finishes[facts.name], status, now, self._program)
                for facts in status.machinetypes
            ),
            tuple(machine_status(slot, status, self._program) for slot in slots),
            tuple(slots),
        )

    def finished(self, directory: Path) -> MachineStatus | None:
        """Return the answer about a finished machine, whatever is in its slot now; None if it is gone."""
        status = self._read_status()
        name = parse_directory_name(directory.name)
        if status is None or name is None:
            return None
        slot = self._load(directory, name, None)
        return None if slot is None else machine_status(slot, replace(status, slot_states={}), self._program)

    def _read_status(self) -> Status | None:
        status = statuses.read(self._state) or self._configured
        known = () if status is None else status.machinetypes
        self._machinetypes = {
            facts.name: Machinetype(facts.name, fizzle_seconds=facts.fizzle_seconds) for facts in known
        }
        return status

    def _slot(self, name: str) -> Slot:
        with contextlib.suppress(OSError):
            found = read_slot(self._state.slot(name))
            if found is not None:
                return self._ended_or_alive(found.directory, found.model) or Slot(name)
        return Slot(name)

    def _finish(self, machinetype: str) -> Slot | None:
        with contextlib.suppress(OSError):
            directory = read_finish(self._state.finish(machinetype))
            return None if directory is None else self._ended_or_alive(directory, None)
        return None

    def _ended_or_alive(self, name: DirectoryName, model: str | None) -> Slot | None:
        path = self._state.machine(name)
        if path not in self._slots:
            inside = (
                "",
                "started",
                "finished",
                "heartbeat",
                "shutdown_message",
                "joboutputs/shutdown_message",
            )
            present = (model, *(stamp_if_there(path / part) for part in inside))
            stamps, slot = self._before.get(path, (None, None))
            if stamps != present:
                slot = self._load(path, name, model)
            if slot is None:
                return None
            self._slots[path] = (present, slot)
        return self._slots[path][1]

    def _load(self, path: Path, name: DirectoryName, model: str | None) -> Slot | None:
        """Read one machine; one that can't be read is as if it weren't there.

        A machine of a classic factory is judged by the fizzle_seconds by which the factory judges it.
        """
        try:
            machine = machines.load(path, model=model, machinetypes=self._machinetypes)
        except OSError:
            return None
        if machine is None:
            return None
        if not machine.finished:
            return Slot(name.name, machine)
        written, message = outputs.shutdown_message(machine), reported(machine)
        time = outputs.shutdown_message_time(machine) if written else machines.end_time(machine)
        return Slot(name.name, machine, message, _whole(time) if message else None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


COOKIE_SIZES = (66, 256, 512, QUERY_LIMIT)
"""Bytes reserved for a cookie's JSON text; the first suffices for a sha256 in hex and its quotes."""
_TIME_BYTES = 10
_SIGNATURE_BYTES = len(',"hmac":""') + 64
_GAP = secrets.token_hex(16)


class Answers:
    """Prepared datagrams of a snapshot: a query costs one join of bytes per answer."""

    def __init__(self, snapshot: Snapshot, key: bytes | None = None) -> None:
        self.snapshot = snapshot
        self._key = key
        self._limit = ANSWER_LIMIT - _TIME_BYTES - (_SIGNATURE_BYTES if key else 0)
        self._prepared: dict[tuple[Kind, int], list[list[bytes]]] = {}
        """By kind and size: each answer's canonical text, divided where cookie and time_sent belong."""
        for kind in Kind:
            self._templates(kind, COOKIE_SIZES[0])

    def datagrams(self, kind: Kind, cookie: bytes, now: float) -> list[bytes]:
        """Return the answers to a query with this cookie, as JSON text. Those that can't be made to fit are omitted."""
        size = next((size for size in COOKIE_SIZES if len(cookie) <= size), None)
        if size is None:
            return []
        time_sent = b"%d" % now
        texts = [
            b"".join((before, cookie, between, time_sent, after))
            for before, between, after in self._templates(kind, size)
        ]
        if self._key is None:
            return texts
        return [b'%b,"hmac":"%b"}' % (text[:-1], signature(text, self._key).encode()) for text in texts]

    def _templates(self, kind: Kind, size: int) -> list[list[bytes]]:
        if (kind, size) not in self._prepared:
            found = [self._template(status, size) for status in self.snapshot.answers(kind)]
            self._prepared[kind, size] = [template for template in found if template is not None]
        return self._prepared[kind, size]

    def _template(self, status: AnyStatus, size: int) -> list[bytes] | None:
        message = {**message_of(status), "cookie": 0, "time_sent": 0}
        short = shortened(message, self._limit - size + len("00"))
        if short is None:
            if size == COOKIE_SIZES[0]:
                log.error("no answer about %s: too long for a datagram", part(status))
            return None
        text = canonical({**short, "cookie": _GAP, "time_sent": _GAP})
        return text.split(b'"%b"' % _GAP.encode())


VACMON_COOKIE = "0"
"""Of messages that no query asked for."""


def vacmon_message(status: AnyStatus, now: float) -> bytes | None:
    """Return the datagram; None if it can't be made to fit into a datagram."""
    message = {**message_of(status), "cookie": VACMON_COOKIE, "time_sent": int(now)}
    short = shortened(message, ANSWER_LIMIT)
    return None if short is None else canonical(short)


class VacMon:
    """The services of vacmon_hostport, which get unrequested answers, made and sent in the background.

    Each change in what can be sent is logged.
    """

    def __init__(self, state: StateDir, names: Resolver, clock: Callable[[], float]) -> None:
        self._builder = SnapshotBuilder(state, "vacd-factory")
        self._names = names
        self._clock = clock
        self._changes = OnChange(log)
        self._work: BackgroundWork[None] = BackgroundWork("vacmon", self._note)

    def tell(self, hostports: Sequence[str], directory: Path | None = None) -> None:
        """Send the status of the finished machine with this directory; else those of factory and machinetypes.

        hostports: HOST:PORT, or [IPV6]:PORT. Never blocks.
        """
        if hostports:
            self._work.start(str(directory or ""), lambda: self.send(hostports, self._statuses(directory)))

    def _statuses(self, directory: Path | None) -> list[AnyStatus]:
        """Return the statuses to be sent; none before the factory has reported for the first time."""
        if directory is not None:
            machine = self._builder.finished(directory)
            return [] if machine is None else [machine]
        snapshot = self._builder.build(self._clock())
        return [] if snapshot is None else [snapshot.factory, *snapshot.machinetypes]

    def _note(self, outcome: Outcome[None]) -> None:
        failure = outcome.failure
        self._changes.tell("state", failure and f"VacMon gets no status messages: {failure}")

    def send(self, hostports: Iterable[str], statuses: Iterable[AnyStatus]) -> None:
        """Send these to every service with a known address, without waiting."""
        now = self._clock()
        datagrams = [
            text for text in (vacmon_message(status, now) for status in statuses) if text is not None
        ]
        for hostport in hostports:
            host, port = split_host_port(hostport)
            self._names.request([host])
            addresses, problem = self._names.known(host), "its name can't be resolved"
            if addresses:
                problem = _send(datagrams, addresses[0], port)
            elif self._names.looking(host):
                continue
            self._changes.tell(hostport, problem and f"VacMon {hostport} gets no status messages: {problem}")


def _send(datagrams: Iterable[bytes], address: str, port: int) -> str:
    """Send them; return the problem, if any."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            for text in datagrams:
                sender.sendto(text, socket.MSG_DONTWAIT, (address, port))
    except OSError as error:
        return str(error)
    return ""
