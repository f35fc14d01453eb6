"""Images in Podman's service, where it differs from Docker: names without a registry, and what it tells of pulls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.driver_contract import details_of
from tests.engines.docker_fixture import IMAGE, root_tar
from tests.engines.docker_machines import Machines
from tests.engines.podman_fixture import PrivatePodman
from tests.engines.registry_fixture import Registry
from tests.waiting import wait_for
from vac.drivers.base import EngineState

pytestmark = pytest.mark.engine

SLEEP = "#!/bin/sh\nexec sleep 600\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivatePodman]:
    engine = PrivatePodman()
    yield engine
    engine.close()


@pytest.fixture
def machines(engine: PrivatePodman, tmp_path: Path) -> Iterator[Machines]:
    with contextlib.closing(Machines(engine.url, tmp_path)) as machines:
        yield machines
    engine.remove_containers()


def test_a_name_without_a_registry_is_docker_hubs(engine: PrivatePodman, machines: Machines) -> None:
    machines.create(machines.spec(SLEEP, root_image=f"docker://{IMAGE}"))
    machines.create(machines.spec(SLEEP, root_image=f"docker://docker.io/library/{IMAGE}"))
    listed = machines.driver.list()
    assert [each.details["image_id"] for each in listed] == [engine.image_id(IMAGE)] * 2


def test_an_image_is_pulled_and_its_tag_followed(engine: PrivatePodman, machines: Machines) -> None:
    with contextlib.closing(Registry(engine.listening_socket(), "site/pilot", root_tar())) as registry:
        for root in (None, root_tar({"new": "content"})):
            if root is not None:
                registry.replace(root)
            spec = machines.spec(SLEEP, root_image=f"docker://{registry.image}")
            with contextlib.closing(machines.successor()) as driver:
                prepared = partial(driver.prepare, spec.machinetype, spec.settings, spec.files)
                wait_for(
                    lambda prepared=prepared: prepared() is None and registry.digest in engine.digests(),  # type: ignore[misc]
                    "it is pulled",
                )
                driver.create(spec)
                assert details_of(driver, spec.uuid)["image_digest"] == registry.digest
                assert machines.state(spec) is EngineState.RUNNING


def test_an_image_that_the_registry_lacks_is_told(engine: PrivatePodman, machines: Machines) -> None:
    with contextlib.closing(Registry(engine.listening_socket(), "pilot", root_tar())) as registry:
        spec = machines.spec(SLEEP, root_image=f"docker://{registry.address}/absent:1")
        reason = "the registry has no such image, or not for us"
        wait_for(lambda: reason in (machines.prepared(spec) or ""), "the reason is told")
