"""The options that a machine's watching and accounting need until it has ended, kept in its machinetype.json.

So a machinetype that has since been changed or removed, or a configuration that is broken at start, touches neither. A
machine made by a classic factory has no such file: its Machine/Job Features and the present configuration stand in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vac.config.machinetype import Machinetype
from vac.config.options import declared
from vac.config.settings import Settings
from vac.decoding import filled

_MIB = 1024 * 1024


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
    return RetainedOptions(
        **kept,
        mb_per_processor=settings.mb_per_processor,
        hs06_per_processor=settings.hs06_per_processor,
        hepscore23_per_processor=settings.hepscore23_per_processor,
        vac_space=settings.vac_space,
        factory_name=settings.factory_name,
        gocdb_sitename=settings.gocdb_sitename,
        apel_record_version=settings.apel_record_version,
    )


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


def standing_in(
    machinetype: Machinetype | None,
    settings: Settings | None,
    *,
    model: str | None,
    fqan: str | None,
    processors: int,
    features: Mapping[str, str],
) -> RetainedOptions:
    """Return options for a machine that has none in its directory.

    model is its slot's, fqan that of its file accounting_fqan, features the machine's own jobfeatures: what
    these say comes before the present configuration, and that before the defaults.
    """
    options = retained_options(machinetype or Machinetype(name=""), settings or Settings())
    own: dict[str, Any] = {"accounting_fqan": fqan, "machine_model": model or options.machine_model}
    memory_bytes = _number(features.get("max_rss_bytes"))
    if memory_bytes:
        own["mb_per_processor"] = round(memory_bytes / _MIB / processors)
    if "job_id" in features:
        own["hs06_per_processor"] = _per_processor(features.get("hs06_job"), processors)
        own["hepscore23_per_processor"] = _per_processor(features.get("hepscore23_job"), processors)
    return dataclasses.replace(options, **own)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _per_processor(text: str | None, processors: int) -> float | None:
    number = _number(text)
    return number / processors if number else None
