"""VacQuery's wire format: one JSON object per UDP datagram, version 01.03.

Facts come from recorded datagrams of classic factories (tests/data/wire). No other module knows a field's
name on the wire, and nothing here raises for whatever bytes arrive: decoding gives a message or a Dropped.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

from vac import __version__
from vac.vacquery import fields as f
from vac.vacquery.fields import wired
from vac.vacquery.parsing import parse_object
from vac.vacquery.signing import canonical, is_fresh, is_signed, signature

VACQUERY_VERSION = "VacQuery 01.03"
QUERY_LIMIT = 1024
"""Most bytes of a query that a responder reads."""
ANSWER_LIMIT = 1499 - 40 - 8
"""Most bytes of an answer, which stays under 1500 with IPv6 and UDP headers."""
ANSWER_READ = 9000
"""Most bytes of an answer that a poll reads."""
MOST_HS06_PER_PROCESSOR = 1000


class Kind(enum.Enum):
    """What is asked; the value is the query's message_type."""

    MACHINETYPES = "machinetypes_query"
    MACHINES = "machines_query"
    FACTORIES = "factory_query"


METHODS = {"machinetypes": Kind.MACHINETYPES, "machines": Kind.MACHINES, "factories": Kind.FACTORIES}
"""What peers before message_type call the three."""
SENT_METHODS = {Kind.MACHINES: "machines", Kind.FACTORIES: "factories"}
"""Sent along with message_type, where the classic does."""
_KINDS = {kind.value: kind for kind in Kind}


class Reason(enum.Enum):
    """Why a datagram was dropped; the value is what counters call it."""

    LONG = "too long"
    JSON = "not JSON"
    KIND = "unknown message type"
    SPACE = "other space"
    COOKIE = "no such cookie"
    FACTORY = "other factory"
    FIELD = "bad field"
    SIGNATURE = "wrong or no signature"
    STALE = "signed too long ago"
    MACHINETYPE = "machinetype not configured here"
    SOURCE = "source not allowed"
    NO_ANSWER = "nothing to answer from"
    SENDING = "answer could not be sent"


@dataclass(frozen=True)
class Dropped:
    """A datagram that is not used, and why."""

    reason: Reason
    detail: str = ""
    factory: str = ""
    """Whose answer it is, if its cookie tells."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.reason.value, self.detail)))


@dataclass(frozen=True)
class Query:
    """A question to one factory."""

    kind: Kind
    space: str
    cookie: Any
    """Text when we ask; whatever JSON value a client sent when we are asked."""
    client: str = "vac-command"


@dataclass(frozen=True)
class Answer:
    """What all answers have."""

    space: str = wired(f.name)
    site: str = wired(f.text)
    factory: str = wired(f.name)
    version: str = wired(f.text, "daemon_version", "vac_version", default="")
    """Of the program that answers: `Vac VERSION CLIENT`."""


@dataclass(frozen=True)
class MachinetypeStatus(Answer):
    """What a factory says of one machinetype (machinetype_status)."""

    machinetype: str = wired(f.name, default="")
    num_machinetypes: int = wired(f.machines, default=0)
    """How many of these messages make a complete answer."""
    running_machines: int = wired(f.machines, default=0)
    running_processors: float = wired(f.processors, "running_processors", "running_cpus", default=0)
    """Whole; sent as a float while machines run, as an integer while none or starting ones only."""
    running_hs06: float = wired(f.hs06, default=0.0)
    num_before_fizzle: int = wired(f.machines, default=0)
    bytes_per_processor: int | None = wired(f.amount, default=None)
    shutdown_message: str | None = wired(f.text, default=None)
    """Of the most recently created machine of this type that has finished; likewise the next two."""
    shutdown_time: int | None = wired(f.time, default=None)
    shutdown_machine: str | None = wired(f.text, default=None)
    fqan: str | None = wired(f.text, left_out=True, default=None)
    max_wallclock_seconds: int | None = wired(f.seconds, default=None)
    min_wallclock_seconds: int | None = wired(f.seconds, left_out=True, default=None)
    max_processors: int | None = wired(f.processors, default=None)
    min_processors: int | None = wired(f.processors, left_out=True, default=None)


@dataclass(frozen=True)
class MachineStatus(Answer):
    """What a factory says of one of its slots (machine_status)."""

    machine: str = wired(f.name, default="")
    num_machines: int = wired(f.machines, default=0)
    """How many of these messages make a complete answer."""
    state: str = wired(f.text, default="Unknown")
    machinetype: str | None = wired(f.name, default=None)
    machine_model: str | None = wired(f.text, default=None)
    uuid: str | None = wired(f.text, default=None)
    created_time: int | None = wired(f.time, default=None)
    started_time: int | None = wired(f.time, default=None)
    heartbeat_time: int | None = wired(f.time, default=None)
    num_processors: int = wired(f.processors, "num_processors", "num_cpus", default=0)
    cpu_seconds: int = wired(f.seconds, default=0)
    cpu_percentage: float = wired(f.rate, default=0)
    hs06: float = wired(f.hs06, default=0.0)
    shutdown_message: str | None = wired(f.text, default=None)
    shutdown_time: int | None = wired(f.time, default=None)
    fqan: str | None = wired(f.text, left_out=True, default=None)


@dataclass(frozen=True)
class FactoryStatus(Answer):
    """What a factory says of itself (factory_status)."""

    running_processors: int = wired(f.processors, "running_processors", "running_cpus", default=0)
    running_machines: int = wired(f.machines, default=0)
    running_hs06: float = wired(f.hs06, default=0.0)
    max_processors: int = wired(f.processors, "max_processors", "max_cpus", "total_cpus", default=0)
    max_machines: int = wired(f.machines, "max_machines", "total_machines", default=0)
    max_hs06: float = wired(f.hs06, "max_hs06", "total_hs06", default=0.0)
    root_disk_avail_kb: int = wired(f.amount, default=0)
    root_disk_avail_inodes: int = wired(f.amount, default=0)
    daemon_disk_avail_kb: int = wired(f.amount, "daemon_disk_avail_kb", "vac_disk_avail_kb", default=0)
    daemon_disk_avail_inodes: int = wired(
        f.amount, "daemon_disk_avail_inodes", "vac_disk_avail_inodes", default=0
    )
    load_average: float = wired(f.rate, default=0.0)
    """Over 15 minutes."""
    kernel_version: str = wired(f.text, default="")
    os_issue: str = wired(f.text, default="")
    boot_time: int = wired(f.time, default=0)
    factory_heartbeat_time: int = wired(f.time, default=0)
    responder_heartbeat_time: int = wired(f.time, default=0)
    mjf_heartbeat_time: int = wired(f.time, default=0)
    metadata_heartbeat_time: int = wired(f.time, default=0)
    swap_used_kb: int = wired(f.amount, default=0)
    swap_free_kb: int = wired(f.amount, default=0)
    mem_used_kb: int = wired(f.amount, default=0)
    mem_total_kb: int = wired(f.amount, default=0)


AnyStatus = Union[MachinetypeStatus, MachineStatus, FactoryStatus]
_STATUSES: dict[str, type[AnyStatus]] = {
    "machinetype_status": MachinetypeStatus,
    "machine_status": MachineStatus,
    "factory_status": FactoryStatus,
}
_STATUS_NAMES = {status: name for name, status in _STATUSES.items()}
ANSWERED_WITH: dict[Kind, type[AnyStatus]] = {
    Kind.MACHINETYPES: MachinetypeStatus,
    Kind.MACHINES: MachineStatus,
    Kind.FACTORIES: FactoryStatus,
}
_REQUIRED: dict[type[AnyStatus], tuple[str, ...]] = {
    MachinetypeStatus: (
        "machinetype",
        "num_machinetypes",
        "running_machines",
        "running_processors",
        "running_hs06",
    ),
    MachineStatus: ("machine", "num_machines", "state"),
    FactoryStatus: ("max_processors", "max_hs06"),
}
"""Without these an answer is of no use; classic factories of every version send them."""
_SHORTENED = ("shutdown_message", "os_issue", "kernel_version", "fqan", "shutdown_machine", "site")
"""Texts that may be cut when an answer would be too long, in this order."""


@dataclass(frozen=True)
class _Read:
    """How to read one field of a status."""

    attribute: str
    names: tuple[str, ...]
    check: f.Check
    required: bool


def _plan(status: type[AnyStatus]) -> tuple[_Read, ...]:
    plan = []
    for field in dataclasses.fields(status):
        wire: f.Wire = field.metadata["wire"]
        required = field.default is dataclasses.MISSING or field.name in _REQUIRED[status]
        plan.append(_Read(field.name, wire.names or (field.name,), wire.check, required))
    return tuple(plan)


_PLANS = {status: _plan(status) for status in _STATUSES.values()}


def part(status: AnyStatus) -> str:
    """What tells this answer from the others to the same query."""
    if isinstance(status, MachinetypeStatus):
        return status.machinetype
    return status.machine if isinstance(status, MachineStatus) else status.factory


def expected(status: AnyStatus) -> int:
    """How many answers this factory gives to the query that this one answers."""
    if isinstance(status, MachinetypeStatus):
        return status.num_machinetypes
    return status.num_machines if isinstance(status, MachineStatus) else 1


def cookie(salt: str, factory: str) -> str:
    """What ties an answer to this salt's query and to this factory."""
    return hashlib.sha256((salt + factory).encode()).hexdigest()


def encode_query(query: Query, now: float, key: bytes | None = None) -> bytes:
    """The datagram that asks; signed if there is a key."""
    message = {
        "message_type": query.kind.value,
        "space": query.space,
        "cookie": query.cookie,
        "vacquery_version": VACQUERY_VERSION,
        "vac_version": f"Vac {__version__} {query.client}",
    }
    if query.kind in SENT_METHODS:
        message["method"] = SENT_METHODS[query.kind]
    if key is not None:
        message["time_sent"] = int(now)
        message["hmac"] = signature(canonical(message), key)
    return canonical(message)


def decode_query(data: bytes, space: str, now: float, key: bytes | None = None) -> Query | Dropped:
    """The query in a datagram that has arrived at a responder of this space."""
    message = _parse(data, QUERY_LIMIT)
    if isinstance(message, Dropped):
        return message
    asked = message.get("message_type")
    named = METHODS if asked is None else _KINDS
    name = message.get("method") if asked is None else asked
    kind = named.get(name) if type(name) is str else None
    if kind is None:
        return Dropped(Reason.KIND)
    if message.get("space") != space:
        return Dropped(Reason.SPACE)
    if "cookie" not in message:
        return Dropped(Reason.COOKIE)
    return _signature_problem(message, now, key) or Query(kind, space, message["cookie"])


@dataclass(frozen=True)
class Received:
    """An answer that has arrived and is well formed."""

    status: AnyStatus
    message: Mapping[str, Any]
    """As it was sent, for people and programs that read JSON."""


def decode_answer(
    data: bytes, kind: Kind, space: str, cookies: Mapping[str, str], now: float, key: bytes | None = None
) -> Received | Dropped:
    """The answer in a datagram, if it answers a query of this kind that was sent with one of these cookies.

    cookies: the factory that was asked, by cookie.
    """
    message = _parse(data, ANSWER_READ)
    if isinstance(message, Dropped):
        return message
    sent_cookie = message.get("cookie")
    factory = cookies.get(sent_cookie) if type(sent_cookie) is str else None
    if factory is None:
        return Dropped(Reason.COOKIE)
    if message.get("message_type") != _STATUS_NAMES[ANSWERED_WITH[kind]]:
        return Dropped(Reason.KIND, factory=factory)
    if message.get("space") != space:
        return Dropped(Reason.SPACE, factory=factory)
    if message.get("factory") != factory:
        return Dropped(Reason.FACTORY, factory=factory)
    found = _signature_problem(message, now, key) or read_status(message, ANSWERED_WITH[kind])
    if isinstance(found, Dropped):
        return dataclasses.replace(found, factory=factory)
    return Received(found, message)


def read_status(message: Mapping[str, Any], status: type[AnyStatus]) -> AnyStatus | Dropped:
    """The fields of a message of this kind, each checked."""
    values: dict[str, Any] = {}
    for read in _PLANS[status]:
        for name in read.names:
            value = message.get(name)
            if value is not None:
                try:
                    values[read.attribute] = read.check(value)
                except ValueError as error:
                    return Dropped(Reason.FIELD, f"{name}: {error}")
                break
        else:
            if read.required:
                return Dropped(Reason.FIELD, f"{read.names[0]}: missing")
    for hs06, processors in (("running_hs06", "running_processors"), ("max_hs06", "max_processors")):
        if values.get(hs06, 0) > MOST_HS06_PER_PROCESSOR * values.get(processors, 0):
            return Dropped(Reason.FIELD, f"{hs06}: far too much for {processors}")
    return status(**values)


def message_of(status: AnyStatus) -> dict[str, Any]:
    """All fields of an answer under all their names, but for cookie and time_sent."""
    message: dict[str, Any] = {
        "message_type": _STATUS_NAMES[type(status)],
        "vacquery_version": VACQUERY_VERSION,
    }
    for field in dataclasses.fields(status):
        wire: f.Wire = field.metadata["wire"]
        value = getattr(status, field.name)
        if value is not None or not wire.left_out:
            message.update((name, value) for name in wire.names or (field.name,))
    return message


def least_of(status: AnyStatus) -> dict[str, Any]:
    """What an answer must have, under the newest names, but for cookie and time_sent."""
    message = message_of(status)
    needed = [read.names[0] for read in _PLANS[type(status)] if read.required]
    return {name: message[name] for name in ("message_type", "vacquery_version", *needed)}


def shortened(message: Mapping[str, Any], limit: int) -> dict[str, Any] | None:
    """The message with long texts cut, then old names and what isn't needed left out, until it fits.

    limit: bytes of its canonical text. None if it can't be made to fit.
    """
    short = dict(message)
    for name in _SHORTENED:
        while short.get(name) and len(canonical(short)) > limit:
            kept = len(short[name]) - max(1, (len(canonical(short)) - limit) // 12)
            short[name] = short[name][: max(0, kept)]
    plan = _PLANS[_STATUSES[message["message_type"]]]
    unneeded = [read.names[1:] for read in plan] + [
        read.names for read in reversed(plan) if not read.required
    ]
    for names in unneeded:
        if len(canonical(short)) <= limit:
            return short
        for name in names:
            short.pop(name, None)
    return short if len(canonical(short)) <= limit else None


def _parse(data: bytes, limit: int) -> dict[str, Any] | Dropped:
    if len(data) > limit:
        return Dropped(Reason.LONG)
    try:
        return parse_object(data)
    except ValueError as error:
        return Dropped(Reason.JSON, str(error))


def _signature_problem(message: Mapping[str, Any], now: float, key: bytes | None) -> Dropped | None:
    if key is None:
        return None
    if not is_signed(message, key):
        return Dropped(Reason.SIGNATURE)
    return None if is_fresh(message, now) else Dropped(Reason.STALE)
