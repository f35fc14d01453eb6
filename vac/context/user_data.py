"""user_data: a template in which ##user_data_…## patterns are replaced. Templates and values may hold any
bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vac.config.machinetype import VM_MODELS, Machinetype
from vac.config.settings import Settings

LIMIT_BYTES = 10 * 1024 * 1024
"""Largest template or file."""
_PATTERN = re.compile(rb"##(user_data_[a-z0-9_,]*)##")
_VM_URL = "http://169.254.169.253"
_OTHER_SPELLINGS = {
    "user_data_machinetype": ("user_data_vmtype",),
    "user_data_machine_hostname": ("user_data_vm_hostname",),
    "user_data_manager_version": ("user_data_vmlm_version",),
    "user_data_manager_hostname": ("user_data_vmlm_hostname",),
    "user_data_machinefeatures_url": ("user_data_manager_machinefeatures_url",),
    "user_data_jobfeatures_url": ("user_data_manager_jobfeatures_url",),
    "user_data_joboutputs_url": ("user_data_manager_joboutputs_url",),
}
"""Other spellings of the built-in values."""


class ContextError(Exception):
    """A machine's context can't be made; the text is the reason that people are shown, without secrets."""


def substitute(template: bytes, values: Mapping[str, bytes]) -> bytes:
    """The template with each ##NAME## replaced by values[NAME], NAME being such as user_data_uuid.

    Patterns without a value are removed. One pass: what a value brings in isn't looked at again.
    """
    return _PATTERN.sub(lambda match: values.get(match[1].decode("ascii"), b""), template)


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
) -> dict[str, bytes]:
    """What substitute() puts in for one machine.

    name is the machine's host name, version Vac's; files_dir holds what user_data_file_XXX name by relative
    paths; user_data_url is where the template comes from if it was fetched. Raises ContextError.
    """
    machinefeatures, jobfeatures, joboutputs = feature_locations(machinetype.machine_model)
    root_image = machinetype.root_image or ""
    built_in = {
        "user_data_uuid": uuid,
        "user_data_space": settings.vac_space,
        "user_data_url": user_data_url or "",
        "user_data_root_image_url": root_image if "://" in root_image else "",
        "user_data_machinefeatures_url": machinefeatures,
        "user_data_jobfeatures_url": jobfeatures,
        "user_data_joboutputs_url": joboutputs,
        "user_data_machinetype": machinetype.name,
        "user_data_machine_hostname": name,
        "user_data_manager_version": f"Vac {version}",
        "user_data_manager_hostname": settings.factory_name,
    }
    found: dict[str, bytes] = {}
    for key, path in machinetype.user_data_files.items():
        content = _read(files_dir / path, f"user_data_file_{key}")
        found[f"user_data_file_{key}"] = found[f"user_data_option_{key}"] = content
    for key, text in machinetype.user_data_options.items():
        found[f"user_data_option_{key}"] = _bytes(text)
    if x509_proxy is not None:
        found["user_data_option_x509_proxy"] = x509_proxy
    for key, text in built_in.items():
        for spelling in (key, *_OTHER_SPELLINGS.get(key, ())):
            found[spelling] = _bytes(text)
    return found


def feature_locations(model: str) -> tuple[str, str, str]:
    """Where machines of this model find machinefeatures, jobfeatures and joboutputs: URLs or paths."""
    if model in VM_MODELS:
        return f"{_VM_URL}/machinefeatures", f"{_VM_URL}/jobfeatures", f"{_VM_URL}/joboutputs"
    if model == "docker":
        return "/etc/machinefeatures", "/etc/jobfeatures", "/var/spool/joboutputs"
    return "/tmp/machinefeatures", "/tmp/jobfeatures", "/tmp/joboutputs"


def load_template(machinetype: Machinetype, files_dir: Path) -> bytes:
    """The machinetype's user_data before substitution; empty if it has none.

    A relative path is under files_dir. Raises ContextError.
    """
    user_data = machinetype.user_data
    if not user_data:
        return b""
    if user_data.startswith(("http://", "https://")):
        raise ContextError("user_data is a URL; only local files can be used")
    return _read(files_dir / user_data, "user_data")


def make_user_data(
    machinetype: Machinetype, settings: Settings, *, name: str, uuid: str, version: str, files_dir: Path
) -> bytes:
    """The user_data of one machine: template loaded, values worked out and put in. Raises ContextError."""
    template = load_template(machinetype, files_dir)
    found = values(machinetype, settings, name=name, uuid=uuid, version=version, files_dir=files_dir)
    return substitute(template, found)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as opened:
            content = opened.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise ContextError(f"{what}: {path} can't be read: {error.strerror}") from error
    if len(content) > LIMIT_BYTES:
        raise ContextError(f"{what}: {path} is larger than {LIMIT_BYTES} bytes")
    return content


def _bytes(text: str) -> bytes:
    """The text's own bytes, also of those that weren't UTF-8 in the configuration."""
    return text.encode("utf-8", "surrogateescape")
