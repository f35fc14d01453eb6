"""What container_nested opens, on Docker and on Podman: what unprivileged containers inside the container need."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.engines.docker_fixture import PrivateDocker, PrivateEngine, root_tar
from tests.engines.docker_machines import Machines
from tests.engines.podman_fixture import PrivatePodman

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

APPTAINER = "apptainer:1"
SANDBOX = "sandbox"
PLACES = (
    "/usr/bin/apptainer",
    "/usr/lib/x86_64-linux-gnu/apptainer",
    "/etc/apptainer",
    "/usr/local/lib/apptainer-libraries",
)


@pytest.fixture(scope="module", params=[PrivateDocker, PrivatePodman], ids=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Iterator[PrivateEngine]:
    engine = request.param()
    yield engine
    engine.close()


@pytest.fixture
def machines(engine: PrivateEngine, tmp_path: Path) -> Iterator[Machines]:
    with contextlib.closing(Machines(engine.url, tmp_path)) as machines:
        yield machines
    engine.remove_containers()


IN_A_USER_NAMESPACE = "mount -t tmpfs x /mnt && touch /mnt/file && id -u"
WITH_A_PROC = f"mount -t proc x /proc && {IN_A_USER_NAMESPACE}"


@pytest.mark.parametrize(
    ("options", "user_namespace", "own_proc"),
    [
        ({"container_user": "pilot", "container_capabilities": ()}, True, True),
        ({"container_user": "pilot"}, True, False),
        ({}, None, False),  # that depends: since 5.12 the kernel asks root for CAP_SETFCAP
        (
            {"container_nested": False, "container_user": "pilot", "container_capabilities": ()},
            False,
            False,
        ),
    ],
    ids=["pilot", "capable", "root", "not-nested"],
)
def test_nested_machines_may_use_user_namespaces_and_no_root_may_reach_the_hosts_settings(
    engine: PrivateEngine,
    machines: Machines,
    options: dict[str, object],
    user_namespace: bool | None,
    own_proc: bool,
) -> None:
    script = (
        "#!/bin/sh\ncd /var/spool/joboutputs\n"
        f"unshare -U -r -m sh -c '{IN_A_USER_NAMESPACE}' > namespace\n"
        f"unshare -U -r -m -p -f sh -c '{WITH_A_PROC}' > proc\n"
        "echo name > /proc/sys/kernel/domainname && echo written > written\n"
        "mount -t tmpfs x /mnt && echo mounted > mounted\n"
        "touch done\n"
    )
    spec = machines.spec(script, **{"container_nested": True, **options})
    machines.create(spec)
    outputs = machines.wait_for_output(spec, "done")
    if user_namespace is not None:
        by_default = engine.kind == "podman"  # its profile allows them to everybody
        assert (outputs / "namespace").read_text() == "0\n" * (user_namespace or by_default)
    assert (outputs / "proc").read_text() == "0\n" * own_proc
    assert not (outputs / "written").exists() and not (outputs / "mounted").exists()


