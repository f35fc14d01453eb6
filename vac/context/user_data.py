"""user_data: a template with ##user_data_…## patterns to be replaced. Templates and values may hold any bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import vac
from vac.config.checks import template_mistakes
from vac.config.machinetype import MODELS, Machinetype
from vac.config.settings import Settings
from vac.context.certificates import (
    CERTIFICATE_FILE,
    KEY_FILE,
    CertificateError,
    proxy_from_files,
    read_limited,
)
from vac.context.downloads import DownloadFailed, Limits, Local, document, is_html
from vac.text import without_url_secrets

LIMIT_BYTES = 10 * 1024 * 1024
"""Largest template, file, and result."""
LIMITS = Limits(largest_bytes=LIMIT_BYTES, slow_seconds=30, connect_seconds=20)
MOST_MISTAKES = 5
"""Most mistakes of a template that are reported."""
FILES = "files"
"""Sub-directory of a machinetype's directory to which relative paths refer."""
_PATTERN = re.compile(rb"##(user_data_[a-z0-9_,]*)##")
_OTHER_SPELLINGS = {
    "user_data_machinetype": ("user_data_vmtype",),
    "user_data_machine_hostname": ("user_data_vm_hostname",),
    "user_data_manager_version": ("user_data_vmlm_version",),
    "user_data_manager_hostname": ("user_data_vmlm_hostname",),
    "user_data_machinefeatures_url": ("user_data_manager_machinefeatures_url",),
    "user_data_jobfeatures_url": ("user_data_manager_jobfeatures_url",),
    "user_data_joboutputs_url": ("user_data_manager_joboutputs_url",),
}
"""Older spellings of the built-in values."""


class ContextError(ValueError):
    """Reason why a machine's context can't be made, without secrets."""


@dataclass(frozen=True)
class ContextRequest:
    """A machine that needs its user_data."""

    machinetype: Machinetype
    settings: Settings
    name: str
    """Its host name."""
    uuid: str
    directory: Path
    """machinetypes/NAME, with x509cert.pem, x509key.pem and files/."""
    now: float
    shutdown_time: float
    """Unix seconds, as now."""
    version: str = vac.__version__


class UserData(NamedTuple):
    """One machine's user_data."""

    content: bytes
    mistakes: str
    """Likely mistakes in its template, in words."""


def make_user_data(request: ContextRequest) -> UserData:
    """Return the user_data of one machine. Blocks. Raises ContextError."""
    template, url = load_template(request)
    found = islice(template_mistakes(request.machinetype, template), MOST_MISTAKES)
    mistakes = "; ".join(f"line {line}: {text}" for line, text in found)
    return UserData(substitute(template, values(request, url)), mistakes)


def load_template(request: ContextRequest) -> tuple[bytes, str]:
    """Return the user_data before substitution, and its URL or "". Blocks. Raises ContextError."""
    machinetype = request.machinetype
    place = machinetype.user_data
    if not place:
        return b"", ""
    if not place.startswith(("http://", "https://")):
        return _read(request.directory / FILES / place, "user_data"), ""
    try:
        content = document(place, LIMITS, local=Local.REFUSED if machinetype.pipe else Local.ALLOWED)
    except DownloadFailed as error:
        raise ContextError(f"user_data {without_url_secrets(place)}: {error}") from error
    if not content or is_html(content):
        problem = "sends a web page (HTML) instead" if content else "sends nothing"
        raise ContextError(f"user_data {without_url_secrets(place)}: the server {problem}")
    return content, place


def substitute(template: bytes, found: Mapping[str, bytes]) -> bytes:
    """Return the template with each ##NAME## (as user_data_uuid) replaced by found[NAME], in one pass.

    Patterns without a value are removed. Raises ContextError if the result would be too large.
    """

    def value(match: re.Match[bytes]) -> bytes:
        return found.get(match[1].decode("ascii"), b"")

    size = len(template) + sum(len(value(match)) - len(match[0]) for match in _PATTERN.finditer(template))
    if size > LIMIT_BYTES:
        raise ContextError(f"user_data has {size} bytes after substitution, more than {LIMIT_BYTES}")
    return _PATTERN.sub(value, template)


def values(request: ContextRequest, user_data_url: str = "") -> dict[str, bytes]:
    """Return one machine's values for substitute(), with a new X.509 proxy if configured. Raises ContextError."""
    machinetype, settings = request.machinetype, request.settings
    machinefeatures, jobfeatures, joboutputs = MODELS[machinetype.machine_model].places
    root_image = machinetype.root_image or ""
    built_in = {
        "user_data_uuid": request.uuid,
        "user_data_space": settings.vac_space,
        "user_data_url": user_data_url,
        "user_data_root_image_url": root_image if "://" in root_image else "",
        "user_data_machinefeatures_url": machinefeatures,
        "user_data_jobfeatures_url": jobfeatures,
        "user_data_joboutputs_url": joboutputs,
        "user_data_machinetype": machinetype.name,
        "user_data_machine_hostname": request.name,
        "user_data_manager_version": f"Vac {request.version}",
        "user_data_manager_hostname": settings.factory_name,
    }
    found: dict[str, bytes] = {}
    for key, path in machinetype.user_data_files.items():
        content = _read(request.directory / FILES / path, f"user_data_file_{key}")
        found[f"user_data_file_{key}"] = found[f"user_data_option_{key}"] = content
    for key, text in machinetype.user_data_options.items():
        found[f"user_data_option_{key}"] = _bytes(text)
    if machinetype.user_data_proxy:
        files = (request.directory / CERTIFICATE_FILE, request.directory / KEY_FILE)
        legacy, end = machinetype.legacy_proxy, request.shutdown_time
        try:
            proxy = proxy_from_files(*files, machinetype.name, now=request.now, end=end, legacy=legacy)
        except CertificateError as error:
            raise ContextError(str(error)) from error
        found["user_data_option_x509_proxy"] = proxy
    for key, text in built_in.items():
        for spelling in (key, *_OTHER_SPELLINGS.get(key, ())):
            found[spelling] = _bytes(text)
    return found


def masked(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the values for display: only sizes of options and files, no passwords of URLs."""
    shown = {}
    for name, content in found.items():
        own = name.startswith(("user_data_option_", "user_data_file_"))
        shown[name] = f"({name}: {len(content)} bytes, not shown)".encode() if own else content
    for name in ("user_data_url", "user_data_root_image_url"):
        shown[name] = _bytes(without_url_secrets(found.get(name, b"").decode("utf-8", "surrogateescape")))
    return shown


def _read(path: Path, what: str) -> bytes:
    try:
        return read_limited(path, LIMIT_BYTES)
    except ValueError as error:
        raise ContextError(f"{what}: {error}") from error


def _bytes(text: str) -> bytes:
    """Return the text's bytes, restoring those that weren't UTF-8 in the configuration."""
    return text.encode("utf-8", "surrogateescape")
