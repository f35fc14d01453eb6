"""[vacuum_pipe PREFIX]: where a VO publishes machinetypes, and what this site changes in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vac.config.options import Kind, option


@dataclass(frozen=True)
class VacuumPipe:
    """One Vacuum Pipe as the site's files declare it; its document is fetched elsewhere."""

    name: str
    """PREFIX: its machinetypes are called PREFIX-suffix."""
    vacuum_pipe_url: str = option(
        Kind.URL,
        "",
        "URL of the pipe's document",
        required=True,
        pattern=r"https?://[^\s]+",
        pattern_doc="an http:// or https:// URL",
        sample="https://vo.example.org/vacuum.pipe",
    )
    target_share: float = option(
        Kind.NUMBER, 0.0, "share of the space that the pipe's machinetypes divide", least=0, sample="1"
    )
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Parsed options of [machinetype NAME] that replace the pipe's, by name; only those that are set."""
    user_data_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """user_data_option_XXX by XXX, without those of [settings]."""
    user_data_files: Mapping[str, str] = field(default_factory=dict)
    """user_data_file_XXX by XXX, without those of [settings]."""
