"""What there is to know of one container, for people and for those who trace an incident. Pure.

The form is that of GET /containers/ID/json of the Docker Engine API.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from vac.drivers.base import WRITES_TO
from vac.drivers.docker.create import LABEL_DIGEST, LABEL_IMAGE
from vac.text import without_password

ROOT = "root (0)"
"""Whom a container runs as whose image and configuration name no user."""


def container_details(inspected: Mapping[str, Any]) -> dict[str, str]:
    """The facts by name; those that aren't known are left out."""
    config, state = inspected.get("Config") or {}, inspected.get("State") or {}
    labels, network = config.get("Labels") or {}, inspected.get("NetworkSettings") or {}
    attached = (network.get("Networks") or {}).values()
    addresses = [each.get(kind) for each in attached for kind in ("IPAddress", "GlobalIPv6Address")]
    error = str(state.get("Error") or "")
    facts = {
        "container": inspected.get("Id"),
        "container_name": str(inspected.get("Name") or "").lstrip("/"),
        "image": without_password(labels.get(LABEL_IMAGE) or config.get("Image") or ""),
        "image_id": inspected.get("Image"),
        "image_digest": labels.get(LABEL_DIGEST),
        "state": state.get("Status"),
        "pid": state.get("Pid"),
        "addresses": " ".join(address for address in addresses if address),
        "user": config.get("User") or (ROOT if config else None),
        "network": (inspected.get("HostConfig") or {}).get("NetworkMode"),
        "exit_code": state.get("ExitCode") if state.get("Status") in ("exited", "dead", "stopped") else None,
        "killed_for_memory": "yes" if state.get("OOMKilled") else "",
        "error": " ".join(error.split()),
        WRITES_TO: ":".join(written_directories(inspected)),
    }
    return {
        name: str(value) for name, value in facts.items() if value is not None and value not in ("", 0)
    } | ({"exit_code": "0"} if facts["exit_code"] == 0 else {})


def written_directories(inspected: Mapping[str, Any]) -> list[str]:
    """Where the engine keeps what the container writes but for binds: its layer, and volumes that the image asks for.

    Storage drivers other than overlay file systems don't tell of the layer, nor does containerd's image store.
    """
    layer = ((inspected.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
    mounts = inspected.get("Mounts") or ()
    found = [layer, *(mount.get("Source") for mount in mounts if mount.get("Type") == "volume")]
    return [path for path in found if isinstance(path, str) and path.startswith("/") and ":" not in path]


def ended_time(inspected: Mapping[str, Any]) -> float | None:
    """When the container ended last, Unix seconds; None if it hasn't, which engines tell as the year 1."""
    text = str((inspected.get("State") or {}).get("FinishedAt") or "")
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        return None
    try:
        seconds = datetime.datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None
