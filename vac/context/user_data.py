"""user_data: a template in which ##user_data_…## patterns are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings


class ContextError(Exception):
    """A machine's context can't be made; the text is the reason that people are shown, without secrets."""


def substitute(template: bytes, values: Mapping[str, bytes]) -> bytes:
    """The template with every ##NAME## replaced by values[NAME], NAME being such as user_data_uuid."""
    ...


def values(
    machinetype: Machinetype,
    settings: Settings,
    *,
    name: str,
    uuid: str,
    version: str,
    files_dir: Path,
    x509_proxy: bytes | None = None,
    user_data_url: str | None = None,
) -> dict[str, bytes]: ...


def load_template(machinetype: Machinetype, files_dir: Path) -> bytes: ...


def make_user_data(
    machinetype: Machinetype, settings: Settings, *, name: str, uuid: str, version: str, files_dir: Path
) -> bytes:
    """The user_data of one machine: template loaded, values worked out and put in."""
    ...
