"""The space's capacity for GOCDB: a census of its factories, and extension properties of its service (API v5)."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import vac
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context.downloads import GRID_CERTIFICATES
from vac.machines import files
from vac.machines.layout import StateDir
from vac.text import utc_time

SERVICE_TYPE = "uk.ac.gridpp.vac"
CALL_SECONDS = 60.0
_DAY = 86400.0
_SPECINT_PER_HS06 = 250
_MOST_CHARACTERS = 255
_MOST_BYTES = 1_000_000


class Failed(Exception):
    """The capacity can't be published; the text is the reason."""


class Capacity(NamedTuple):
    """Capacity that one factory may allocate."""

    max_processors: int
    max_machines: int
    max_hs06: float


def census(state: StateDir, answered: Mapping[str, Capacity], now: float) -> dict[str, Capacity]:
    """Keep these answers in space-census/, and return them, younger ones than a day of factories that are silent now,
    and those of space-catalogue.json, which come before all. Raises OSError."""
    files.make_directory(state.space_census, exist_ok=True)
    for factory, capacity in answered.items():
        content = json.dumps(capacity._asdict()).encode()
        files.write_atomic(state.space_census / factory, content, tmp=state.tmp, sync=False, mtime=now)
    found: dict[str, Capacity] = {}
    for path in state.space_census.iterdir():
        age = now - path.stat().st_mtime
        if age > 2 * _DAY:
            files.remove(path)
        elif age <= _DAY:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found[path.name] = _capacity(json.loads(path.read_bytes()))
    try:
        catalogue = json.loads(state.space_catalogue.read_bytes())
        found.update((str(name), _capacity(one)) for name, one in catalogue.items())
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{state.space_catalogue}: can't be used: {error}") from error
    return found


def _capacity(fields: Mapping[str, Any]) -> Capacity:
    return Capacity(int(fields["max_processors"]), int(fields["max_machines"]), float(fields["max_hs06"]))


def properties(found: Mapping[str, Capacity], types: Iterable[Machinetype], now: float) -> dict[str, str]:
    """Return the extension properties. types: those of this factory, whose shares stand for the space's."""
    shares: dict[str, float] = {}
    fqans = []
    for one in types:
        if one.accounting_fqan and one.target_share > 0:
            vo = one.accounting_fqan.strip("/").partition("/")[0]
            shares[vo] = shares.get(vo, 0.0) + one.target_share
            fqans.append(one.accounting_fqan)
    total = sum(shares.values())
    hs06 = sum(one.max_hs06 for one in found.values())
    rule = _listed(f"VOMS:{fqan}" for fqan in dict.fromkeys(fqans))
    values = {
        "ComputingManagerCreationTime": utc_time(now, "%Y-%m-%dT%H:%M:%SZ"),
        "ComputingManagerProductName": "Vac",
        "ComputingManagerProductVersion": vac.__version__,
        "ComputingManagerTotalLogicalCPUs": str(sum(one.max_processors for one in found.values())),
        "ComputingManagerTotalSlots": str(sum(one.max_machines for one in found.values())),
        "ComputingManagerTotalPhysicalCPUs": str(len(found)),
        "BenchmarkType": "specint2000",
        "BenchmarkValue": f"{hs06 * _SPECINT_PER_HS06:.0f}",
        "ComputingManagerOtherInfo": _listed(
            f"Share={vo}:{100 * share / total:.0f}" for vo, share in shares.items()
        ),
        "PolicyScheme": "org.glite.standard" if rule else "",
        "PolicyRule": rule,
    }
    return {key: value for key, value in values.items() if value}


def _listed(parts: Iterable[str]) -> str:
    """Return as many of the parts as GOCDB takes in one value; it takes no quotes in them."""
    text = ""
    for part in parts:
        longer = f"{text},{part}" if text else part
        if len(longer) <= _MOST_CHARACTERS and not set(part) & set("'\"`"):
            text = longer
    return text


def publish(settings: Settings, values: Mapping[str, str]) -> str:
    """Send the properties, and return the URL that took them. Raises Failed."""
    try:
        context = ssl.create_default_context()
        if GRID_CERTIFICATES.is_dir():
            context.load_verify_locations(capath=os.fspath(GRID_CERTIFICATES))
        assert settings.gocdb_cert_file is not None
        context.load_cert_chain(settings.gocdb_cert_file, settings.gocdb_key_file)
    except (OSError, ssl.SSLError) as error:
        raise Failed(f"gocdb_cert_file {settings.gocdb_cert_file} and its key: {error}") from error
    asked = {
        "method": "get_service_endpoint",
        "sitename": str(settings.gocdb_sitename),
        "hostname": settings.vac_space,
        "service_type": SERVICE_TYPE,
    }
    base = settings.gocdb_url.rstrip("/")
    query = f"{base}/gocdbpi/public/?{urllib.parse.urlencode(asked)}"
    try:
        endpoints = ET.fromstring(_call(urllib.request.Request(query), context, 200))
    except ET.ParseError as error:
        raise Failed(f"{query}: its answer isn't XML: {error}") from error
    key = next((one.get("PRIMARY_KEY", "") for one in endpoints.iter("SERVICE_ENDPOINT")), "")
    identity = key.partition("G")[0]
    if not identity.isdigit():
        raise Failed(
            f"GOCDB knows no service of type {SERVICE_TYPE} with the host name {settings.vac_space} at site "
            f"{settings.gocdb_sitename}: register one there"
        )
    url = f"{base}/gocdbpi/v5/Service/{identity}/ExtensionProperties"
    body, headers = json.dumps(values).encode(), {"Content-Type": "application/json"}
    _call(urllib.request.Request(url, body, headers, method="PUT"), context, 204)
    return url


def _call(request: urllib.request.Request, context: ssl.SSLContext, status: int) -> bytes:
    """Return the answer's body. Raises Failed unless it has this status."""
    try:
        with urllib.request.urlopen(request, timeout=CALL_SECONDS, context=context) as answer:
            if answer.status == status:
                content: bytes = answer.read(_MOST_BYTES)
                return content
            reason = f"answered with status {answer.status}"
    except urllib.error.HTTPError as error:
        reason = f"answered with status {error.code}: {_explained(error.read(_MOST_BYTES))}"
    except OSError as error:
        reason = str(getattr(error, "reason", error))
    raise Failed(f"{request.full_url}: {reason}")


def _explained(content: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["Error"]["Message"])
    return content[:200].decode("utf-8", "replace")
