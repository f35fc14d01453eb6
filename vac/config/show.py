"""The merged configuration for people and programs, without its secrets.

As INI text it can be read again; only what is left out (values of user_data_option_XXX, passwords in URLs)
differs then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vac.config.load import Configuration
from vac.config.machinetype import Machinetype
from vac.config.options import Kind, Option, declared
from vac.config.pipe import VacuumPipe
from vac.config.sections import MACHINEFEATURES_OPTION, USER_DATA_FILE, USER_DATA_OPTION
from vac.config.settings import Settings
from vac.config.values import render, without_password

SETTINGS = declared(Settings)
MACHINETYPE = declared(Machinetype)
PIPE = declared(VacuumPipe)


def as_ini(configuration: Configuration) -> str:
    """Every option that has a value, set or by default, as INI text."""
    sections = [("[settings]", _settings(configuration.settings))]
    for name, kind in configuration.machinetypes.items():
        origin = f"# from [vacuum_pipe {kind.pipe}]\n" if kind.pipe else ""
        sections.append((f"{origin}[machinetype {name}]", _machinetype(kind)))
    sections += [(f"[vacuum_pipe {name}]", _pipe(pipe)) for name, pipe in configuration.pipes.items()]
    return "\n".join("\n".join([title, *map(_line, options), ""]) for title, options in sections)


def as_json(configuration: Configuration) -> str:
    """The same as JSON: values as they are written in files, with the warnings and the digest."""
    content = {
        "settings": dict(_settings(configuration.settings)),
        "machinetypes": {name: dict(_machinetype(kind)) for name, kind in configuration.machinetypes.items()},
        "pipes": {name: dict(_pipe(pipe)) for name, pipe in configuration.pipes.items()},
        "unusable": dict(configuration.unusable),
        "warnings": [vars(problem) for problem in configuration.warnings],
        "digest": configuration.digest,
    }
    return json.dumps(content, indent=2)


def _line(option: tuple[str, str]) -> str:
    name, text = option
    separator = " =" if text.startswith(";") else " = "
    return name + separator + text.replace("\n", "\n\t")


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    yield from _declared(SETTINGS, vars(settings))
    for key, text in settings.machinefeatures_options.items():
        yield MACHINEFEATURES_OPTION + key, text
    yield from _user_data(settings)


def _machinetype(machinetype: Machinetype) -> Iterator[tuple[str, str]]:
    yield from _declared(MACHINETYPE, vars(machinetype))
    yield from _user_data(machinetype)


def _pipe(pipe: VacuumPipe) -> Iterator[tuple[str, str]]:
    yield from _declared(PIPE, vars(pipe))
    yield from _declared(MACHINETYPE, pipe.overrides)
    yield from _user_data(pipe)


def _declared(options: Mapping[str, Option], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, option in options.items():
        value = values.get(name)
        if value is None or (value in ("", ()) and option.kind is not Kind.CAPABILITIES):
            continue
        text = render(option, value)
        yield name, _hidden(text) if option.secret else without_password(text)


def _user_data(holder: Settings | Machinetype | VacuumPipe) -> Iterator[tuple[str, str]]:
    for key, text in holder.user_data_options.items():
        yield USER_DATA_OPTION + key, _hidden(text)
    for key, text in holder.user_data_files.items():
        yield USER_DATA_FILE + key, text


def _hidden(text: str) -> str:
    return f"({len(text)} characters, not shown)"
