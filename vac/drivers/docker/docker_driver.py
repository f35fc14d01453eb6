"""The driver of Docker containers, and of any engine with Docker's API, such as Podman.

A container is this factory's if its labels say so, whatever its name has become; all others are left alone. The one
exception are containers that an older Vac has made, which bear no labels: their uuid is the container's id, and the
factory, which has it on record, names them to adopt(). Forms are those of the Docker Engine API.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import docker.errors
import requests
import urllib3.exceptions

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    WRITES_TO,
    CreationFailed,
    Driver,
    EngineState,
    Fetch,
    LeftProcess,
    MachineSpec,
    Observed,
    Usage,
    no_images,
    with_growing_counters,
)
from vac.drivers.docker.docker_api import (
    Client,
    Connection,
    EventReader,
    await_listing,
    explanation,
)
from vac.drivers.docker.docker_container import (
    LABEL_DIGEST,
    LABEL_DIRECTORY,
    LABEL_FACTORY,
    LABEL_IMAGE,
    LABEL_NAME,
    LABEL_UUID,
    UsageMeter,
    make_container,
)
from vac.drivers.docker.docker_images import DockerImages, Image
from vac.drivers.volumes import Volumes
from vac.host.connections import Contact
from vac.text import without_url_secrets

CONSOLE_BYTES = 64 * 1024
CONSOLE_LINES = 1000
ROOT = "root (0)"
"""User of a container whose image and configuration name none."""
ALIVE = (EngineState.RUNNING, EngineState.PAUSED)
STATES: Mapping[str, EngineState] = {
    **dict.fromkeys(("created", "configured", "initialized"), EngineState.HALF_MADE),
    **dict.fromkeys(("running", "restarting", "stopping"), EngineState.RUNNING),
    "paused": EngineState.PAUSED,
    **dict.fromkeys(("exited", "stopped", "removing", "dead"), EngineState.ENDED),
}
"""By the words of Docker and Podman. A container in another state is taken as running."""

_log = logging.getLogger(__name__)


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


class Told(NamedTuple):
    """What the engine has told of one container."""

    usage: Usage
    """Its start and end."""
    details: Mapping[str, str]


@dataclass
class Ownership:
    """Tells this factory's containers from all others."""

    factory: str
    adopted: Mapping[str, str]
    """Names of machines that an older Vac has made, by their uuid, which starts or is the container's id."""

    @property
    def filters(self) -> dict[str, list[str]]:
        """Filters that the engine can apply."""
        return {} if self.adopted else {"label": [f"{LABEL_FACTORY}={self.factory}"]}

    def identify(self, container_id: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """Return name and uuid of the machine that this container is; None if it isn't ours."""
        if labels.get(LABEL_FACTORY) == self.factory and LABEL_UUID in labels:
            return labels.get(LABEL_NAME, ""), labels[LABEL_UUID]
        if LABEL_FACTORY not in labels:
            for uuid, name in self.adopted.items():
                if container_id.startswith(uuid):
                    return name, uuid
        return None

    def recognize(self, container: Mapping[str, Any]) -> Listed | None:
        """Return the machine that a listed container is; None if it isn't ours."""
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


class DockerDriver(Driver):
    """The engine at docker_host; see Driver for what the methods promise."""

    def __init__(self, settings: Settings, fetch: Fetch = no_images) -> None:
        self._ownership = Ownership(settings.factory_name, {})
        self._connection = Connection(settings.docker_host)
        self._events = EventReader(
            self._connection, lambda: self._ownership.filters, self._ownership.identify
        )
        self._images = DockerImages(self._connection, self.changed, fetch)
        self._volumes = Volumes()
        self._meter = UsageMeter()
        self._listed: Sequence[Listed] = ()
        self._creating: set[str] = set()
        self._told: dict[str, Told] = {}
        """By id, of containers that have been inspected."""

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """See Driver: the image has to be there."""
        return self._images.prepare(machinetype.root_image or "", files)

    def adopt(self, machines: Mapping[str, str], processes: Mapping[str, LeftProcess]) -> None:
        self._ownership.adopted = adoptable(machines)

    def list(self) -> Sequence[Observed]:
        """See Driver. Each container is inspected when it is measured for the first time, and when it has ended."""
        with self._connection.client() as client:
            listed = self._listed = self._find(client)
            for each in listed:
                told = self._told.get(each.id)
                if each.state in ALIVE and (told is None or not self._meter.knows(each.id)):
                    self._measure(client, each.id, each.own_network)
                elif each.state is EngineState.ENDED and not (told and _end_is_known(told.usage)):
                    self._inspect(client, each.id)
        used = self._meter.read(each.id for each in listed)
        self._told = {each.id: self._told.get(each.id, Told(Usage(), {})) for each in listed}
        found = []
        for each in listed:
            told = self._told[each.id]
            usage = with_growing_counters(used.get(each.id, Usage()), told.usage)
            found.append(Observed(each.name, each.uuid, each.state, usage, told.details))
        return found

    def create(self, spec: MachineSpec) -> None:
        self._creating.add(spec.uuid)
        try:
            with self._connection.client() as client:
                image = self._image(client, spec)
                with self._volumes.mounted(spec):
                    container_id = make_container(client, spec, image, self._connection.server(client))
                self._measure(client, container_id, spec.machinetype.container_network == "bridge")
        finally:
            self._creating.discard(spec.uuid)

    def stop(self, name: str, uuid: str) -> None:
        with self._connection.client() as client:
            for each in self._find(client, name, uuid):
                if each.state in ALIVE:
                    with contextlib.suppress(docker.errors.NotFound):
                        _kill(client, each)
                        client.wait(each.id)
                        await_listing(client, each.id)

    def destroy(self, name: str, uuid: str) -> None:
        """See Driver. The end of the container's output is kept in the machine's directory, as console.log."""
        with self._connection.client() as client:
            for each in self._find(client, name, uuid):
                with contextlib.suppress(docker.errors.NotFound):
                    _keep_console(client, each)
                    _remove(client, each.id)
        self._volumes.remove(name, uuid)

    def contacts(self) -> Mapping[str, frozenset[Contact]]:
        found = self._meter.contacts()
        return {each.uuid: found[each.id] for each in self._listed if each.id in found}

    def events(self) -> Iterator[str]:
        return self._events.listen()

    def close(self) -> None:
        self._events.close()
        self._connection.forget()

    def _find(self, client: Client, name: str | None = None, uuid: str | None = None) -> Sequence[Listed]:
        """Return all machines of this factory, or the one; not those that create() is about to start."""
        filters = self._ownership.filters
        if uuid is not None and filters:
            filters["label"].append(f"{LABEL_UUID}={uuid}")
        found = map(self._ownership.recognize, client.containers(all=True, filters=filters))
        return [
            self._corrected(client, each)
            for each in found
            if each is not None
            and not (each.state is EngineState.HALF_MADE and each.uuid in self._creating)
            and name in (None, each.name)
            and uuid in (None, each.uuid)
        ]

    def _corrected(self, client: Client, machine: Listed) -> Listed:
        """Return it as ended if its process is: Podman lists it as running when conmon, its monitor, is gone."""
        process = self._meter.ended_process(machine.id)
        if process is None or machine.state not in ALIVE:
            return machine
        if self._inspect(client, machine.id).get("Pid", 0) not in (0, process):
            return machine
        return replace(machine, state=EngineState.ENDED)

    def _image(self, client: Client, spec: MachineSpec) -> Image:
        """Return the machine's image as the engine has it now. Raises CreationFailed."""
        root_image = spec.machinetype.root_image or ""
        missing = self._images.prepare(root_image, spec.files)
        if missing is not None:
            raise CreationFailed(missing)
        image = self._images.find(client, root_image, spec.files)
        if image is None:
            shown = without_url_secrets(root_image)
            raise CreationFailed(f"image {shown} isn't there any more and will be got again")
        return image

    def _measure(self, client: Client, container_id: str, own_network: bool) -> None:
        pid = self._inspect(client, container_id).get("Pid", 0)
        if pid:
            self._meter.add(container_id, pid, own_network)

    def _inspect(self, client: Client, container_id: str) -> Mapping[str, Any]:
        """Return the state of a container, {} if there is none, and remember what matters of it."""
        with contextlib.suppress(docker.errors.NotFound):
            inspected = client.inspect_container(container_id)
            state: Mapping[str, Any] = inspected.get("State") or {}
            usage = start_and_end(state, (inspected.get("HostConfig") or {}).get("Memory"))
            self._told[container_id] = Told(usage, container_details(inspected))
            return state
        return {}


open_driver = DockerDriver


def adoptable(machines: Mapping[str, str]) -> Mapping[str, str]:
    """Return those of these machines, names by uuid, whose uuid can be a container's id."""
    return {uuid: name for uuid, name in machines.items() if re.fullmatch(r"[0-9a-f]{12,64}", uuid)}


def container_details(inspected: Mapping[str, Any]) -> dict[str, str]:
    """Return facts about a container by name; those that aren't known are left out."""
    config, state = inspected.get("Config") or {}, inspected.get("State") or {}
    labels, network = config.get("Labels") or {}, inspected.get("NetworkSettings") or {}
    attached = (network.get("Networks") or {}).values()
    addresses = [each.get(kind) for each in attached for kind in ("IPAddress", "GlobalIPv6Address")]
    error = str(state.get("Error") or "")
    exit_code = state.get("ExitCode") if state.get("Status") in ENDED else None
    facts = {
        "container": inspected.get("Id"),
        "container_name": str(inspected.get("Name") or "").lstrip("/"),
        "image": without_url_secrets(labels.get(LABEL_IMAGE) or config.get("Image") or ""),
        "image_id": inspected.get("Image"),
        "image_digest": labels.get(LABEL_DIGEST),
        "state": state.get("Status"),
        "pid": state.get("Pid") or None,
        "addresses": " ".join(address for address in addresses if address),
        "user": config.get("User") or (ROOT if config else None),
        "network": (inspected.get("HostConfig") or {}).get("NetworkMode"),
        "exit_code": exit_code,
        "killed_for_memory": "yes" if state.get("OOMKilled") else "",
        "error": " ".join(error.split()),
        WRITES_TO: ":".join(written_directories(inspected)),
    }
    return {name: str(value) for name, value in facts.items() if value is not None and value != ""}


def written_directories(inspected: Mapping[str, Any]) -> list[str]:
    """Return where the engine keeps what the container writes but for binds: its layer, and volumes that the image
    asks for; sorted, as engines list volumes in any order.

    Storage drivers other than overlay file systems don't tell of the layer, nor does containerd's image store.
    """
    layer = ((inspected.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
    mounts = inspected.get("Mounts") or ()
    found = [layer, *(mount.get("Source") for mount in mounts if mount.get("Type") == "volume")]
    paths = (path for path in found if isinstance(path, str) and path.startswith("/") and ":" not in path)
    return sorted(paths)


ENDED = ("exited", "dead", "stopped")
LOST_EXIT_CODE = 255
"""Of a container whose end the engine has missed."""
TERMINATED_EXIT_CODE = 128 + signal.SIGTERM
"""Of one that SIGTERM has ended: that of people, or of its engine as it is stopped."""


def start_and_end(state: Mapping[str, Any], limit_bytes: int | None = None) -> Usage:
    """Return when a container in this state started, and when and how it ended last; the year 1 stands for never.

    limit_bytes: its memory limit. One that was killed for its memory had all of it, which may be too late to measure.

    dockerd gives one whose end it has missed, since it was killed itself, the time of its own next start and
    LOST_EXIT_CODE: then nobody knows when. Its init gives the command's end by a signal as an exit code. One that
    people have started again still has the time of its former end.
    """
    alive = STATES.get(str(state.get("Status", "")).lower()) in ALIVE
    exit_code = state.get("ExitCode") if state.get("Status") in ENDED else None
    terminated = exit_code == TERMINATED_EXIT_CODE
    return Usage(
        started_time=unix_time(state.get("StartedAt")),
        ended_time=None if alive or exit_code == LOST_EXIT_CODE else unix_time(state.get("FinishedAt")),
        exit_code=exit_code if isinstance(exit_code, int) and not terminated else None,
        signal=signal.SIGTERM if terminated else None,
        peak_memory_bytes=limit_bytes if state.get("OOMKilled") is True else None,
    )


def _end_is_known(told: Usage) -> bool:
    return told.ended_time is not None or told.exit_code == LOST_EXIT_CODE


def unix_time(text: object) -> float | None:
    """Return an engine's time in Unix seconds, to the second; None for the year 1, which stands for never."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", str(text))
    if match is not None:
        with contextlib.suppress(ValueError, OverflowError):
            told = datetime.datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")).timestamp()
            return told if told > 0 else None
    return None


def _kill(client: Client, machine: Listed) -> None:
    """Kill it, unless it doesn't run. Podman kills nothing that is paused."""
    try:
        client.kill(machine.id)
    except docker.errors.APIError as error:
        # Podman 4 has a status of its own
        if error.status_code != 409 and "can only kill running containers" not in explanation(error):
            raise
        if machine.state is EngineState.PAUSED:
            with contextlib.suppress(docker.errors.APIError):
                client.unpause(machine.id)
            _kill(client, replace(machine, state=EngineState.RUNNING))


def _remove(client: Client, container_id: str) -> None:
    try:
        client.remove_container(container_id, force=True, v=True)
    except docker.errors.APIError as error:
        if "could not be stopped" in explanation(error):  # Podman has only now seen that nothing of it runs
            client.remove_container(container_id, force=True, v=True)
        elif error.status_code == 409:  # it is being removed already
            client.wait(container_id, condition="removed")
        else:
            raise


def _keep_console(client: Client, machine: Listed) -> None:
    """Write the end of the container's output into its machine's directory, unless that is done or can't be."""
    path = Path(machine.directory, "console.log")
    if not machine.directory or machine.state is EngineState.HALF_MADE or path.exists():
        return
    try:
        text = client.logs(machine.id, tail=CONSOLE_LINES)[-CONSOLE_BYTES:]
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(text)
    except (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError) as error:
        _log.info("%s: cannot get its console: %s", machine.name, error)
    except OSError as error:
        _log.info("%s: cannot keep its console: %s", machine.name, error)
