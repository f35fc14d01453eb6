"""Which of the engine's containers are this factory's machines, and how each of them is. Pure.

The form is that of GET /containers/json of the Docker Engine API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vac.drivers.base import EngineState
from vac.drivers.docker.create import LABEL_DIRECTORY, LABEL_FACTORY, LABEL_NAME, LABEL_UUID

STATES: Mapping[str, EngineState] = {
    "created": EngineState.HALF_MADE,
    "configured": EngineState.HALF_MADE,
    "initialized": EngineState.HALF_MADE,
    "running": EngineState.RUNNING,
    "restarting": EngineState.RUNNING,
    "stopping": EngineState.RUNNING,
    "paused": EngineState.PAUSED,
    "exited": EngineState.ENDED,
    "stopped": EngineState.ENDED,
    "removing": EngineState.ENDED,
    "dead": EngineState.ENDED,
}
"""What Docker and Podman call it. What isn't here hasn't ended, as far as we know."""


@dataclass(frozen=True)
class Listed:
    """One container that is a machine of this factory."""

    id: str
    name: str
    """The machine's, which the container's may not be any more."""
    uuid: str
    state: EngineState
    own_network: bool
    directory: str
    """The machine's directory; "" if it isn't known."""


@dataclass(frozen=True)
class Ownership:
    """How this factory's containers are told from all others."""

    factory: str
    adopted: Mapping[str, str]
    """Names of machines that an older Vac has made, by their uuid, which begins or is the container's id."""

    @property
    def filters(self) -> dict[str, list[str]]:
        """What may be left to the engine to choose by."""
        return {} if self.adopted else {"label": [f"{LABEL_FACTORY}={self.factory}"]}

    def identify(self, container_id: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """Name and uuid of the machine that this container is; None if it is a stranger's."""
        if labels.get(LABEL_FACTORY) == self.factory and LABEL_UUID in labels:
            return labels.get(LABEL_NAME, ""), labels[LABEL_UUID]
        if LABEL_FACTORY not in labels:
            for uuid, name in self.adopted.items():
                if container_id.startswith(uuid):
                    return name, uuid
        return None

    def recognize(self, container: Mapping[str, Any]) -> Listed | None:
        """The machine that a listed container is; None if it is a stranger's."""
        labels = container.get("Labels") or {}
        identity = self.identify(container["Id"], labels)
        if identity is None:
            return None
        network = str((container.get("HostConfig") or {}).get("NetworkMode", ""))
        return Listed(
            id=container["Id"],
            name=identity[0],
            uuid=identity[1],
            state=STATES.get(str(container.get("State", "")).lower(), EngineState.RUNNING),
            own_network=network not in ("host", "none") and not network.startswith("container:"),
            directory=labels.get(LABEL_DIRECTORY, ""),
        )


def adoptable(machines: Mapping[str, str]) -> Mapping[str, str]:
    """Of these machines, names by uuid, those whose uuid can be a container's id."""
    return {uuid: name for uuid, name in machines.items() if re.fullmatch(r"[0-9a-f]{12,64}", uuid)}
