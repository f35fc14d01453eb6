"""A machinetype from its options: every default worked out."""

from __future__ import annotations

from typing import Any

from vac.config.machinetype import Machinetype
from vac.config.sections import USER_DATA_FILE, USER_DATA_OPTION, Parsed
from vac.config.settings import Settings


def make_machinetype(name: str, parsed: Parsed, settings: Settings) -> Machinetype:
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
