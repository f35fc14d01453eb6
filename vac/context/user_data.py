"""user_data: a template in which ##user_data_…## patterns are replaced. Templates and values may hold any
bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Callable

import vac
from vac.config.machinetype import VM_MODELS, Machinetype
from vac.config.settings import Settings
from vac.config.values import without_password
from vac.context.proxies import CERTIFICATE_FILE, KEY_FILE, ProxyRefused, proxy_from_files
from vac.context.reading import read_limited
from vac.context.transfers import DownloadFailed, Limits, document, is_html

LIMIT_BYTES = 10 * 1024 * 1024
"""Largest template or file, and what is made of them."""
LIMITS = Limits(largest_bytes=LIMIT_BYTES, slow_seconds=30, connect_seconds=20)
FILES = "files"
"""Where a machinetype's directory holds what relative paths mean."""
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


@dataclass(frozen=True)
class Wanted:
    """The machine whose user_data is to be made."""

    machinetype: Machinetype
    settings: Settings
    name: str
    """Its host name."""
    uuid: str
    directory: Path
    """machinetypes/NAME: holds x509cert.pem, x509key.pem and files/, to which relative paths refer."""
    now: float
    shutdown_time: float
    """When it has to end; both in Unix seconds."""
    version: str = vac.__version__


class Templates:
    """Templates by URL, fetched anew each time. Callable from any thread.

    get fetches a URL's content and raises DownloadFailed. Who asks for a URL that is being fetched shares it.
    """

    def __init__(self, get: Callable[[str], bytes] = lambda url: document(url, LIMITS)) -> None:
        self._get = get
        self._lock = Lock()
        self._under_way: dict[str, Future[bytes]] = {}

    def __call__(self, url: str) -> bytes:
        """The template. Blocks; raises ContextError with a reason."""
        with self._lock:
            ours = url not in self._under_way
            answer = self._under_way.setdefault(url, Future())
        if ours:
            self._fetch(url, answer)
        try:
            content = answer.result()
        except DownloadFailed as error:
            raise ContextError(f"user_data {without_password(url)}: {error}") from error
        problem = (
            "gives a web page (HTML) instead" if is_html(content) else None if content else "gives nothing"
        )
        if problem:
            raise ContextError(f"user_data {without_password(url)}: the server {problem}")
        return content

    def _fetch(self, url: str, answer: Future[bytes]) -> None:
        """Let all who wait for the answer have it; after a bug, which is raised, at least an end of waiting."""
        try:
            answer.set_result(self._get(url))
        except DownloadFailed as error:
            answer.set_exception(error)
        finally:
            with self._lock:
                del self._under_way[url]
            answer.cancel()


def make_user_data(wanted: Wanted, fetch: Callable[[str], bytes]) -> bytes:
    """The user_data of one machine: template loaded, values worked out and put in.

    fetch gets a template by URL, as Templates does. Blocks. Raises ContextError.
    """
    template, url = load_template(wanted, fetch)
    return substitute(template, values(wanted, url))


def load_template(wanted: Wanted, fetch: Callable[[str], bytes]) -> tuple[bytes, str]:
    """The user_data before substitution, empty if there is none; and the URL that it comes from, or "".

    Raises ContextError.
    """
    user_data = wanted.machinetype.user_data
    if not user_data:
        return b"", ""
    if user_data.startswith(("http://", "https://")):
        return fetch(user_data), user_data
    return _read(wanted.directory / FILES / user_data, "user_data"), ""


def substitute(template: bytes, found: Mapping[str, bytes]) -> bytes:
    """The template with each ##NAME## replaced by found[NAME], NAME being such as user_data_uuid.

    Patterns without a value are removed. One pass: what a value brings in isn't looked at again. Raises ContextError
    if the result would be too large.
    """

    def value(match: re.Match[bytes]) -> bytes:
        return found.get(match[1].decode("ascii"), b"")

    size = len(template) + sum(len(value(match)) - len(match[0]) for match in _PATTERN.finditer(template))
    if size > LIMIT_BYTES:
        raise ContextError(f"user_data has {size} bytes with its values put in, more than {LIMIT_BYTES}")
    return _PATTERN.sub(value, template)


def values(wanted: Wanted, user_data_url: str = "") -> dict[str, bytes]:
    """What substitute() puts in for one machine; makes its X.509 proxy, if it is to have one.

    user_data_url is where the template comes from if it was fetched. Raises ContextError.
    """
    machinetype, settings = wanted.machinetype, wanted.settings
    machinefeatures, jobfeatures, joboutputs = feature_locations(machinetype.machine_model)
    root_image = machinetype.root_image or ""
    built_in = {
        "user_data_uuid": wanted.uuid,
        "user_data_space": settings.vac_space,
        "user_data_url": user_data_url,
        "user_data_root_image_url": root_image if "://" in root_image else "",
        "user_data_machinefeatures_url": machinefeatures,
        "user_data_jobfeatures_url": jobfeatures,
        "user_data_joboutputs_url": joboutputs,
        "user_data_machinetype": machinetype.name,
        "user_data_machine_hostname": wanted.name,
        "user_data_manager_version": f"Vac {wanted.version}",
        "user_data_manager_hostname": settings.factory_name,
    }
    found: dict[str, bytes] = {}
    for key, path in machinetype.user_data_files.items():
        content = _read(wanted.directory / FILES / path, f"user_data_file_{key}")
        found[f"user_data_file_{key}"] = found[f"user_data_option_{key}"] = content
    for key, text in machinetype.user_data_options.items():
        found[f"user_data_option_{key}"] = _bytes(text)
    if machinetype.user_data_proxy:
        found["user_data_option_x509_proxy"] = _proxy(wanted)
    for key, text in built_in.items():
        for spelling in (key, *_OTHER_SPELLINGS.get(key, ())):
            found[spelling] = _bytes(text)
    return found


def masked(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The values as they may be shown: only sizes of what a site or an experiment puts in, no passwords of URLs."""
    shown = {}
    for name, content in found.items():
        own = name.startswith(("user_data_option_", "user_data_file_"))
        shown[name] = f"({name}: {len(content)} bytes, not shown)".encode() if own else content
    for name in ("user_data_url", "user_data_root_image_url"):
        shown[name] = _bytes(without_password(found.get(name, b"").decode("utf-8", "surrogateescape")))
    return shown


def feature_locations(model: str) -> tuple[str, str, str]:
    """Where machines of this model find machinefeatures, jobfeatures and joboutputs: URLs or paths."""
    if model in VM_MODELS:
        return f"{_VM_URL}/machinefeatures", f"{_VM_URL}/jobfeatures", f"{_VM_URL}/joboutputs"
    if model == "docker":
        return "/etc/machinefeatures", "/etc/jobfeatures", "/var/spool/joboutputs"
    return "/tmp/machinefeatures", "/tmp/jobfeatures", "/tmp/joboutputs"


def _proxy(wanted: Wanted) -> bytes:
    try:
        return proxy_from_files(
            wanted.directory / CERTIFICATE_FILE,
            wanted.directory / KEY_FILE,
            wanted.machinetype.name,
            now=wanted.now,
            end=wanted.shutdown_time,
            legacy=wanted.machinetype.legacy_proxy,
        )
    except ProxyRefused as error:
        raise ContextError(str(error)) from error


def _read(path: Path, what: str) -> bytes:
    try:
        return read_limited(path, LIMIT_BYTES)
    except ValueError as error:
        raise ContextError(f"{what}: {error}") from error


def _bytes(text: str) -> bytes:
    """The text's own bytes, also of those that weren't UTF-8 in the configuration."""
    return text.encode("utf-8", "surrogateescape")
