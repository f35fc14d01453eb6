"""What there is to know of one container, for people and for those who trace an incident. Pure.

The form is that of GET /containers/ID/json of the Docker Engine API.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from vac.config.values import without_password
from vac.drivers.docker.create import LABEL_DIGEST, LABEL_IMAGE


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
        "user": config.get("User"),
        "network": (inspected.get("HostConfig") or {}).get("NetworkMode"),
        "exit_code": state.get("ExitCode") if state.get("Status") in ("exited", "dead", "stopped") else None,
        "killed_for_memory": "yes" if state.get("OOMKilled") else "",
        "error": " ".join(error.split()),
    }
    return {
        name: str(value) for name, value in facts.items() if value is not None and value not in ("", 0)
    } | ({"exit_code": "0"} if facts["exit_code"] == 0 else {})


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
