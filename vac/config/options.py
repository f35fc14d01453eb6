"""Declaration of options, each once, as a field of Settings, Machinetype or VacuumPipe; and each kind of value.

A field's name is the option's name. Its metadata holds the Option, from which come the parser, `vac config options`
and the sample configuration. parse() and render() are each other's inverse; allowed() is for error messages and the
reference.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vac.text import quoted

NO_EFFECT = "has no effect in this version"


TRUE = ("yes", "true", "on", "1")
FALSE = ("no", "false", "off", "0")
LARGEST = 10**9
"""Enough for everything but Unix seconds; keeps arithmetic with times within bounds."""
LARGEST_TIME = 10**11
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


class BadValue(ValueError):
    """A value that is refused; the text says what was found and what is allowed."""


def host_name(text: str) -> bool:
    """Return True if this (lower-case) is a host name, with a domain or without; underscores exist in the wild."""
    return bool(_HOST.fullmatch(text))


def split_host_port(text: str) -> tuple[str, int]:
    """Return host (without brackets) and port of HOST:PORT or [IPv6]:PORT. Raises BadValue."""
    match = _HOST_PORT.fullmatch(text)
    if not match or not 1 <= int(match["port"]) <= 65535:
        raise BadValue(f"{quoted(text)} is not {Kind.HOST_PORT.words}")
    return match["host"].strip("[]"), int(match["port"])


def boolean(text: str) -> bool | None:
    """Return the meaning of yes/no, true/false, on/off, 1/0 in any case; None for anything else."""
    word = text.lower()
    return True if word in TRUE else False if word in FALSE else None


def _matches(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)
    return lambda text: _text(text) if compiled.fullmatch(text) else None


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


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None


def _count(text: str) -> int | None:
    meaning = boolean(text)
    return _integer(text) if meaning is None else int(meaning)


def _host(text: str) -> str | None:
    host = text.lower().rstrip(".") or text
    return host if host == "." or host_name(host) else None


def _host_port(text: str) -> str:
    split_host_port(text)
    return text


def _capability(text: str) -> str | None:
    name = text.upper().removeprefix("CAP_")
    return name if name in LINUX_CAPABILITIES or name == "NONE" else None


_name = _matches(r"\S+")
_inner_path = _matches(r"(?!.*/\.{1,2}(/|$))/\S*[^\s/]/?")


class Kind(enum.Enum):
    """Type of an option's value."""

    TEXT = ("text", _text)
    NAME = ("a name without blanks", _name)
    PATH = ("an absolute path", _path)
    INNER_PATH = ("an absolute path without blanks and '..'", _inner_path)
    URL = ("a URL (scheme://…)", _matches(r"[a-z][a-z0-9+.-]*://\S*"))
    REGEX = ("a regular expression of Python's", _regex)
    INTEGER = ("an integer", _integer)
    NUMBER = ("a number", lambda text: float(text) if _NUMBER.fullmatch(text) else None)
    TIME = ("Unix seconds", _integer)
    BOOLEAN = ("yes or no (also true, false, on, off, 1, 0)", boolean)
    COUNT_OR_BOOLEAN = ("an integer, or yes (1) or no (0)", _count)
    CHOICE = ("one of ", str.lower)
    HOST_PORT = ("HOST:PORT, with [ ] around an IPv6 address", _host_port)
    LIST = ("a name", _name, True)
    HOSTS = ("a host name, or '.' for this host", _host, True)
    NETWORKS = (
        "a network such as 192.0.2.0/24 or 2001:db8::/32, no bit set after its prefix",
        ipaddress.ip_network,
        True,
    )
    ADDRESSES = ("an IP address", lambda text: str(ipaddress.ip_address(text)), True)
    PATHS = ("an absolute path without blanks and '..'", _inner_path, True)
    HOST_PORTS = ("HOST:PORT, with [ ] around an IPv6 address", _host_port, True)
    CAPABILITIES = ("a Linux capability such as CHOWN; or the one word none", _capability, True)

    def __init__(self, words: str, read: Callable[[str], Any], many: bool = False) -> None:
        """words: for people. read: returns the value of a text; None, or ValueError, if it has none. many: a list."""
        self.words = words
        self.read = read
        self.many = many


class Form(NamedTuple):
    """Type of a single option's values, with what Kind's members have."""

    words: str
    read: Callable[[str], Any]
    many: bool


def matching(pattern: str, words: str, *, many: bool = False) -> Form:
    """Return the form of texts that match a regular expression in full; many: of lists of these."""
    return Form(words, _matches(pattern), many)


WEB_URL = matching(r"https?://[^\s]+", "an http:// or https:// URL")
NUMBERS = (Kind.INTEGER, Kind.NUMBER, Kind.TIME, Kind.COUNT_OR_BOOLEAN)
EMPTY_IS_BAD = (*NUMBERS, Kind.BOOLEAN, Kind.CHOICE, Kind.CAPABILITIES)
"""Kinds for which `option =` can't mean that the default is wanted."""


@dataclass(frozen=True)
class Option:
    """One option of the reference."""

    kind: Kind | Form
    doc: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    """Smallest allowed number, inclusive."""
    most: float | None = None
    old: tuple[str, ...] = ()
    """Deprecated spellings, still accepted with a warning."""
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


def option(kind: Kind | Form, default: Any, doc: str, **details: Any) -> Any:
    """Declare a dataclass field that is an option; details are Option's other fields."""
    return dataclasses.field(default=default, metadata={"option": Option(kind, doc, **details)})


def declared(section: type) -> dict[str, Option]:
    """Return the options that a class declares, by name, in order."""
    fields = dataclasses.fields(section)
    return {field.name: field.metadata["option"] for field in fields if "option" in field.metadata}


def parse(option: Option, text: str) -> Any:
    """Return the value of this text, of the type of the option's field; None: as if it were not set.

    Raises BadValue.
    """
    if _CONTROL.search(text):
        raise BadValue(f"{quoted(text)} holds a control character")
    if not text.strip() and option.kind not in EMPTY_IS_BAD:
        return None
    if not option.kind.many:
        return parse_entry(option, text)
    values = tuple(parse_entry(option, word) for word in text.split())
    if option.kind is not Kind.CAPABILITIES:
        return values
    if not values or ("NONE" in values and len(values) > 1):
        raise BadValue(f"{quoted(' '.join(values))} is neither a list of capabilities nor none alone")
    return () if values == ("NONE",) else tuple(dict.fromkeys(values))


def parse_entry(option: Option, text: str) -> Any:
    """Return the value of a text, or of one word of a list. Raises BadValue."""
    kind, more = option.kind, ""
    try:
        value = kind.read(text)
    except ValueError:
        value = None
    if kind is Kind.CHOICE and value not in option.choices:
        value = None
    elif kind in NUMBERS and value is not None:
        largest = LARGEST_TIME if kind is Kind.TIME else LARGEST
        most = largest if option.most is None else option.most
        least = option.least if option.least is not None else 0 if kind is Kind.COUNT_OR_BOOLEAN else -most
        if value > most and option.most is None:
            more = f" (the largest is {largest})"
        value = value if least <= value <= most else None
    if value is None:
        raise BadValue(f"{quoted(text)} is not {_allowed_one(option)}{more}")
    return value


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
    one = _allowed_one(option)
    return f"a list, each {one}" if option.kind.many else one


def _allowed_one(option: Option) -> str:
    words = option.kind.words + ", ".join(option.choices)
    if option.most is not None:
        return f"{words} from {option.least:g} to {option.most:g}"
    return f"{words}, {option.least:g} or more" if option.least is not None else words
