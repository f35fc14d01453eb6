"""Everything that is printed of options and their values, made from the table of options: the reference, the sample
configuration, and the merged configuration without its secrets.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vac.config.ini import own_line
from vac.config.load import Configuration
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.options import NO_EFFECT, Kind, allowed, declared, render
from vac.config.sections import (
    MACHINEFEATURES_OPTION,
    MACHINETYPE,
    SETTINGS,
    USER_DATA_FILE,
    USER_DATA_OPTION,
)
from vac.config.settings import Settings
from vac.text import without_url_secrets

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
"""Options that the sample sets; all others are commented out."""
_REPLACES = "replaces ##user_data_option_XXX## in user_data"
_FREE = {
    MACHINEFEATURES_OPTION: ("extra key XXX of $MACHINEFEATURES", "text", "example"),
    USER_DATA_OPTION: (f"text that {_REPLACES}; never shown or logged", "text", "example"),
    USER_DATA_FILE: (f"file whose content {_REPLACES}", "path", "/etc/vac-example"),
}


@dataclass(frozen=True)
class Entry:
    """One option in the reference."""

    section: str
    name: str
    doc: str
    allowed: str
    """Allowed values, in words."""
    default: str
    """The default as it would be written, or in words; empty if there is none."""
    sample: str
    """A value that makes a good example."""
    required: bool = False
    pipe: bool = False
    """True if a Vacuum Pipe's document may set it."""
    old: tuple[str, ...] = ()
    """Deprecated spellings."""


def entries() -> Iterator[Entry]:
    """Yield every option of every section, in the order of the reference."""
    for title, holder, schema in (
        ("settings", Settings, SETTINGS),
        ("machinetype NAME", Machinetype, MACHINETYPE),
        ("vacuum_pipe PREFIX", VacuumPipe, None),
    ):
        for name, option in declared(holder).items():
            value = getattr(holder, name)
            default = option.default_doc or ("" if value in (None, "", ()) else render(option, value))
            doc = f"{option.doc} ({NO_EFFECT})" if option.no_effect else option.doc
            sample = option.sample or default
            yield Entry(
                title, name, doc, allowed(option), default, sample, option.required, option.pipe, option.old
            )
        for prefix in schema.prefixes if schema else ():
            doc, kind, sample = _FREE[prefix]
            what = f"{kind}; XXX is made of a-z, 0-9 and _"
            yield Entry(title, f"{prefix}XXX", doc, what, "", sample, pipe=title != "settings")


def reference() -> str:
    """Return the reference for people."""
    parts: list[str] = []
    section = ""
    for entry in entries():
        if entry.section != section:
            section = entry.section
            parts += [f"[{section}]", ""]
        parts += [entry.name, *_wrapped(entry.doc[0].upper() + entry.doc[1:] + ".", "    ")]
        pipe = " A pipe's document may set it." if entry.pipe else ""
        parts += [*_wrapped(f"Value: {entry.allowed}. {_default_words(entry)}{pipe}", "    "), ""]
    text = "[vacuum_pipe PREFIX] also takes any option of [machinetype NAME]; it overrides the pipe's."
    parts += [*_wrapped(text, ""), "", "Removed options, warned about and ignored:", ""]
    for name, instead in MACHINETYPE.removed.items():
        where = "" if name in SETTINGS.removed else " in [machinetype NAME]"
        parts += _wrapped(f"{name}{where}: {instead}", "    ")
    return "\n".join(parts) + "\n"


def reference_json() -> str:
    """Return the reference for programs."""
    return json.dumps([dataclasses.asdict(entry) for entry in entries()], indent=2)


def sample() -> str:
    """Return the content of etc/vac.d/site.conf.sample."""
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


def _default_words(entry: Entry) -> str:
    words = "Required." if entry.required else f"Default: {entry.default or 'not set'}."
    return words + (f" Formerly: {', '.join(entry.old)}." if entry.old else "")


def _wrapped(text: str, indent: str) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, indent, indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def shown(configuration: Configuration) -> str:
    """Return every option that has a value, set or by default, as INI text that can be read again.

    Only values of user_data_option_XXX and passwords in URLs are left out.
    """
    sections = [("[settings]", _values(configuration.settings))]
    for name, kind in configuration.machinetypes.items():
        origin = f"# from [vacuum_pipe {kind.pipe}]\n" if kind.pipe else ""
        sections.append((f"{origin}[machinetype {name}]", _values(kind)))
    sections += [(f"[vacuum_pipe {name}]", _values(pipe)) for name, pipe in configuration.pipes.items()]
    return "\n".join("\n".join([title, *map(_line, values.items()), ""]) for title, values in sections)


def shown_json(configuration: Configuration) -> str:
    """Return the same as JSON, with the warnings and the digest."""
    content = {
        "settings": _values(configuration.settings),
        "machinetypes": {name: _values(kind) for name, kind in configuration.machinetypes.items()},
        "pipes": {name: _values(pipe) for name, pipe in configuration.pipes.items()},
        "unusable": dict(configuration.unusable),
        "warnings": [vars(problem) for problem in configuration.warnings],
        "digest": configuration.digest,
    }
    return json.dumps(content, indent=2)


def _line(option: tuple[str, str]) -> str:
    name, text = option
    lines = text.split("\n")
    if own_line(lines[0]) != lines[0]:
        lines.insert(0, "")
    return f"{name} = {lines[0]}".rstrip() + "".join(f"\n\t{line}" for line in lines[1:])


def _values(holder: Settings | Machinetype | VacuumPipe) -> dict[str, str]:
    """Return all values by option name, as they are written in files."""
    values: dict[str, Any] = dict(vars(holder))
    options: Mapping[str, Any] = declared(type(holder))
    if isinstance(holder, VacuumPipe):
        values.update(holder.overrides)
        options = {**options, **declared(Machinetype)}
    texts = {
        name: without_url_secrets(render(option, values[name]))
        for name, option in options.items()
        if values.get(name) not in (None, "", ())
        or (option.kind is Kind.CAPABILITIES and values.get(name) is not None)
    }
    if isinstance(holder, Settings):
        texts.update(
            {MACHINEFEATURES_OPTION + key: text for key, text in holder.machinefeatures_options.items()}
        )
    for key, text in holder.user_data_options.items():
        texts[USER_DATA_OPTION + key] = f"({len(text)} characters, not shown)"
    texts.update({USER_DATA_FILE + key: text for key, text in holder.user_data_files.items()})
    return texts
