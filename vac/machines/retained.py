"""The options that a machine's watching and accounting need until it has ended, kept in its machinetype.json.

So a machinetype that has since been changed or removed, or a configuration that is broken at start, touches neither. A
machine made by a classic factory has no such file: its Machine/Job Features and the present configuration stand in.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vac.config.machinetype import Machinetype
from vac.config.options import declared
from vac.config.settings import Settings
from vac.decoding import filled


@dataclass(frozen=True)
class RetainedOptions:
    """Options kept with each machine: those of Machinetype declared with retained=True, and some of Settings."""

    machine_model: str
    fizzle_seconds: int
    max_wallclock_seconds: int
    accounting_fqan: str | None
    heartbeat_file: str | None
    heartbeat_seconds: int
    idle_cpu_percent: float | None
    idle_seconds: int
    disk_gb_per_processor: int | None
    """The machinetype's, else that of [settings]."""
    mb_per_processor: int
    hs06_per_processor: float | None
    hepscore23_per_processor: float | None
    vac_space: str
    """Empty for a machine of a classic factory as long as there is no configuration."""
    factory_name: str
    gocdb_sitename: str | None
    apel_record_version: str

    @property
    def site(self) -> str:
        """The site's name in accounting: gocdb_sitename, else the domain of the space's name."""
        return self.gocdb_sitename or self.vac_space.partition(".")[2] or self.vac_space


def retained_options(machinetype: Machinetype, settings: Settings) -> RetainedOptions:
    """Return the options to keep with a machine of this type that is made now."""
    kept: dict[str, Any] = {
        name: getattr(machinetype, name) for name, option in declared(Machinetype).items() if option.retained
    }
    kept["disk_gb_per_processor"] = kept["disk_gb_per_processor"] or settings.disk_gb_per_processor
    names = {field.name for field in dataclasses.fields(RetainedOptions)}
    return RetainedOptions(**kept, **{name: getattr(settings, name) for name in names - kept.keys()})


def to_json(options: RetainedOptions) -> bytes:
    """Return the content of machinetype.json."""
    return json.dumps(dataclasses.asdict(options), indent=1, sort_keys=True).encode("ascii") + b"\n"


def from_json(content: bytes, stand_in: RetainedOptions) -> RetainedOptions:
    """Return options as machinetype.json has them; stand_in has those that another version didn't keep, those of
    another type (spoilt by hand), and all of a file that isn't a JSON object (torn by a power failure)."""
    try:
        return filled(stand_in, json.loads(content))
    except ValueError:
        return stand_in
