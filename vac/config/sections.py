"""From a section's texts to values: spellings, unknown and removed options, parsing, one option at a time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vac.config.files import Report, Section, Value
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.options import Option, declared
from vac.config.settings import Settings
from vac.config.values import BadValue, allowed, parse
from vac.text import quoted

USER_DATA_OPTION = "user_data_option_"
USER_DATA_FILE = "user_data_file_"
MACHINEFEATURES_OPTION = "machinefeatures_option_"
REMOVED = {
    "domain_type": "vm_domain_type chooses between kvm and qemu",
    "total_machines": "total_processors limits what Vac may allocate",
    "delete_old_files": "machines_dir_days says how long directories are kept",
    "log_machineoutputs": "machines' directories stay for machines_dir_days",
    "user_data_proxy_cert": "the certificate is x509cert.pem in the machinetype's directory",
    "user_data_proxy_key": "the key is x509key.pem in the machinetype's directory",
}
REMOVED_IN_MACHINETYPES = dict.fromkeys(
    ("rootpublickey", "root_public_key"), "root_public_key of [settings] counts for all machinetypes"
)


@dataclass(frozen=True)
class Schema:
    """What one kind of section may hold."""

    title: str
    """The section as the reference calls it."""
    options: Mapping[str, Option]
    prefixes: tuple[str, ...]
    """Beginnings of options whose names end as people like (a-z 0-9 _)."""
    removed: Mapping[str, str]
    """Options of the classic that mean nothing any more, and what takes their place."""


@dataclass(frozen=True)
class Parsed:
    """A section's values, as far as they are right."""

    name: str
    """The section as messages call it."""
    values: Mapping[str, Any]
    """By option name; only what is set."""
    free: Mapping[str, Mapping[str, str]]
    """By prefix, then by XXX."""
    files: Mapping[str, str]
    """Which file an option is set in."""
    file: str
    """A file that the section stands in."""

    def where(self, option: str) -> tuple[str, str, str]:
        """File, section and option for a Problem."""
        return self.files.get(option, self.file), self.name, option


SETTINGS = Schema(
    "settings", declared(Settings), (USER_DATA_OPTION, USER_DATA_FILE, MACHINEFEATURES_OPTION), REMOVED
)
MACHINETYPE = Schema(
    "machinetype NAME",
    declared(Machinetype),
    (USER_DATA_OPTION, USER_DATA_FILE),
    {**REMOVED, **REMOVED_IN_MACHINETYPES},
)
PIPE = Schema(
    "vacuum_pipe PREFIX",
    {**declared(Machinetype), **declared(VacuumPipe)},
    MACHINETYPE.prefixes,
    MACHINETYPE.removed,
)
SCHEMAS = (SETTINGS, MACHINETYPE, PIPE)


def parse_section(
    name: str,
    schema: Schema,
    section: Section,
    common: Mapping[str, Value],
    report: Report,
    partial: bool = False,
) -> Parsed:
    """Parse one section; common are [DEFAULT]'s values, which count where the section has none of its own.

    Partial: files are broken, so what is missing may be in them and isn't complained about.
    """
    spellings = {old: new for new, option in schema.options.items() for old in option.old}
    _report_strangers(name, schema, spellings, section.values, report)
    every = {**common, **section.values}
    values: dict[str, Any] = {}
    files: dict[str, str] = {}
    for option_name, option in schema.options.items():
        found = _spelled(name, option_name, option, every, report)
        value, right = _parse_value(name, found, option, every, report) if found else (None, True)
        if value is not None and found:
            values[option_name], files[option_name] = value, every[found].file
        elif option.required and right and not partial:
            report.error(
                section.file, name, option_name, f"is missing; it has to be set to {allowed(option)}"
            )
    free: dict[str, dict[str, str]] = {prefix: {} for prefix in schema.prefixes}
    for key, given in every.items():
        prefix = _prefix(schema, key)
        if prefix and _free_name(name, prefix, key, given, report):
            text = given.text.strip() if prefix == MACHINEFEATURES_OPTION else given.text
            free[prefix][key[len(prefix) :]] = text
    return Parsed(name, values, free, files, section.file)


def build_machinetype(name: str, parsed: Parsed, settings: Settings) -> Machinetype:
    """A machinetype with its defaults worked out, of which some come from [settings]."""
    values: dict[str, Any] = dict(parsed.values)
    values.setdefault(
        "min_wallclock_seconds", values.get("max_wallclock_seconds", Machinetype.max_wallclock_seconds)
    )
    values.setdefault("machinegroup", values.get("accounting_fqan", name))
    values["disk_gb_per_processor"] = values.get("disk_gb_per_processor") or settings.disk_gb_per_processor
    files = parsed.free[USER_DATA_FILE]
    inherited = {key: text for key, text in settings.user_data_options.items() if key not in files}
    return Machinetype(
        name=name,
        **values,
        user_data_options={**inherited, **parsed.free[USER_DATA_OPTION]},
        user_data_files={**settings.user_data_files, **files},
    )


def check_common(common: Mapping[str, Value], report: Report) -> None:
    """Warn about options of [DEFAULT] that no section knows."""
    names = {name for schema in SCHEMAS for name in _names(schema)}
    for key, given in common.items():
        if key not in names and not any(_prefix(schema, key) for schema in SCHEMAS):
            report.warn(
                given.file, "DEFAULT", key, f"no section has this option{nearest(key, names)}; it is ignored"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that name the known one that is most like name; empty if none is."""
    matches = difflib.get_close_matches(name, sorted(known), n=1)
    return f", the nearest is {matches[0]}" if matches else ""


def _spelled(
    section: str, name: str, option: Option, every: Mapping[str, Value], report: Report
) -> str | None:
    """The spelling under which an option is there and counts; deprecated ones are reported."""
    found = [spelling for spelling in (name, *option.old) if spelling in every]
    for spelling in found:
        if spelling != name:
            ignored = f" and is ignored, since {found[0]} is there too" if spelling != found[0] else ""
            report.warn(
                every[spelling].file, section, spelling, f"is deprecated{ignored}; its name is now {name}"
            )
    return found[0] if found else None


def _parse_value(
    section: str, spelling: str, option: Option, every: Mapping[str, Value], report: Report
) -> tuple[Any, bool]:
    """The value, None if it is empty or wrong; and whether it is right. What is wrong is reported."""
    given = every[spelling]
    try:
        return parse(option, given.text), True
    except BadValue as error:
        report.error(given.file, section, spelling, str(error))
        return None, False


def _report_strangers(
    name: str, schema: Schema, spellings: Mapping[str, str], raw: Mapping[str, Value], report: Report
) -> None:
    for key, given in raw.items():
        if key in schema.options or key in spellings or _prefix(schema, key):
            continue
        if key in schema.removed:
            report.warn(
                given.file, name, key, f"no longer means anything and is ignored: {schema.removed[key]}"
            )
            continue
        elsewhere = [other.title for other in SCHEMAS if key in _names(other) - set(other.removed)]
        hint = f", it belongs in [{elsewhere[0]}]" if elsewhere else nearest(key, _names(schema))
        report.warn(given.file, name, key, f"is not an option of [{schema.title}]{hint}; it is ignored")


def _names(schema: Schema) -> set[str]:
    old = {spelling for option in schema.options.values() for spelling in option.old}
    return set(schema.options) | old | set(schema.removed)


def _prefix(schema: Schema, key: str) -> str | None:
    return next((prefix for prefix in schema.prefixes if key.startswith(prefix)), None)


def _free_name(section: str, prefix: str, key: str, given: Value, report: Report) -> bool:
    """Is what follows the prefix a name? And for files, is the value a path?"""
    if not re.fullmatch("[a-z0-9_]+", key[len(prefix) :]):
        report.error(
            given.file, section, key, f"what follows {prefix} may hold only a-z, 0-9 and _, at least one"
        )
        return False
    if prefix == USER_DATA_FILE and not re.fullmatch(r"[^\x00-\x1f\x7f]+", given.text):
        report.error(given.file, section, key, f"{quoted(given.text)} is not a path")
        return False
    return True
