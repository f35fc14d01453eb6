"""How each kind of value is read, checked, written and described.

parse() and render() are each other's inverse; allowed() is what error messages and the reference say.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Any, Callable

from vac.config.options import Kind, Option
from vac.text import quoted

TRUE = ("yes", "true", "on", "1")
FALSE = ("no", "false", "off", "0")
LARGEST = 10**9
"""More than anybody needs of anything but Unix seconds; keeps arithmetic with times within bounds."""
LARGEST_TIME = 10**11
LISTS = tuple(kind for kind in Kind if kind.value.startswith("list"))
NUMBERS = (Kind.INTEGER, Kind.NUMBER, Kind.TIME, Kind.COUNT_OR_BOOLEAN)
EMPTY_IS_BAD = (*NUMBERS, Kind.BOOLEAN, Kind.CHOICE, Kind.CAPABILITIES)
"""Kinds for which `option =` can't mean that the default is wanted."""
_CAPABILITIES = """
AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD
NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN
SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME
SYS_TTY_CONFIG WAKE_ALARM
"""
LINUX_CAPABILITIES = frozenset(_CAPABILITIES.split())

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_INTEGER = re.compile("[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S*")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class BadValue(ValueError):
    """A value that can't be taken; the text says what was found and what is allowed."""


def parse(option: Option, text: str) -> Any:
    """The value that text means, of the type that the option's field has; None: as if it were not set.

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


def render(option: Option, value: Any) -> str:
    """The text that parse() reads as this value."""
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
    """What may stand there, in words."""
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
    """Is this (lower-case) a host name that DNS could hold, with a domain or without?"""
    return bool(_HOST.fullmatch(text))


def split_host_port(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT as host (without brackets) and port; raises BadValue."""
    match = _HOST_PORT.fullmatch(text)
    if not match or not 1 <= int(match["port"]) <= 65535:
        raise BadValue(f"{quoted(text)} is not {_ENTRIES[Kind.HOST_PORT][1]}")
    return match["host"].strip("[]"), int(match["port"])


def boolean(text: str) -> bool | None:
    """What yes/no, true/false, on/off, 1/0 in any case mean; None for anything else."""
    word = text.lower()
    return True if word in TRUE else False if word in FALSE else None


def _parse_one(option: Option, text: str) -> Any:
    if option.kind in NUMBERS:
        return _number(option, text)
    read, _ = _ENTRIES[option.kind]
    value = read(text) if option.kind is not Kind.CHOICE else _choice(option, text)
    if value is None or (option.pattern and not re.fullmatch(option.pattern, text)):
        one = allowed(option)
        raise BadValue(
            f"{quoted(text)} is not {one[len('a list, each ') :] if option.kind in LISTS else one}"
        )
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
    largest = (
        option.most if option.most is not None else LARGEST_TIME if option.kind is Kind.TIME else LARGEST
    )
    least = (
        option.least if option.least is not None else 0 if option.kind is Kind.COUNT_OR_BOOLEAN else -largest
    )
    if not least <= value <= largest:
        ceiling = f" (the largest is {largest})" if value > largest and option.most is None else ""
        raise BadValue(f"{quoted(text)} is not {allowed(option)}{ceiling}")
    return value


def _limits(option: Option) -> str:
    if option.most is not None:
        return f" from {option.least:g} to {option.most:g}"
    return f", {option.least:g} or more" if option.least is not None else ""


def _choice(option: Option, text: str) -> str | None:
    return text.lower() if text.lower() in option.choices else None


def _text(text: str) -> str:
    return " ".join(line.strip() for line in text.split("\n")).strip()


def _name(text: str) -> str | None:
    return text if re.fullmatch(r"\S+", text) else None


def _path(text: str) -> Path | None:
    return Path(text) if text.startswith("/") and "\n" not in text else None


def _inner_path(text: str) -> str | None:
    parts = text.split("/")
    return text if re.fullmatch(r"/\S*[^\s/]/?", text) and not {".", ".."} & set(parts) else None


def _regex(text: str) -> str | None:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None
    return text


def _url(text: str) -> str | None:
    return text if _URL.fullmatch(text) else None


def _host(text: str) -> str | None:
    host = text.lower().rstrip(".") or text
    return host if host == "." or host_name(host) else None


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _host_port(text: str) -> str | None:
    try:
        split_host_port(text)
    except BadValue:
        return None
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


_ENTRIES: dict[Kind, tuple[Callable[[str], Any], str]] = {
    Kind.TEXT: (_text, "text"),
    Kind.NAME: (_name, "a name without blanks"),
    Kind.PATH: (_path, "an absolute path"),
    Kind.INNER_PATH: (_inner_path, "an absolute path without blanks and '..'"),
    Kind.URL: (_url, "a URL (scheme://…)"),
    Kind.REGEX: (_regex, "a regular expression of Python's"),
    Kind.BOOLEAN: (boolean, "yes or no (also true, false, on, off, 1, 0)"),
    Kind.LIST: (_name, "a name"),
    Kind.HOSTS: (_host, "a host name, or '.' for this host"),
    Kind.NETWORKS: (_network, "a network such as 192.0.2.0/24 or 2001:db8::/32, no bit set after its prefix"),
    Kind.ADDRESSES: (_address, "an IP address"),
    Kind.PATHS: (_inner_path, "an absolute path without blanks and '..'"),
    Kind.HOST_PORT: (_host_port, "HOST:PORT, with [ ] around an IPv6 address"),
    Kind.HOST_PORTS: (_host_port, "HOST:PORT, with [ ] around an IPv6 address"),
    Kind.CHOICE: (_text, "one of "),
    Kind.CAPABILITIES: (_capability, "a Linux capability such as CHOWN; or the one word none"),
}
