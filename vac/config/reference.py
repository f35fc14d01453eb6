"""The reference of all options and the sample configuration, both made from the table of options."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from vac.config.machinetype import Machinetype
from vac.config.options import NO_EFFECT, Option, declared
from vac.config.pipe import VacuumPipe
from vac.config.sections import (
    MACHINEFEATURES_OPTION,
    MACHINETYPE,
    SETTINGS,
    USER_DATA_FILE,
    USER_DATA_OPTION,
)
from vac.config.settings import Settings
from vac.config.values import allowed, render

WIDTH = 100
SAMPLE_NAME = "site.conf.sample"
"""The sample's name in etc/vac.d: it doesn't end in .conf, so that it is never read."""
_SAMPLE_HEAD = f"""\
# Sample configuration of a Vac factory, with every option that there is. Vac doesn't read this file, since
# its name doesn't end in .conf: copy it to a name that does, such as /etc/vac.d/site.conf, or write there
# just what you need. Options that begin with "# " show their default or, where there is none, an example.
# `vac config check` tells what is wrong, `vac config show` what is in force.
# This file comes from the table of options: vac config options --sample > etc/vac.d/{SAMPLE_NAME}
"""
_SAMPLE_SET = (
    "vac_space",
    "target_share",
    "machine_model",
    "root_image",
    "user_data",
    "container_capabilities",
)
"""What the sample sets; all the rest is commented out."""
_FREE = {
    MACHINEFEATURES_OPTION: ("extra key XXX of $MACHINEFEATURES", "text"),
    USER_DATA_OPTION: (
        "text that replaces ##user_data_option_XXX## in user_data; never shown or logged",
        "text",
    ),
    USER_DATA_FILE: ("file whose content replaces ##user_data_option_XXX## in user_data", "path"),
}


@dataclass(frozen=True)
class Entry:
    """One option as the reference tells of it."""

    section: str
    name: str
    doc: str
    allowed: str
    """What may stand there, in words."""
    default: str
    """The default as it would be written, or in words; empty if there is none."""
    sample: str
    """A value that makes a good example."""
    required: bool
    pipe: bool
    """May a Vacuum Pipe's document set it?"""
    old: tuple[str, ...]
    """Deprecated spellings."""


def entries() -> Iterator[Entry]:
    """Every option of every section, in the order of the reference."""
    yield from _declared("settings", Settings)
    yield from _free("settings", SETTINGS.prefixes)
    yield from _declared("machinetype NAME", Machinetype)
    yield from _free("machinetype NAME", MACHINETYPE.prefixes)
    yield from _declared("vacuum_pipe PREFIX", VacuumPipe)


def as_text() -> str:
    """The reference for people."""
    parts: list[str] = []
    section = ""
    for entry in entries():
        if entry.section != section:
            section = entry.section
            parts += [f"[{section}]", ""]
        parts += [entry.name, *_wrapped(entry.doc[0].upper() + entry.doc[1:] + ".", "    ")]
        pipe = " A pipe's document may set it." if entry.pipe else ""
        parts += [*_wrapped(f"Value: {entry.allowed}. {_default_words(entry)}{pipe}", "    "), ""]
    parts += [
        *_wrapped(
            "[vacuum_pipe PREFIX] also takes any option of [machinetype NAME]; it overrides the pipe's.", ""
        ),
        "",
    ]
    parts += ["Removed options, warned about and ignored:", ""]
    for name, instead in MACHINETYPE.removed.items():
        where = "" if name in SETTINGS.removed else " in [machinetype NAME]"
        parts += _wrapped(f"{name}{where}: {instead}", "    ")
    return "\n".join(parts) + "\n"


def as_json() -> str:
    """The reference for programs."""
    return json.dumps([dataclasses.asdict(entry) for entry in entries()], indent=2)


def sample() -> str:
    """The content of etc/vac.d/site.conf.sample."""
    titles = {
        "settings": "[settings]",
        "machinetype NAME": "[machinetype example]",
        "vacuum_pipe PREFIX": "# [vacuum_pipe example]",
    }
    parts = [_SAMPLE_HEAD]
    section = ""
    for entry in entries():
        if entry.section != section:
            section = entry.section
            parts += [titles[section], ""]
        mark = "" if entry.name in _SAMPLE_SET and not titles[section].startswith("#") else "# "
        words = f"{entry.doc}: {entry.allowed}. {_default_words(entry)}"
        parts += [*_wrapped(words, "## "), f"{mark}{entry.name} = {entry.sample}", ""]
    return "\n".join(parts)


def _declared(section: str, holder: type) -> Iterator[Entry]:
    defaults = {field.name: field.default for field in dataclasses.fields(holder)}
    for name, option in declared(holder).items():
        default = option.default_doc or _written(option, defaults[name])
        example = option.sample or default
        yield Entry(
            section,
            name,
            f"{option.doc} ({NO_EFFECT})" if option.no_effect else option.doc,
            allowed(option),
            default,
            example,
            option.required,
            option.pipe,
            option.old,
        )


def _free(section: str, prefixes: tuple[str, ...]) -> Iterator[Entry]:
    for prefix in prefixes:
        doc, kind = _FREE[prefix]
        what = f"{kind}; XXX is made of a-z, 0-9 and _"
        example = "/etc/vac-example" if kind == "path" else "example"
        pipe = section != "settings"
        yield Entry(section, f"{prefix}XXX", doc, what, "", example, False, pipe, ())


def _written(option: Option, default: object) -> str:
    return "" if default is None or default in ("", ()) else render(option, default)


def _default_words(entry: Entry) -> str:
    words = "Required." if entry.required else f"Default: {entry.default or 'not set'}."
    return words + (f" Formerly: {', '.join(entry.old)}." if entry.old else "")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
