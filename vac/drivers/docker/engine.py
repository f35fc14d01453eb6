"""The driver of Docker containers, and of any engine with Docker's API, such as Podman.

A container is this factory's if its labels say so, whatever its name has become; all others are left alone.
The one exception are containers that an older Vac has made, which bear no labels: their uuid is the
container's id, and the factory, which has it on record, names them to adopt(). Calls: Docker Engine API.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable

import docker.errors
import requests
import urllib3.exceptions

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.config.values import without_password
from vac.drivers.base import CreationFailed, Driver, EngineState, MachineSpec, Observed, Trace, Usage
from vac.drivers.docker.api import CALL_SECONDS, Client, Connection, explanation
from vac.drivers.docker.create import LABEL_UUID, Image
from vac.drivers.docker.details import container_details, ended_time
from vac.drivers.docker.events import EventReader, await_listing
from vac.drivers.docker.images import ImageKeeper
from vac.drivers.docker.listing import Listed, Ownership, adoptable
from vac.drivers.docker.make import ContainerMaker
from vac.drivers.docker.progress import LIMITS, PullLimits
from vac.drivers.docker.usage import UsageMeter
from vac.drivers.scratch import Scratch
from vac.drivers.traces import Sampling, merged
from vac.host.contacts import Contact

CONSOLE_BYTES = 64 * 1024
CONSOLE_LINES = 1000

_log = logging.getLogger(__name__)


class DockerDriver(Driver):
    """The engine at docker_host: see Driver for what the methods promise.

    fetch: see ImageKeeper. call_seconds: how long the engine may be silent within a call.
    """

    def __init__(
        self,
        settings: Settings,
        fetch: Callable[[str], Path] | None = None,
        limits: PullLimits = LIMITS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._ownership = Ownership(settings.factory_name, {})
        self._connection = Connection(settings.docker_host, call_seconds)
        self._events = EventReader(self._connection, lambda: self._ownership)
        self._images = ImageKeeper(self._connection, self._events.wake, fetch, limits)
        self._maker = ContainerMaker()
        self._scratch = Scratch()
        self._meter = UsageMeter()
        self._sampling = Sampling()
        self._listed: Sequence[Listed] | None = None
        self._creating: set[str] = set()
        self._ends: Mapping[str, float | None] = {}

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """See Driver: the image is what has to be there."""
        return self._images.prepare(machinetype.root_image, files)

    def adopt(self, machines: Mapping[str, str]) -> None:
        """See Driver."""
        self._ownership = Ownership(self._ownership.factory, adoptable(machines))

    def list(self) -> Sequence[Observed]:
        """See Driver."""
        with self._connection.client() as client:
            self._listed = self._find(client)
        return [Observed(each.name, each.uuid, each.state) for each in self._listed]

    def usage(self) -> Mapping[str, Usage]:
        """See Driver. The engine is asked only for containers that are measured for the first time, or have ended."""
        with self._connection.client() as client:
            listed = self._find(client) if self._listed is None else self._listed
            for each in listed:
                if each.state in (EngineState.RUNNING, EngineState.PAUSED) and not self._meter.knows(each.id):
                    self._measure(client, each.id, each.own_network)
            ended = [each.id for each in listed if each.state is EngineState.ENDED]
            self._ends = {each: self._ends.get(each) or _ended_time(client, each) for each in ended}
        used = self._meter.read(each.id for each in listed)
        return {
            each.uuid: replace(used.get(each.id, Usage()), ended_time=self._ends.get(each.id))
            for each in listed
        }

    def create(self, spec: MachineSpec) -> None:
        """See Driver."""
        self._creating.add(spec.uuid)
        try:
            with self._connection.client() as client:
                image = self._image(client, spec)
                with self._scratch.made(spec):
                    container_id = self._maker.make(client, spec, image)
                self._measure(client, container_id, spec.machinetype.container_network == "bridge")
        finally:
            self._creating.discard(spec.uuid)

    def stop(self, name: str, uuid: str) -> None:
        """See Driver."""
        with self._connection.client() as client:
            for each in self._find(client, name, uuid):
                if each.state not in (EngineState.RUNNING, EngineState.PAUSED):
                    continue
                with contextlib.suppress(docker.errors.NotFound):
                    _kill(client, each)
                    client.wait(each.id)
                    await_listing(client, each.id)

    def destroy(self, name: str, uuid: str) -> None:
        """See Driver. What the container has said last is kept in the machine's directory, as console.log."""
        with self._connection.client() as client:
            for each in self._find(client, name, uuid):
                with contextlib.suppress(docker.errors.NotFound):
                    _keep_console(client, each)
                    _remove(client, each.id)
        self._scratch.remove(name, uuid)

    def details(self, uuid: str) -> Mapping[str, str]:
        """See Driver."""
        with self._connection.client() as client:
            for each in self._find(client, uuid=uuid):
                with contextlib.suppress(docker.errors.NotFound):
                    return container_details(client.inspect_container(each.id))
        return {}

    def traces(self) -> Mapping[str, Trace]:
        """See Driver."""

        def look() -> Mapping[str, frozenset[Contact]]:
            found = self._meter.contacts()
            return {each.uuid: found[each.id] for each in self._listed or () if each.id in found}

        return merged({}, self._sampling.sample(look))

    def events(self) -> Iterator[str]:
        """See Driver."""
        return self._events.listen()

    def close(self) -> None:
        """See Driver."""
        self._events.close()
        self._meter.close()
        self._connection.forget()

    def _find(self, client: Client, name: str | None = None, uuid: str | None = None) -> Sequence[Listed]:
        """All machines of this factory, or the one; not those that create() is about to start."""
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
        """As ended, if its process has: Podman lists a container as running when conmon, its monitor, is gone."""
        process = self._meter.ended_process(machine.id)
        if process is None or machine.state not in (EngineState.RUNNING, EngineState.PAUSED):
            return machine
        with contextlib.suppress(docker.errors.NotFound):
            if client.inspect_container(machine.id)["State"].get("Pid") not in (0, process):
                return machine
        return replace(machine, state=EngineState.ENDED)

    def _image(self, client: Client, spec: MachineSpec) -> Image:
        """The machine's image as the engine has it now."""
        machinetype = spec.machinetype
        missing = self._images.prepare(machinetype.root_image, spec.files)
        if missing is not None:
            raise CreationFailed(missing)
        image = self._images.find(client, machinetype.root_image or "", spec.files)
        if image is None:
            shown = without_password(machinetype.root_image or "")
            raise CreationFailed(f"image {shown} isn't there any more: to be got again")
        return image

    def _measure(self, client: Client, container_id: str, own_network: bool) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            pid = client.inspect_container(container_id)["State"].get("Pid", 0)
            if pid:
                self._meter.add(container_id, pid, own_network)


def open_driver(settings: Settings, fetch: Callable[[str], Path] | None = None) -> DockerDriver:
    """The driver of the engine at docker_host. Doesn't ask anything of the engine yet."""
    return DockerDriver(settings, fetch)


def _kill(client: Client, machine: Listed) -> None:
    """Kill it, unless it doesn't run. Podman kills nothing that is paused."""
    try:
        client.kill(machine.id)
    except docker.errors.APIError as error:
        if not _runs_not(error):
            raise
        if machine.state is EngineState.PAUSED:
            with contextlib.suppress(docker.errors.APIError):
                client.unpause(machine.id)
            _kill(client, replace(machine, state=EngineState.RUNNING))


def _runs_not(error: docker.errors.APIError) -> bool:
    """Does the engine say that there is nothing to be killed? Podman 4 has the status of a failure of its own."""
    return error.status_code == 409 or "can only kill running containers" in explanation(error)


def _ended_time(client: Client, container_id: str) -> float | None:
    with contextlib.suppress(docker.errors.NotFound):
        return ended_time(client.inspect_container(container_id))
    return None


def _remove(client: Client, container_id: str) -> None:
    try:
        client.remove_container(container_id, force=True, v=True)
    except docker.errors.APIError as error:
        if "could not be stopped" in explanation(error):  # Podman has only now seen that nothing of it runs
            client.remove_container(container_id, force=True, v=True)
        elif error.status_code == 409:  # that is: it is being removed already
            client.wait(container_id, condition="removed")
        else:
            raise


def _keep_console(client: Client, machine: Listed) -> None:
    """Write what the container has said last into its machine's directory, unless that is done or can't be."""
    path = Path(machine.directory, "console.log")
    if not machine.directory or machine.state is EngineState.HALF_MADE or path.exists():
        return
    try:
        text = client.logs(machine.id, tail=CONSOLE_LINES)[-CONSOLE_BYTES:]
    except (
        docker.errors.DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
    ) as error:
        _log.info("%s: its console can't be had: %s", machine.name, error)
        return
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(text)
    except OSError as error:
        _log.info("%s: its console can't be kept: %s", machine.name, error)
