"""Making one container: image, directories, the call itself, what its user must own, the start.

Whatever fails after the engine has made the container, the container is removed again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tarfile
from collections.abc import Generator, Iterable
from typing import cast

import docker.errors

from vac.drivers.base import CreationFailed, MachineSpec
from vac.drivers.docker.api import Client, explanation
from vac.drivers.docker.create import (
    EngineKind,
    Image,
    container_config,
    creation_failure,
    hand_over,
    make_tmp_binds,
    missing_source,
    mount_targets,
    opens_proc,
    profile_path,
)
from vac.drivers.docker.nested import nested_profile

PASSWD = "/etc/passwd"
LONGEST_PASSWD_BYTES = 1024 * 1024
TAR_OVERHEAD_BYTES = 64 * 1024
"""Headers, extended ones too, and padding, of an archive of one file."""
FILE_TYPE_BITS = 0x8F280000
"""Of a Go os.FileMode: ModeType. A regular file has none of them set."""

_log = logging.getLogger(__name__)


class ContainerMaker:
    """Makes containers, and remembers what it has found out about images."""

    def __init__(self) -> None:
        self._uids: dict[tuple[str, str], int] = {}
        self._commands: set[tuple[str, str]] = set()
        self._engine: EngineKind | None = None

    def make(self, client: Client, spec: MachineSpec, image: Image) -> str:
        """Make and start the machine's container, and give its id. Raises CreationFailed with a reason.

        What the engine can't be reached for is raised as the SDK does.
        """
        missing = missing_source(spec)
        if missing is not None:
            raise CreationFailed(missing)
        try:
            make_tmp_binds(spec)
            container_id = self._create(client, spec, image)
            try:
                user = spec.machinetype.container_user or image.user
                uid = self._uid(client, container_id, image, user)
                if uid == 0 and opens_proc(spec):
                    raise CreationFailed(
                        f"container_user {user} is root in the image: not with container_nested"
                    )
                hand_over(spec, uid)
                self._check_command(client, container_id, spec, image)
                client.start(container_id)
            except BaseException:
                with contextlib.suppress(docker.errors.NotFound):
                    client.remove_container(container_id, force=True, v=True)
                raise
        except docker.errors.APIError as error:
            raise CreationFailed(creation_failure(explanation(error), spec)) from error
        except OSError as error:
            if isinstance(error, docker.errors.DockerException) or error.filename is None:
                raise
            raise CreationFailed(f"{error.filename}: {error.strerror}") from error
        return container_id

    def _create(self, client: Client, spec: MachineSpec, image: Image) -> str:
        engine = self._kind(client)
        if engine.podman and spec.machinetype.container_nested:
            profile_path(spec).write_text(nested_profile())
        config = container_config(spec, image, engine)
        try:
            return client.make_container(config, spec.name)
        except docker.errors.APIError as error:
            if "already in use" not in explanation(error):
                raise
            name = f"{spec.name}.{spec.uuid[:8]}"
            _log.warning("%s: another container has this name; it is made as %s", spec.name, name)
            return client.make_container(config, name)

    def _kind(self, client: Client) -> EngineKind:
        if self._engine is None:
            parts = client.version(api_version=False).get("Components") or []
            self._engine = EngineKind(
                podman=any("podman" in str(part.get("Name", "")).lower() for part in parts),
                systemd=client.info().get("CgroupDriver") == "systemd",
            )
        return self._engine

    def _uid(self, client: Client, container_id: str, image: Image, user: str) -> int:
        """The number of the user who runs inside; names are looked up in the image."""
        name = user.partition(":")[0] or "0"
        if name.isdigit():
            return int(name)
        known = self._uids.get((image.id, name))
        if known is None:
            known = self._uids[image.id, name] = _look_up(read_passwd(client, container_id), name)
        return known

    def _check_command(self, client: Client, container_id: str, spec: MachineSpec, image: Image) -> None:
        """Is there a command to run? The init would only tell once the container runs."""
        command = spec.machinetype.container_command
        bound = any(f"{command}/".startswith(f"{target}/") for target in mount_targets(spec))
        if image.entrypoint or bound or (image.id, command) in self._commands:
            return
        try:
            stream, _ = client.get_archive(container_id, command)
            stream.close()
        except docker.errors.NotFound as error:
            raise CreationFailed(f"the image has no {command}, which is the container_command") from error
        self._commands.add((image.id, command))


def read_passwd(client: Client, container_id: str) -> str:
    """/etc/passwd of a container that needn't run; "" if it has none, or none that can be read."""
    try:
        stream, found = client.get_archive(container_id, PASSWD)
    except docker.errors.NotFound:
        return ""
    regular = not found["mode"] & FILE_TYPE_BITS
    with contextlib.closing(cast("Generator[bytes, None, None]", stream)) as pieces:
        content = _whole(pieces) if regular and found["size"] <= LONGEST_PASSWD_BYTES else None
    if content is None:
        return ""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            first = archive.next()
            file = archive.extractfile(first) if first is not None and first.isfile() else None
            return "" if file is None else file.read(LONGEST_PASSWD_BYTES).decode(errors="replace")
    except tarfile.TarError:
        return ""


def _whole(pieces: Iterable[bytes]) -> bytes | None:
    """The archive of one file; None if there is more of it than such a file can need."""
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > LONGEST_PASSWD_BYTES + TAR_OVERHEAD_BYTES:
            return None
    return bytes(content)


def _look_up(passwd: str, name: str) -> int:
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] == name and fields[2].isdigit():
            return int(fields[2])
    raise CreationFailed(f"the image's {PASSWD} has no user {name}: give its number")
