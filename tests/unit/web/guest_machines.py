"""VMs on disk, and requests to the web applications that need no sockets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

from tests.unit.state_dirs import machinetype_of, new_machine, new_state
from vac.machines.layout import StateDir, slot_address, slot_name
from vac.machines.machine import Machine
from vac.web import metadata, mjf
from vac.web.http_server import Guests, application

FACTORY = "node1.example.org"
UUIDS = ("4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b", "0d2f1f3e-51c4-4e0f-9d8e-5b7c7d1f0a11")
KEY = b"ssh-rsa AAAAB3Nza root@node1\n"


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Site:
    """A factory's state directory with two VMs, and both services."""

    def __init__(self, directory: Path) -> None:
        self.state: StateDir = new_state(directory)
        self.machinetype = machinetype_of(machine_model="cernvm4")
        self.machines = [self.vm(number, uuid) for number, uuid in enumerate(UUIDS)]
        guests = Guests(self.state, FACTORY)
        tmp = self.state.root / "mjf"
        tmp.mkdir()
        self.apps = {
            "metadata": application(metadata.respond, guests),
            "mjf": application(lambda request: mjf.respond(tmp, request), guests),
        }

    def vm(self, number: int, uuid: str, **changes: Any) -> Machine:
        return new_machine(
            self.state,
            self.machinetype,
            None,
            **{
                "name": slot_name(FACTORY, number),
                "uuid": uuid,
                "user_data": b"#!/bin/sh\n# \xff\x00 of slot %d\n" % number,
                "ip": slot_address(number),
                "root_public_key": KEY,
                **changes,
            },
        )

    def ask(
        self, service: str, path: str, method: str = "GET", body: bytes = b"", address: str = "169.254.169.0"
    ) -> Reply:
        """What a client at this address gets; path as in the request, its percent signs undone."""
        said: dict[str, object] = {}

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            said.update(status=int(status.split()[0]), headers=dict(headers))

        environ = {
            "REQUEST_METHOD": method,
            "REMOTE_ADDR": address,
            "PATH_INFO": path.encode().decode("latin-1"),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        content = b"".join(self.apps[service](environ, start_response))  # type: ignore[arg-type]
        return Reply(said["status"], content, said["headers"])  # type: ignore[arg-type]

    def put(self, path: str, body: bytes, address: str = "169.254.169.0") -> int:
        return self.ask("mjf", path, "PUT", body, address).status
