"""A container goes even if the engine doesn't say what it has printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import requests
import urllib3.exceptions

from vac.config.settings import Settings
from vac.drivers.docker import engine as docker_engine
from vac.drivers.docker.engine import DockerDriver
from vac.drivers.scratch import Scratch
from vac.drivers.volumes import NoLvm

FACTORY, NAME, UUID = "f1.example.com", "f1-00.example.com", "4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b"


class Engine:
    """In place of Connection and its client: has one ended container, whose output can't be had."""

    def __init__(self, directory: Path, failure: Exception) -> None:
        self.labels = {
            "vac.factory": FACTORY,
            "vac.uuid": UUID,
            "vac.machine": NAME,
            "vac.directory": str(directory),
        }
        self.failure = failure
        self.removed: list[str] = []

    @contextmanager
    def client(self) -> Iterator[Engine]:
        yield self

    def containers(self, **asked: Any) -> list[dict[str, Any]]:
        return [
            {
                "Id": "c1",
                "Names": [f"/{NAME}"],
                "Labels": self.labels,
                "State": "exited",
                "HostConfig": {"NetworkMode": "none"},
            }
        ]

    def logs(self, container_id: str, tail: int) -> bytes:
        raise self.failure

    def remove_container(self, container_id: str, **how: bool) -> None:
        self.removed.append(container_id)


def no_lvm(command: Sequence[str]) -> str:
    raise NoLvm(f"{command[0]} isn't there")


@pytest.mark.parametrize(
    "failure",
    [
        docker.errors.APIError("no such log driver"),
        docker.errors.DockerException("not a stream"),
        requests.ReadTimeout("silent for 60 s"),
        requests.exceptions.ChunkedEncodingError("cut off"),
        urllib3.exceptions.ProtocolError("cut off"),
        urllib3.exceptions.ReadTimeoutError(None, "/logs", "silent for 60 s"),  # type: ignore[arg-type]
    ],
)
def test_a_container_is_removed_though_its_output_can_not_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    engine = Engine(tmp_path, failure)
    monkeypatch.setattr(docker_engine, "Connection", lambda url, seconds: engine)
    monkeypatch.setattr(docker_engine, "Scratch", lambda: Scratch(no_lvm))
    DockerDriver(Settings(factory_name=FACTORY)).destroy(NAME, UUID)
    assert engine.removed == ["c1"]
    assert not (tmp_path / "console.log").exists()
