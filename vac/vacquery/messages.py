"""VacQuery's wire format: one JSON object per UDP datagram, version 01.03.

Facts come from recorded datagrams of classic factories (tests/data/wire). No other module knows field names of the
wire. Everything received is untrusted: decoding returns a message or a Dropped and never raises. The limits of numbers
are beyond any site's; they keep absurd values out of sums.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, Union

from vac import __version__
from vac.decoding import BadJson, parse
from vac.vacquery.signed_json import canonical, is_fresh, is_signed, signature

_Number = TypeVar("_Number", int, float)
VACQUERY_VERSION = "VacQuery 01.03"
QUERY_LIMIT = 1024
"""Most bytes of a query that a responder reads."""
ANSWER_LIMIT = 1499 - 40 - 8
"""Most bytes of an answer, under 1500 with IPv6 and UDP headers."""
MOST_BRACKETS = 200
"""In a message that is read: else one of nothing but brackets costs two milliseconds. Ours have two."""
ANSWER_READ = 9000
"""Most bytes of an answer that a poll reads."""
MOST_HS06_PER_PROCESSOR = 1000
MOST_TIME = 1 << 36
"""Unix seconds: the year 4147."""
MOST_TEXT = 4096


class Kind(enum.Enum):
    """Kind of a query; the value is its message_type."""

    MACHINETYPES = "machinetypes_query"
    MACHINES = "machines_query"
    FACTORIES = "factory_query"


METHODS = {"machinetypes": Kind.MACHINETYPES, "machines": Kind.MACHINES, "factories": Kind.FACTORIES}
"""Names that older peers send instead of message_type."""
SENT_METHODS = {Kind.MACHINES: "machines", Kind.FACTORIES: "factories"}
"""Sent beside message_type, as the classic does."""
_KINDS = {kind.value: kind for kind in Kind}


class Reason(enum.Enum):
    """Reason for dropping a datagram; the value is its name in counters."""

    LONG = "too long"
    JSON = "not JSON"
    KIND = "unknown message type"
    SPACE = "other space"
    COOKIE = "no such cookie"
    FACTORY = "other factory"
    FIELD = "bad field"
    SIGNATURE = "wrong or no signature"
    STALE = "signed too long ago"
    REPLAY = "signature seen before"
    MACHINETYPE = "machinetype not configured here"
    SOURCE = "source not allowed"
    NO_ANSWER = "nothing to answer from"
    LIMIT = "more than the source may get in a second"
    SENDING = "answer could not be sent"


@dataclass(frozen=True)
class Dropped:
    """A datagram that isn't used."""

    reason: Reason
    detail: str = ""
    factory: str = ""
    """Sender of the answer, if its cookie is known."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.reason.value, self.detail)))


@dataclass(frozen=True)
class Query:
    """A query to one factory."""

    kind: Kind
    space: str
    cookie: Any
    """Text in our queries, any JSON value in received ones."""
    client: str = "vac-command"
    signature: str = dataclasses.field(default="", compare=False)
    """Of a received signed query."""


def number(convert: Callable[[float], _Number], most: float, value: object) -> _Number:
    """Return a number from 0 to most as an integer or a float."""
    if type(value) is not int and type(value) is not float:
        raise ValueError("not a number")
    if not 0 <= value <= most:
        raise ValueError(f"not from 0 to {most}")
    return convert(value)


def whole(most: int, value: object) -> int:
    """Return a whole number from 0 to most; 5.0 is one, which classic factories send for 5."""
    found = number(float, most, value)
    if not found.is_integer():
        raise ValueError("not a whole number")
    return int(found)


machines = functools.partial(whole, 10_000)
"""Machines, slots or machinetypes of one factory."""
processors = functools.partial(whole, 100_000)
hs06 = functools.partial(number, float, 1e7)
"""HS06 of one factory."""
seconds = functools.partial(number, int, MOST_TIME)
"""A duration, CPU seconds or Unix seconds."""
amount = functools.partial(number, int, 1 << 63)
"""Bytes, KB or inodes."""
rate = functools.partial(number, float, 1e9)
"""A load average or a percentage."""


def text(value: object) -> str:
    """Return a text; lone surrogates, which can't be encoded, become question marks."""
    if type(value) is not str:
        raise ValueError("not text")
    if len(value) > MOST_TEXT:
        raise ValueError(f"longer than {MOST_TEXT} characters")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def name(value: object) -> str:
    """Return the name of a space, factory, machine or machinetype."""
    found = text(value)
    if not found or len(found) > 255 or " " in found or not found.isprintable():
        raise ValueError("not a name")
    return found


def json_field(
    check: Callable[[Any], Any],
    *names: str,
    default: Any = dataclasses.MISSING,
    needed: bool = False,
    left_out: bool = False,
) -> Any:
    """Declare a field with these names on the wire (its own, if none is given).

    check takes the JSON value and returns the field's, or raises ValueError. needed: an answer is useless without it;
    classic factories of every version send it. left_out: omit it, rather than send null, if there is no value.
    """
    needed = needed or default is dataclasses.MISSING
    metadata = {"check": check, "names": names, "needed": needed, "left_out": left_out}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Answer:
    """Common fields of all answers. More than one name: all are sent, the first one with a value is read."""

    space: str = json_field(name)
    site: str = json_field(text)
    factory: str = json_field(name)
    version: str = json_field(text, "daemon_version", "vac_version", default="")
    """Of the program that answers: `Vac VERSION CLIENT`."""


@dataclass(frozen=True)
class MachinetypeStatus(Answer):
    """State of one machinetype at a factory (machinetype_status)."""

    machinetype: str = json_field(name, default="", needed=True)
    num_machinetypes: int = json_field(machines, default=0, needed=True)
    """Number of these messages in a complete answer."""
    running_machines: int = json_field(machines, default=0, needed=True)
    running_processors: float = json_field(
        processors, "running_processors", "running_cpus", default=0, needed=True
    )
    """Whole; sent as a float while machines run, as an integer while none or starting ones only."""
    running_hs06: float = json_field(hs06, default=0.0, needed=True)
    num_before_fizzle: int = json_field(machines, default=0)
    bytes_per_processor: int | None = json_field(amount, default=None)
    shutdown_message: str | None = json_field(text, default=None)
    """Of the most recently created machine of this type that has finished; likewise the next two."""
    shutdown_time: int | None = json_field(seconds, default=None)
    shutdown_machine: str | None = json_field(text, default=None)
    fqan: str | None = json_field(text, left_out=True, default=None)
    max_wallclock_seconds: int | None = json_field(seconds, default=None)
    min_wallclock_seconds: int | None = json_field(seconds, left_out=True, default=None)
    max_processors: int | None = json_field(processors, default=None)
    min_processors: int | None = json_field(processors, left_out=True, default=None)


@dataclass(frozen=True)
class MachineStatus(Answer):
    """State of one slot of a factory (machine_status)."""

    machine: str = json_field(name, default="", needed=True)
    num_machines: int = json_field(machines, default=0, needed=True)
    """Number of these messages in a complete answer."""
    state: str = json_field(text, default="Unknown", needed=True)
    machinetype: str | None = json_field(name, default=None)
    machine_model: str | None = json_field(text, default=None)
    uuid: str | None = json_field(text, default=None)
    created_time: int | None = json_field(seconds, default=None)
    started_time: int | None = json_field(seconds, default=None)
    heartbeat_time: int | None = json_field(seconds, default=None)
    num_processors: int = json_field(processors, "num_processors", "num_cpus", default=0)
    cpu_seconds: int = json_field(seconds, default=0)
    cpu_percentage: float = json_field(rate, default=0)
    hs06: float = json_field(hs06, default=0.0)
    shutdown_message: str | None = json_field(text, default=None)
    shutdown_time: int | None = json_field(seconds, default=None)
    fqan: str | None = json_field(text, left_out=True, default=None)


@dataclass(frozen=True)
class FactoryStatus(Answer):
    """State of a factory (factory_status)."""

    running_processors: int = json_field(processors, "running_processors", "running_cpus", default=0)
    running_machines: int = json_field(machines, default=0)
    running_hs06: float = json_field(hs06, default=0.0)
    max_processors: int = json_field(
        processors, "max_processors", "max_cpus", "total_cpus", default=0, needed=True
    )
    max_machines: int = json_field(machines, "max_machines", "total_machines", default=0)
    max_hs06: float = json_field(hs06, "max_hs06", "total_hs06", default=0.0, needed=True)
    root_disk_avail_kb: int = json_field(amount, default=0)
    root_disk_avail_inodes: int = json_field(amount, default=0)
    daemon_disk_avail_kb: int = json_field(amount, "daemon_disk_avail_kb", "vac_disk_avail_kb", default=0)
    daemon_disk_avail_inodes: int = json_field(
        amount, "daemon_disk_avail_inodes", "vac_disk_avail_inodes", default=0
    )
    load_average: float = json_field(rate, default=0.0)
    """Over 15 minutes."""
    kernel_version: str = json_field(text, default="")
    os_issue: str = json_field(text, default="")
    boot_time: int = json_field(seconds, default=0)
    factory_heartbeat_time: int = json_field(seconds, default=0)
    responder_heartbeat_time: int = json_field(seconds, default=0)
    mjf_heartbeat_time: int = json_field(seconds, default=0)
    metadata_heartbeat_time: int = json_field(seconds, default=0)
    swap_used_kb: int = json_field(amount, default=0)
    swap_free_kb: int = json_field(amount, default=0)
    mem_used_kb: int = json_field(amount, default=0)
    mem_total_kb: int = json_field(amount, default=0)
    creation_blocked: str | None = json_field(text, left_out=True, default=None)
    """Reason why nothing can be created; None if there is none but full use. Unknown to classic factories."""


AnyStatus = Union[MachinetypeStatus, MachineStatus, FactoryStatus]
ANSWERED_WITH: dict[Kind, type[AnyStatus]] = {
    Kind.MACHINETYPES: MachinetypeStatus,
    Kind.MACHINES: MachineStatus,
    Kind.FACTORIES: FactoryStatus,
}
_MESSAGE_TYPES: dict[type[AnyStatus], str] = {
    MachinetypeStatus: "machinetype_status",
    MachineStatus: "machine_status",
    FactoryStatus: "factory_status",
}
_FIELDS = {
    status: tuple(
        (field.name, field.metadata["names"] or (field.name,), field.metadata)
        for field in dataclasses.fields(status)
    )
    for status in _MESSAGE_TYPES
}
"""Attribute, names on the wire, and json_field()'s details of each field."""
_SHORTENED = (
    "creation_blocked",
    "shutdown_message",
    "os_issue",
    "kernel_version",
    "fqan",
    "shutdown_machine",
    "site",
)
"""Texts to be cut in an answer that would be too long, in this order."""


def part(status: AnyStatus) -> str:
    """Return what distinguishes this answer from others to the same query."""
    if isinstance(status, MachinetypeStatus):
        return status.machinetype
    return status.machine if isinstance(status, MachineStatus) else status.factory


def expected(status: AnyStatus) -> int:
    """Return the number of answers of this factory to the same query."""
    if isinstance(status, MachinetypeStatus):
        return status.num_machinetypes
    return status.num_machines if isinstance(status, MachineStatus) else 1


def cookie(salt: str, factory: str) -> str:
    """Return the cookie that ties an answer to this salt's query and this factory."""
    return hashlib.sha256((salt + factory).encode()).hexdigest()


def encode_query(query: Query, now: float, key: bytes | None = None) -> bytes:
    """Return the query's datagram, signed if there is a key."""
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
        message["nonce"] = secrets.token_hex(8)  # a responder takes each signature once
        message["hmac"] = signature(canonical(message), key)
    return canonical(message)


def decode_query(data: bytes, space: str, now: float, key: bytes | None = None) -> Query | Dropped:
    """Return the query in a datagram that a responder of this space has received."""
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
    problem = _signature_problem(message, now, key)
    return problem or Query(kind, space, message["cookie"], signature=message["hmac"] if key else "")


@dataclass(frozen=True)
class Received:
    """A well-formed answer."""

    status: AnyStatus
    message: Mapping[str, Any]
    """The answer as it was sent, for JSON output."""


def decode_answer(
    data: bytes, kind: Kind, space: str, cookies: Mapping[str, str], now: float, key: bytes | None = None
) -> Received | Dropped:
    """Return the answer in a datagram to a query of this kind. cookies: queried factories by cookie."""
    message = _parse(data, ANSWER_READ)
    if isinstance(message, Dropped):
        return message
    sent_cookie = message.get("cookie")
    factory = cookies.get(sent_cookie) if type(sent_cookie) is str else None
    if factory is None:
        return Dropped(Reason.COOKIE)
    if message.get("message_type") != _MESSAGE_TYPES[ANSWERED_WITH[kind]]:
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
    """Return a message's fields, each checked."""
    values: dict[str, Any] = {}
    for attribute, names, details in _FIELDS[status]:
        for key in names:
            value = message.get(key)
            if value is not None:
                try:
                    values[attribute] = details["check"](value)
                except ValueError as error:
                    return Dropped(Reason.FIELD, f"{key}: {error}")
                break
        else:
            if details["needed"]:
                return Dropped(Reason.FIELD, f"{names[0]}: missing")
    for power, number_of in (("running_hs06", "running_processors"), ("max_hs06", "max_processors")):
        if values.get(power, 0) > MOST_HS06_PER_PROCESSOR * values.get(number_of, 0):
            return Dropped(Reason.FIELD, f"{power}: far too much for {number_of}")
    return status(**values)


def message_of(status: AnyStatus) -> dict[str, Any]:
    """Return all fields of an answer under all their names, without cookie and time_sent."""
    message: dict[str, Any] = {
        "message_type": _MESSAGE_TYPES[type(status)],
        "vacquery_version": VACQUERY_VERSION,
    }
    for attribute, names, details in _FIELDS[type(status)]:
        value = getattr(status, attribute)
        if value is not None or not details["left_out"]:
            message.update((key, value) for key in names)
    return message


def shortened(message: Mapping[str, Any], limit: int) -> dict[str, Any] | None:
    """Return the message in at most limit bytes of canonical text, None if that is impossible.

    Long texts are cut, then older names and dispensable fields are omitted.
    """
    short = dict(message)
    for key in _SHORTENED:
        while short.get(key) and len(canonical(short)) > limit:
            kept = len(short[key]) - max(1, (len(canonical(short)) - limit) // 12)
            short[key] = short[key][: max(0, kept)]
    status = next(status for status, name in _MESSAGE_TYPES.items() if name == message["message_type"])
    fields = _FIELDS[status]
    dispensable = [names[1:] for _, names, _ in fields]
    dispensable += [names for _, names, details in reversed(fields) if not details["needed"]]
    for keys in dispensable:
        if len(canonical(short)) <= limit:
            break
        for key in keys:
            short.pop(key, None)
    return short if len(canonical(short)) <= limit else None


def _parse(data: bytes, limit: int) -> dict[str, Any] | Dropped:
    if len(data) > limit:
        return Dropped(Reason.LONG)
    if data.count(b"[") + data.count(b"{") > MOST_BRACKETS:
        return Dropped(Reason.JSON, "$: has too many brackets")
    try:
        message = parse(data)
    except BadJson as error:
        return Dropped(Reason.JSON, str(error))
    return message if isinstance(message, dict) else Dropped(Reason.JSON, "$: is not an object")


def _signature_problem(message: Mapping[str, Any], now: float, key: bytes | None) -> Dropped | None:
    if key is None:
        return None
    if not is_signed(message, key):
        return Dropped(Reason.SIGNATURE)
    return None if is_fresh(message, now) else Dropped(Reason.STALE)
