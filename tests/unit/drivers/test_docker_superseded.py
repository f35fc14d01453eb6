"""Which images are removed once a newer one has replaced them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import docker.errors
import pytest
import requests

from vac.drivers.docker.api import Connection
from vac.drivers.docker.images import ImageKeeper
from vac.drivers.docker.progress import LIMITS

OLD, NEW = "sha256:aa", "sha256:bb"
PATIENCE_SECONDS = 60
LATEST = "docker://repo:latest"


class Engine:
    """An engine's images, its registry, and the one connection to them."""

    def __init__(self) -> None:
        self.registry: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.images: set[str] = set()
        self.busy: set[str] = set()
        self.idle = threading.Event()

    @contextmanager
    def client(self, _: float = 0) -> Iterator[Engine]:
        yield self

    stream_client = client

    def forget(self) -> None:
        """The last thing that a keeper's thread does."""
        self.idle.set()

    def image(self, reference: str) -> Mapping[str, Any] | None:
        found = self.names.get(reference, reference)
        if found not in self.images:
            return None
        tags = [name for name, image in self.names.items() if image == found and "@" not in name]
        return {"Id": found, "RepoTags": tags}

    def pull_lines(self, reference: str) -> Iterator[Mapping[str, object]]:
        self.names[reference] = self.registry[reference]
        self.images.add(self.registry[reference])
        return iter(())

    def remove_image(self, image: str) -> None:
        if image in self.busy:
            response = requests.Response()
            response.status_code = 409
            raise docker.errors.APIError("a container uses it", response=response)
        self.images.remove(image)
        self.names = {name: found for name, found in self.names.items() if found != image}


class Site:
    """A keeper whose images are due for a refresh whenever they are asked for."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.now = 0.0
        connection = cast("Connection", self.engine)
        self.keeper = ImageKeeper(connection, lambda: None, limits=LIMITS, clock=lambda: self.now)

    def refresh(self, image: str, **registry: str) -> None:
        """Get the image anew, from a registry that now has these tags of the repository."""
        self.engine.registry.update({f"repo:{tag}": found for tag, found in registry.items()})
        self.now += 2 * LIMITS.refresh_seconds
        self.engine.idle.clear()
        self.keeper.prepare(image, Path("/"))
        assert self.engine.idle.wait(PATIENCE_SECONDS)


@pytest.fixture
def site() -> Site:
    return Site()


def test_what_nothing_names_any_more_is_removed(site: Site) -> None:
    site.refresh(LATEST, latest=OLD)
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {NEW}


def test_what_another_tag_names_is_kept_until_it_does_not(site: Site) -> None:
    site.refresh(LATEST, latest=OLD)
    site.refresh("docker://repo:v1", v1=OLD)
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {OLD, NEW}
    site.refresh("docker://repo:v1", v1=NEW)
    assert site.engine.images == {NEW}


def test_what_a_machinetype_names_by_digest_is_kept(site: Site) -> None:
    site.refresh(LATEST, latest=OLD)
    site.engine.names["repo@sha256:dd"] = OLD
    site.refresh("docker://repo@sha256:dd")
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {OLD, NEW}


def test_what_a_tag_has_come_back_to_is_kept(site: Site) -> None:
    site.refresh(LATEST, latest=OLD)
    site.engine.busy.add(OLD)
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {OLD, NEW}
    site.engine.busy.clear()
    site.refresh(LATEST, latest=OLD)
    assert site.engine.images == {OLD}
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {NEW}
