"""Privileges of machines on Docker and on Podman: users, capabilities, and containers nested in the container."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.engines.docker_fixture import PrivateDocker, PrivateEngine, root_tar
from tests.engines.docker_machines import LOOK, Machines
from tests.engines.podman_fixture import PrivatePodman
from vac.config.machinetype import CAPABILITIES
from vac.drivers.base import CreationFailed

pytestmark = pytest.mark.engine

APPTAINER = "apptainer:1"
SANDBOX = "sandbox"
FILES = {"etc/group": "root:x:0:\npilot:x:1235:\n", "etc/localtime": ""}
"""Files that Apptainer needs in the image that it runs in."""
SESSION = "var/lib/apptainer/mnt/session"
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


def status(outputs: Path) -> dict[str, str]:
    lines = (outputs / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_none_leaves_no_capability_and_no_way_to_new_ones(machines: Machines) -> None:
    spec = machines.spec(LOOK, container_capabilities=())
    machines.create(spec)
    found = status(machines.wait_for_output(spec, "done"))
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_only_the_listed_capabilities_are_kept(machines: Machines) -> None:
    numbers = dict(zip(("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"), (0, 1, 3, 4, 5)))
    numbers.update(SETGID=6, SETUID=7, SETPCAP=8, SYS_CHROOT=18, NET_BIND_SERVICE=10)
    for capabilities in (CAPABILITIES, ("CHOWN", "NET_BIND_SERVICE")):
        spec = machines.spec(LOOK, container_capabilities=capabilities)
        machines.create(spec)
        found = status(machines.wait_for_output(spec, "done"))
        assert int(found["CapBnd"], 16) == sum(1 << numbers[name] for name in capabilities)
        assert found["NoNewPrivs"] == "0"


@pytest.mark.parametrize(("user", "uid"), [("4321", 4321), ("pilot", 1234)])
def test_container_user_runs_user_data_and_writes_joboutputs(machines: Machines, user: str, uid: int) -> None:
    spec = machines.spec(LOOK, container_user=user, container_capabilities=(), tmp_binds=("/scratch",))
    machines.create(spec)
    outputs = machines.wait_for_output(spec, "done")
    assert (outputs / "uid").read_text().strip() == str(uid)
    assert int(status(outputs)["CapEff"], 16) == 0
    user_data = (spec.directory / "user_data").stat()
    assert (user_data.st_uid, user_data.st_mode & 0o777) == (uid, 0o500)


def test_a_user_that_the_image_lacks_is_named(machines: Machines) -> None:
    with pytest.raises(CreationFailed, match="no user nobody-knows"):
        machines.create(machines.spec(LOOK, container_user="nobody-knows"))
    assert machines.driver.list() == []


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
def test_nesting_allows_user_namespaces_but_no_host_settings(
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
        assert (outputs / "namespace").read_text() == "0\n" * user_namespace
    assert (outputs / "proc").read_text() == "0\n" * own_proc
    assert not (outputs / "written").exists() and not (outputs / "mounted").exists()


def apptainer_tar() -> bytes:
    """An image with this host's Apptainer, and below /sandbox a root file system for it."""
    require_tool("apptainer")
    buffer = io.BytesIO(root_tar(FILES))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for place in PLACES:
            archive.add(place, place.lstrip("/"))
        for path in (
            "tmp",
            SESSION,
            *(f"{SANDBOX}/{each}" for each in ("dev", "proc", "sys", "tmp", "etc", "var/tmp")),
        ):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(entry)
        with tarfile.open(fileobj=io.BytesIO(root_tar())) as sandbox:
            for member in sandbox.getmembers():
                content = sandbox.extractfile(member) if member.isfile() else None
                member.name = f"{SANDBOX}/{member.name}"
                archive.addfile(member, content)
    return buffer.getvalue()


@pytest.mark.parametrize("nested", [True, False])
def test_apptainer_runs_inside_only_where_nesting_is_allowed(
    engine: PrivateEngine, machines: Machines, nested: bool
) -> None:
    engine.import_image(APPTAINER, apptainer_tar())
    script = (
        "#!/bin/sh\nexport HOME=/tmp\ncd /var/spool/joboutputs\n"
        f"apptainer exec --userns --containall --no-home /{SANDBOX} "
        "/bin/sh -c 'id -u; ls /user_data || cat /proc/1/cmdline' > payload 2> errors\n"
        "touch done\nexec sleep 600\n"
    )
    spec = machines.spec(
        script,
        root_image=f"docker://{APPTAINER}",
        container_nested=nested,
        container_user="pilot",
        container_capabilities=(),
    )
    spec = replace(spec, memory_bytes=512 * 1024 * 1024)
    machines.create(spec)
    outputs = machines.wait_for_output(spec, "done")
    payload, errors = (outputs / "payload").read_text(), (outputs / "errors").read_text()
    assert payload.startswith("1234\n") is nested, errors
    assert ("No such file or directory" in errors) is nested
