"""Declaration of options: each once, as a field of Settings, Machinetype or VacuumPipe.

A field's name is the option's name. Its metadata holds the Option, from which come the parser, `vac config options`
and the sample configuration.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

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
