"""A hostile machine of each container model tries what docs/security.md lists, beside an honest one."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import require_root, require_tool
from tests.engines.docker_fixture import PrivateDocker, PrivateEngine
from tests.engines.docker_machines import Machines
from tests.engines.podman_fixture import PrivatePodman
from tests.engines.process_site import MIB, group_makers, open_site
from tests.waiting import wait_for
from vac.drivers.base import MachineSpec

pytestmark = pytest.mark.engine

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
SOURCE = Path(__file__).with_name("tricks.c")
COLUMNS = ("bubblewrap", "singularity", "docker", "podman")
STOPPED = {
    1: "EPERM",
    2: "ENOENT",
    13: "EACCES",
    38: "ENOSYS",
    95: "EOPNOTSUPP",
    97: "EAFNOSUPPORT",
    126: "ENOKEY",
}
"""Error numbers of what is out of reach."""
MOST_OWN_PROCESSES = 20
MOST_USER_NAMESPACES = 1000
PIDS = 200
HONEST = "while :; do date >$JOBOUTPUTS/alive; sleep 0.2; done\n"
_ADD_KEY, _KEYCTL, _JOIN, _SESSION = 248, 250, 1, -3


def page_table() -> Iterator[tuple[str, str, str]]:
    """Yield trick, machine model and what the page says of it: stopped, engine, nested or possible."""
    for line in PAGE.read_text().splitlines():
        found = re.match(r"\| `([a-z_]+)`[^|]*\|(.*)\|$", line)
        if found:
            cells = [cell.strip() for cell in found[2].split("|")]
            yield from ((found[1], model, cell) for model, cell in zip(COLUMNS, cells))


@pytest.fixture(scope="module")
def tricks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program; it depends on nothing in an image."""
    program = tmp_path_factory.mktemp("tricks") / "tricks"
    subprocess.run([require_tool("gcc"), "-O", "-Wall", "-static", "-o", program, SOURCE], check=True)
    return program


@pytest.fixture(scope="module", autouse=True)
def _a_key_of_roots() -> None:
    """In the session keyring that vacd would have from whoever has started it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_KEYCTL, _JOIN, None)
    libc.syscall(_ADD_KEY, b"user", b"vac-secret", b"secret", 6, _SESSION)


@dataclass
class Place:
    """Site for machines of one model. create returns when the machine runs."""

    model: str
    state_dir: Path
    spec: Callable[..., MachineSpec]
    create: Callable[[MachineSpec], object]


@contextlib.contextmanager
def place_of(model: str) -> Iterator[Place]:
    version = "v1" if "v1" in group_makers() else "v2"
    with open_site(version, model) as site:
        settings = replace(site.settings, pids_per_processor=PIDS)

        def spec(number: int, script: str, **options: Any) -> MachineSpec:
            made = site.spec(number, script, **options)
            return replace(made, settings=settings, memory_bytes=256 * MIB)

        yield Place(model, site.settings.state_dir, spec, site.create)


@pytest.fixture(params=["bubblewrap", "singularity"])
def process_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    require_root()
    with place_of(request.param) as place:
        yield place


@pytest.fixture(scope="module", params=[PrivateDocker, PrivatePodman], ids=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Iterator[PrivateEngine]:
    with contextlib.closing(request.param()) as engine:
        yield engine


@pytest.fixture
def container_place(engine: PrivateEngine, tmp_path: Path) -> Iterator[Place]:
    with contextlib.closing(Machines(engine.url, tmp_path)) as machines:
        yield Place(
            engine.kind,
            tmp_path,
            lambda number, script, **options: machines.spec(f"#!/bin/sh\n{script}", **options),
            machines.create,
        )
    engine.remove_containers()


def attack(place: Place, tricks: Path, **options: Any) -> Mapping[str, int]:
    """Have a machine try all tricks beside an honest one; return what has stopped each, by name."""
    honest = place.spec(0, f"# SECRET\n{HONEST}")
    place.create(honest)
    alive = honest.directory / "joboutputs/alive"
    wait_for(alive.exists, "the honest machine works")
    forbidden = [honest.directory / "user_data", place.state_dir / "machines", place.state_dir]
    places = " ".join(
        f"{before}{path}" for path in forbidden for before in ("", "/proc/1/root", "/proc/1/cwd/../..")
    )
    script = f"""
        $MACHINEFEATURES/tricks $JOBOUTPUTS {places} >$JOBOUTPUTS/told 2>&1
        touch $JOBOUTPUTS/over; exec sleep 600
    """
    hostile = place.spec(1, script, **options)
    shutil.copy(tricks, hostile.directory / "machinefeatures/tricks")
    place.create(hostile)
    outputs = hostile.directory / "joboutputs"
    wait_for((outputs / "over").exists, "all has been tried")
    seen = alive.stat().st_mtime
    wait_for(lambda: alive.stat().st_mtime > seen, "the honest machine still works")
    told = (outputs / "told").read_text()
    print(told)
    _leaves_no_setuid_file(place, outputs / "rooted")
    assert "end 0" in told.splitlines(), told
    lines = [re.split("[ =]", line) for line in told.splitlines()]
    return {name: int(number) for name, number in lines}


def _leaves_no_setuid_file(place: Place, left: Path) -> None:
    """It means nothing where vacd has mounted state_dir, as here in a name space of the test's own."""
    assert left.stat().st_mode & 0o6000, "the trick itself has failed"
    script = "import os, sys; from pathlib import Path; from vac.machines.layout import StateDir\n"
    script += "StateDir(Path(sys.argv[1])).mount_nosuid(); sys.exit(not os.statvfs(sys.argv[2]).f_flag & os.ST_NOSUID)"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script]
    subprocess.run([*command, place.state_dir, left], check=True)


def check(model: str, told: Mapping[str, int], *, nested: bool, namespaces: int | None) -> None:
    """Compare with the page, and see that what is counted is little."""
    counted = {name: told[name] for name in ("processes", "forks", "user_namespaces")}
    opened = {name for name, error in told.items() if name not in counted and error not in STOPPED} - {
        "end",
        "setuid",
    }
    said = {trick: cell for trick, of, cell in page_table() if of == model}
    may = {trick for trick, cell in said.items() if cell in ("possible", "engine", *["nested"] * nested)}
    must = {trick for trick, cell in said.items() if cell == "possible"}
    assert opened <= may, f"not stopped, other than the page says: {opened - may}"
    assert must <= opened, f"stopped, other than the page says: {must - opened}"
    assert set(said) == set(told) - set(counted) - {"end"}, "the page has a row for each"
    assert counted["processes"] <= MOST_OWN_PROCESSES
    assert counted["forks"] <= PIDS
    assert namespaces is None or counted["user_namespaces"] <= namespaces


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_a_hostile_process_machine(process_place: Place, tricks: Path, nested: bool) -> None:
    told = attack(process_place, tricks, container_nested=nested)
    most = MOST_USER_NAMESPACES if nested else 0
    check(
        process_place.model,
        told,
        nested=nested,
        namespaces=most if process_place.model == "bubblewrap" else None,
    )


@pytest.mark.parametrize(
    ("options", "nested"),
    [
        ({}, False),
        ({"container_user": "pilot", "container_capabilities": ()}, False),
        ({"container_user": "pilot", "container_capabilities": (), "container_nested": True}, True),
    ],
    ids=["root", "pilot", "nested"],
)
def test_a_hostile_container(
    container_place: Place, tricks: Path, options: dict[str, Any], nested: bool
) -> None:
    told = attack(container_place, tricks, **options)
    check(container_place.model, told, nested=nested, namespaces=None)
