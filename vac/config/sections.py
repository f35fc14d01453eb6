"""From a section's texts to values: spellings, unknown and removed options, suspicious values, parsing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vac.config.ini import Contents, Report, Section, Value
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.options import BadValue, Option, allowed, declared, parse, parse_entry, render
from vac.config.settings import Settings
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
_LENIENT = frozenset(
    (
        *("draining", "factories", "fix_networking", "hs06_per_processor", "overload_per_processor"),
        *("processors_per_superslot", "gocdb_sitename", "gocdb_cert_file", "gocdb_key_file", "gocdb_url"),
        *("version_logger", "version_logger_hostport", "vacmon_hostport", "forward_dev", "root_public_key"),
    )
)
"""Options of [settings] whose wrong values the classic takes: a warning, and the default is used."""
_RELATIVES = {"mb_per_machine": "mb_per_processor", "hs06_per_machine": "hs06_per_processor"}
"""Options that never existed but occur in examples for sites, and the intended ones."""
_QUOTED = re.compile(r"""(["']).*\1""", re.DOTALL)


@dataclass(frozen=True)
class Schema:
    """Options of one kind of section."""

    title: str
    """The section as the reference calls it."""
    options: Mapping[str, Option]
    prefixes: tuple[str, ...]
    """Beginnings of options whose names end freely (a-z 0-9 _)."""
    removed: Mapping[str, str]
    """Options of the classic without a meaning now, and what takes their place."""

    def prefix(self, name: str) -> str | None:
        """Return the beginning that this option has, if it has one."""
        return next((prefix for prefix in self.prefixes if name.startswith(prefix)), None)

    def spellings(self) -> dict[str, str]:
        """Return every spelling of every option, deprecated ones included, with the name it has now."""
        old = {spelling: name for name, option in self.options.items() for spelling in option.old}
        return {**old, **{name: name for name in self.options}}


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
    """The file in which each option is set."""
    file: str
    """A file that has the section."""

    def where(self, option: str) -> tuple[str, str, str]:
        """Return file, section and option for a Problem."""
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

    Partial: files are broken, and a required option that is missing may be in them.
    """
    _report_unknown(name, schema, section.values, report)
    every = {**common, **section.values}
    values: dict[str, Any] = {}
    files: dict[str, str] = {}
    free: dict[str, dict[str, str]] = {prefix: {} for prefix in schema.prefixes}
    for key, option in schema.options.items():
        spelling = _spelling(name, key, option, every, report)
        value, missing = None, True
        if spelling is not None:
            _report_suspicious(name, spelling, every[spelling], report)
            value, missing = _parse(name, spelling, key, option, every[spelling], report)
        if value is not None and spelling is not None:
            values[key], files[key] = value, every[spelling].file
        elif option.required and missing and not partial:
            report.error(section.file, name, key, f"is missing; it has to be set to {allowed(option)}")
    for key, given in every.items():
        prefix = schema.prefix(key)
        if prefix and _free_name(name, prefix, key, given, report):
            _report_suspicious(name, key, given, report)
            text = given.text.strip() if prefix == MACHINEFEATURES_OPTION else given.text
            free[prefix][key[len(prefix) :]] = text
    return Parsed(name, values, free, files, section.file)


def build_machinetype(name: str, parsed: Parsed, settings: Settings) -> Machinetype:
    """Return a machinetype with its defaults worked out, of which some come from [settings]."""
    values: dict[str, Any] = dict(parsed.values)
    longest = values.get("max_wallclock_seconds", Machinetype.max_wallclock_seconds)
    values.setdefault("min_wallclock_seconds", longest)
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


def check_contents(contents: Contents, report: Report) -> None:
    """Warn about options of [DEFAULT] that no section knows, and about indented lines that look like new ones."""
    spellings = {name for schema in SCHEMAS for name in (*schema.spellings(), *schema.removed)}

    def known(name: str) -> bool:
        return name in spellings or any(schema.prefix(name) for schema in SCHEMAS)

    for name, given in contents.common.items():
        if not known(name):
            text = f"no section has this option{nearest(name, spellings)}; it is ignored"
            report.warn(given.file, "DEFAULT", name, text)
    for title, line in contents.continuations:
        name = re.split(r"\s*[:=]", line.text, maxsplit=1)[0].lower()
        if line.text.startswith("[") or known(name):
            kind = "a [section]" if line.text.startswith("[") else f"the option {name}"
            text = (
                f"looks like {kind}, but continues the value above, since it is indented; remove the blanks"
            )
            report.warn(line.file, title, f"line {line.line}", text)


def nearest(name: str, known: Iterable[str], now: Mapping[str, str] | None = None) -> str:
    """Return words that name the known one that is most like name, by its name of now; empty if none is."""
    from difflib import get_close_matches

    matches = get_close_matches(name, sorted(known), n=1)
    return f", the nearest is {(now or {}).get(matches[0], matches[0])}" if matches else ""


def _spelling(
    section: str, name: str, option: Option, every: Mapping[str, Value], report: Report
) -> str | None:
    """Return the spelling under which an option is there and counts; report deprecated ones."""
    found = [spelling for spelling in (name, *option.old) if spelling in every]
    for spelling in found:
        if spelling != name:
            ignored = f" and is ignored, since {found[0]} is there too" if spelling != found[0] else ""
            text = f"is deprecated{ignored}; its name is now {name}"
            report.warn(every[spelling].file, section, spelling, text)
    return found[0] if found else None


def _parse(
    section: str, spelling: str, name: str, option: Option, given: Value, report: Report
) -> tuple[Any, bool]:
    """Return the value, None if it is empty or wrong, and if the option is as good as missing."""
    try:
        return parse(option, given.text), True
    except BadValue as error:
        if name not in _LENIENT or section != "settings":
            report.error(given.file, section, spelling, str(error))
            return None, False
        if option.kind.many:
            entries: list[Any] = []
            for word in given.text.split():
                try:
                    entries.append(parse_entry(option, word))
                except BadValue as each:
                    report.warn(given.file, section, spelling, f"{each}; it is left out")
            return tuple(entries) or None, True
        default = getattr(Settings, name)
        used = "it counts as unset" if default in (None, "") else f"{render(option, default)} is used"
        report.warn(given.file, section, spelling, f"{error}; {used}")
        return None, True


def _report_unknown(name: str, schema: Schema, raw: Mapping[str, Value], report: Report) -> None:
    spellings = schema.spellings()
    for key, given in raw.items():
        if key in spellings or schema.prefix(key):
            continue
        if key in schema.removed:
            text = f"no longer means anything and is ignored: {schema.removed[key]}"
            report.warn(given.file, name, key, text)
            continue
        elsewhere = [other.title for other in SCHEMAS if key in other.spellings()]
        near = nearest(_RELATIVES.get(key, key), spellings, spellings)
        hint = f", it belongs in [{elsewhere[0]}]" if elsewhere else near
        report.warn(given.file, name, key, f"is not an option of [{schema.title}]{hint}; it is ignored")


def _report_suspicious(section: str, name: str, given: Value, report: Report) -> None:
    """Warn about quotes and about what looks like a comment; both are parts of the value."""
    free = name.startswith(USER_DATA_OPTION)
    what = ""
    if _QUOTED.fullmatch(given.text):
        what = "the quotes around it are part of the value"
    elif re.search(r"\s#", given.text) and not (free and "\n" in given.text):
        what = "'#' begins no comment after a value, so that this is part of it; write ';' instead"
    if what:
        report.warn(given.file, section, name, f"in line {given.line}, {what}")


def _free_name(section: str, prefix: str, key: str, given: Value, report: Report) -> bool:
    """Return True if a name follows the prefix and, for files, the value is a path."""
    if not re.fullmatch("[a-z0-9_]+", key[len(prefix) :]):
        text = f"what follows {prefix} may hold only a-z, 0-9 and _, at least one"
        report.error(given.file, section, key, text)
        return False
    if prefix == USER_DATA_FILE and not re.fullmatch(r"[^\x00-\x1f\x7f]+", given.text):
        report.error(given.file, section, key, f"{quoted(given.text)} is not a path")
        return False
    return True
