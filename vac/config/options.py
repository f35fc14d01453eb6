"""Declaration of options, each once, as a field of Settings, Machinetype or VacuumPipe; and each kind of value.

A field's name is the option's name. Its metadata holds the Option, from which come the parser, `vac config options`
and the sample configuration. parse() and render() are each other's inverse; allowed() is for error messages and the
reference.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vac.text import quoted

NO_EFFECT = "has no effect in this version"


class Kind(enum.Enum):
    """Type of an option's value, as people write it."""

    TEXT = "text"
    NAME = "name"
    PATH = "path"
    INNER_PATH = "path inside the machine"
    URL = "URL"
    REGEX = "regex"
    INTEGER = "integer"
    NUMBER = "number"
    TIME = "Unix seconds"
    BOOLEAN = "yes/no"
    COUNT_OR_BOOLEAN = "number or yes/no"
    LIST = "list"
    HOSTS = "list of host names"
    NETWORKS = "list of networks"
    ADDRESSES = "list of IP addresses"
    PATHS = "list of absolute paths"
    HOST_PORT = "HOST:PORT"
    HOST_PORTS = "list of HOST:PORT"
    CHOICE = "one of"
    CAPABILITIES = "list of capabilities, or none"


TRUE = ("yes", "true", "on", "1")
FALSE = ("no", "false", "off", "0")
LARGEST = 10**9
"""Enough for everything but Unix seconds; keeps arithmetic with times within bounds."""
LARGEST_TIME = 10**11
LISTS = tuple(kind for kind in Kind if kind.value.startswith("list"))
NUMBERS = (Kind.INTEGER, Kind.NUMBER, Kind.TIME, Kind.COUNT_OR_BOOLEAN)
EMPTY_IS_BAD = (*NUMBERS, Kind.BOOLEAN, Kind.CHOICE, Kind.CAPABILITIES)
"""Kinds for which `option =` can't mean that the default is wanted."""
_CAPABILITIES = """
AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER
FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE
NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE
SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
"""
LINUX_CAPABILITIES = frozenset(_CAPABILITIES.split())
_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_INTEGER = re.compile("[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Option:
    """One option of the reference."""

    kind: Kind
    doc: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    """Smallest allowed number, inclusive."""
    most: float | None = None
    old: tuple[str, ...] = ()
    """Deprecated spellings, still accepted with a warning."""
    pattern: str = ""
    """Regular expression that a name, or each entry of a list, must match in full."""
    pattern_doc: str = ""
    """The pattern in words."""
    sample: str = ""
    """Value in the sample configuration, where the default says too little."""
    required: bool = False
    pipe: bool = False
    """True if a Vacuum Pipe may set it: never if it widens a machine's access to the host."""
    default_doc: str = ""
    """The default in words, where it is worked out when the configuration is read."""
    retained: bool = False
    """Kept with each machine, because its watching and accounting need it until it has ended."""
    no_effect: bool = False
    """Accepted because the classic has it; nothing uses it yet."""


def option(kind: Kind, default: Any, doc: str, **details: Any) -> Any:
    """Declare a dataclass field that is an option; details are Option's other fields."""
    return dataclasses.field(default=default, metadata={"option": Option(kind, doc, **details)})


def declared(section: type) -> dict[str, Option]:
    """Return the options that a class declares, by name, in order."""
    fields = dataclasses.fields(section)
    return {field.name: field.metadata["option"] for field in fields if "option" in field.metadata}


class BadValue(ValueError):
    """A value that is refused; the text says what was found and what is allowed."""


def parse(option: Option, text: str) -> Any:
    """Return the value of this text, of the type of the option's field; None: as if it were not set.

    Raises BadValue.
    """
    if _CONTROL.search(text):
        raise BadValue(f"{quoted(text)} holds a control character")
    if not text.strip() and option.kind not in EMPTY_IS_BAD:
        return None
    words = text.split() if option.kind in LISTS else [text]
    values = [_parse_one(option, word) for word in words]
    if option.kind is Kind.CAPABILITIES:
        return _capabilities(values)
    return tuple(values) if option.kind in LISTS else values[0]


def parse_entries(option: Option, text: str) -> tuple[tuple[Any, ...], list[BadValue]]:
    """Return the right entries of a list, and what is wrong with the others."""
    values, wrong = [], []
    for word in text.split():
        try:
            values.append(_parse_one(option, word))
        except BadValue as error:
            wrong.append(error)
    return tuple(values), wrong


def render(option: Option, value: Any) -> str:
    """Return the text that parse() reads as this value."""
    if option.kind is Kind.CAPABILITIES and not value:
        return "none"
    if isinstance(value, tuple):
        return " ".join(str(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def allowed(option: Option) -> str:
    """Return the allowed values in words."""
    kind = option.kind
    if kind in NUMBERS:
        words = {
            Kind.INTEGER: "an integer",
            Kind.NUMBER: "a number",
            Kind.TIME: "Unix seconds",
            Kind.COUNT_OR_BOOLEAN: "an integer, or yes (1) or no (0)",
        }
        return words[kind] + _limits(option)
    one = option.pattern_doc or _ENTRIES[kind][1]
    if kind is Kind.CHOICE:
        one += ", ".join(option.choices)
    return f"a list, each {one}" if kind in LISTS else one


def host_name(text: str) -> bool:
    """Return True if this (lower-case) is a host name, with a domain or without; underscores exist in the wild."""
    return bool(_HOST.fullmatch(text))


def split_host_port(text: str) -> tuple[str, int]:
    """Return host (without brackets) and port of HOST:PORT or [IPv6]:PORT. Raises BadValue."""
    match = _HOST_PORT.fullmatch(text)
    if not match or not 1 <= int(match["port"]) <= 65535:
        raise BadValue(f"{quoted(text)} is not {_ENTRIES[Kind.HOST_PORT][1]}")
    return match["host"].strip("[]"), int(match["port"])


def boolean(text: str) -> bool | None:
    """Return the meaning of yes/no, true/false, on/off, 1/0 in any case; None for anything else."""
    word = text.lower()
    return True if word in TRUE else False if word in FALSE else None


def _parse_one(option: Option, text: str) -> Any:
    if option.kind in NUMBERS:
        return _number(option, text)
    read, _ = _ENTRIES[option.kind]
    value = read(text)
    if option.kind is Kind.CHOICE:
        value = text.lower() if text.lower() in option.choices else None
    if value is None or (option.pattern and not re.fullmatch(option.pattern, text)):
        one = allowed(option)
        right = one[len("a list, each ") :] if option.kind in LISTS else one
        raise BadValue(f"{quoted(text)} is not {right}")
    return value


def _number(option: Option, text: str) -> int | float:
    meaning = boolean(text) if option.kind is Kind.COUNT_OR_BOOLEAN else None
    if meaning is not None:
        return int(meaning)
    value: int | float = math.nan
    if option.kind is Kind.NUMBER and _NUMBER.fullmatch(text):
        value = float(text)
    elif option.kind is not Kind.NUMBER and _INTEGER.fullmatch(text):
        value = int(text)
    largest: int | float = LARGEST_TIME if option.kind is Kind.TIME else LARGEST
    largest = largest if option.most is None else option.most
    smallest = 0 if option.kind is Kind.COUNT_OR_BOOLEAN else -largest
    if not (smallest if option.least is None else option.least) <= value <= largest:
        ceiling = f" (the largest is {largest})" if value > largest and option.most is None else ""
        raise BadValue(f"{quoted(text)} is not {allowed(option)}{ceiling}")
    return value


def _limits(option: Option) -> str:
    if option.most is not None:
        return f" from {option.least:g} to {option.most:g}"
    return f", {option.least:g} or more" if option.least is not None else ""


def _matching(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)
    return lambda text: text if compiled.fullmatch(text) else None


def _valid(make: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that gives what `make` makes of a text, None where it raises ValueError."""

    def read(text: str) -> Any:
        try:
            return make(text)
        except ValueError:
            return None

    return read


def _text(text: str) -> str:
    return " ".join(line.strip() for line in text.split("\n")).strip()


def _path(text: str) -> Path | None:
    return Path(text) if text.startswith("/") and "\n" not in text else None


def _regex(text: str) -> str | None:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None
    return text


def _host(text: str) -> str | None:
    host = text.lower().rstrip(".") or text
    return host if host == "." or host_name(host) else None


def _host_port(text: str) -> str:
    split_host_port(text)
    return text


def _capability(text: str) -> str | None:
    name = text.upper().removeprefix("CAP_")
    return name if name in LINUX_CAPABILITIES or name == "NONE" else None


def _capabilities(names: list[str]) -> tuple[str, ...]:
    if names == ["NONE"]:
        return ()
    if not names or "NONE" in names:
        raise BadValue(f"{quoted(' '.join(names))} is neither a list of capabilities nor none alone")
    return tuple(dict.fromkeys(names))


_NAME = _matching(r"\S+")
_INNER_PATH = _matching(r"(?!.*/\.{1,2}(/|$))/\S*[^\s/]/?")
_ENTRIES: dict[Kind, tuple[Callable[[str], Any], str]] = {
    Kind.TEXT: (_text, "text"),
    Kind.NAME: (_NAME, "a name without blanks"),
    Kind.PATH: (_path, "an absolute path"),
    Kind.INNER_PATH: (_INNER_PATH, "an absolute path without blanks and '..'"),
    Kind.URL: (_matching(r"[a-z][a-z0-9+.-]*://\S*"), "a URL (scheme://…)"),
    Kind.REGEX: (_regex, "a regular expression of Python's"),
    Kind.BOOLEAN: (boolean, "yes or no (also true, false, on, off, 1, 0)"),
    Kind.LIST: (_NAME, "a name"),
    Kind.HOSTS: (_host, "a host name, or '.' for this host"),
    Kind.NETWORKS: (
        _valid(ipaddress.ip_network),
        "a network such as 192.0.2.0/24 or 2001:db8::/32, no bit set after its prefix",
    ),
    Kind.ADDRESSES: (_valid(lambda text: str(ipaddress.ip_address(text))), "an IP address"),
    Kind.PATHS: (_INNER_PATH, "an absolute path without blanks and '..'"),
    Kind.HOST_PORT: (_valid(_host_port), "HOST:PORT, with [ ] around an IPv6 address"),
    Kind.HOST_PORTS: (_valid(_host_port), "HOST:PORT, with [ ] around an IPv6 address"),
    Kind.CHOICE: (_text, "one of "),
    Kind.CAPABILITIES: (_capability, "a Linux capability such as CHOWN; or the one word none"),
}
