"""The task queue of the examples on one factory: three machine models share its work, stop without, and resume."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.taskqueue.taskqueue import Queue, Server, Task
from tests.engines.docker_fixture import PrivateDocker
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.pipe_fixture import PATIENCE, Piped, piped
from tests.engines.process_site import make_tree
from tests.https_server import Page

pytestmark = pytest.mark.engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "taskqueue"
PILOT_URL = "https://vo.example.org/vac/pilot.sh"
TASKS, MORE_TASKS = 200, 20
TYPES = ("vo-apptainer", "vo-docker", "vo-vm")
VM_HOST = "169.254.169.253"
"""The factory's address for virtual machines."""


class Gate(Queue):
    """The queue as some of the pilots see it: nothing is given to containers before a VM has come, which takes long."""

    def __init__(self, database: Path, vm_has_come: threading.Event, for_vms: bool) -> None:
        super().__init__(database, lease_seconds=1200)
        self._vm_has_come = vm_has_come
        self._for_vms = for_vms

    def claim(self, worker: str) -> Task | None:
        if self._for_vms:
            self._vm_has_come.set()
        self._vm_has_come.wait(2 * PATIENCE)
        return super().claim(worker)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def made_inside(engine: PrivateDocker, queue: Queue) -> tuple[Server, str]:
    """A server of the queue that the engine's containers can reach, and its URL."""
    with contextlib.closing(engine.client()) as client:
        subnet = client.inspect_network("bridge")["IPAM"]["Config"][0]["Subnet"]
    gateway = ipaddress.ip_network(subnet)[1]
    server = Server(("127.0.0.1", 0), queue)
    server.socket.close()
    server.socket = engine.listening_socket("0.0.0.0")
    return server, f"http://{gateway}:{server.socket.getsockname()[1]}"


def image(tree: Path) -> bytes:
    """The tree as an archive that an engine can import."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(tree, ".")
    return buffer.getvalue()


def document(site: Piped) -> bytes:
    """The example's pipe with what this test has in place of an experiment's servers."""
    found: dict[str, Any] = json.loads((EXAMPLE / "vacuum.pipe").read_text())
    own = {
        "docker": {"root_image": "docker://pilot:1"},
        "apptainer": {"root_image": "busybox", "cvmfs_repositories": []},
        "vm": {"root_image": "boot.iso", "disk_gb_per_processor": 1},
    }
    for entry in found["machinetypes"]:
        assert entry["user_data"] == PILOT_URL
        entry.update(user_data=site.server.url("/pilot.sh"), fizzle_seconds=90, backoff_seconds=20)
        entry.update(own.pop(entry["suffix"]))
    assert not own
    return json.dumps(found).encode()


def done_by(site: Piped) -> dict[str, list[int]]:
    """The tasks that machines of each type have left logs of."""
    found: dict[str, list[int]] = {name: [] for name in TYPES}
    for life in site.factory.lives():
        for log in (life.directory / "joboutputs").glob("task-*.log"):
            match = re.fullmatch(r"task-(\d+)\.log", log.name)
            assert match is not None
            found[life.machinetype].append(int(match[1]))
    return found


def ends(site: Piped) -> set[tuple[str, str]]:
    """Machinetype and shutdown code of machines that have ended."""
    return {(life.machinetype, life.message[:3]) for life in site.factory.lives() if life.finished}


def test_work_is_shared_ends_and_resumes(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        tasks, vm_has_come = tmp_path / "tasks", threading.Event()
        queue = stack.enter_context(contextlib.closing(Gate(tasks, vm_has_come, for_vms=False)))
        for_vms = stack.enter_context(contextlib.closing(Gate(tasks, vm_has_come, for_vms=True)))
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        hypervisor = stack.enter_context(contextlib.closing(PrivateLibvirt()))
        pages = {"/pilot.sh": Page((EXAMPLE / "pilot.sh").read_bytes())}
        site = stack.enter_context(piped(tmp_path, pages, 6, hypervisor))
        beside = stack.enter_context(serving(hypervisor.inside(lambda: Server(("127.0.0.1", 0), queue))))
        vms = stack.enter_context(serving(hypervisor.inside(lambda: Server(("0.0.0.0", 0), for_vms))))
        docked, docked_url = made_inside(engine, queue)
        stack.enter_context(serving(docked))
        tree = site.factory.state.machinetype_files("vo") / "busybox"
        make_tree(tree)
        with contextlib.closing(engine.client()) as client:
            client.import_image_from_data(image(tree), "pilot", "1")
        site.server.pages["/pipe"] = Page(document(site))
        own = (
            f"user_data_option_queue_url = http://127.0.0.1:{beside.server_port}\n"
            f"[machinetype vo-docker]\nuser_data_option_queue_url = {docked_url}\n"
            f"[machinetype vo-vm]\nuser_data_option_queue_url = http://{VM_HOST}:{vms.server_port}\n"
        )
        site.configure(
            {"vo": site.server.url("/pipe")}, own, docker_host=engine.url, singularity_user="nobody"
        )
        queue.add(f"sleep 0.2; echo {number}" for number in range(1, TASKS + 1))
        site.start_ready(*TYPES)

        site.factory.wait_for(lambda: queue.counts()["done"] == TASKS, "all tasks are done", 2 * PATIENCE)
        assert queue.counts() == {"waiting": 0, "claimed": 0, "done": TASKS, "failed": 0}
        assert set(queue.tries().values()) == {1}
        done = done_by(site)
        assert Counter(number for numbers in done.values() for number in numbers) == Counter(
            range(1, TASKS + 1)
        )
        assert all(done.values()), "each model has done some of the work"

        site.factory.wait_for(
            lambda: set(site.factory.status().held_here) == set(TYPES), "all types are held back", PATIENCE
        )
        site.factory.wait_for(
            lambda: "300" in {code for _, code in ends(site)}, "a pilot finds no work", PATIENCE
        )
        assert {code for _, code in ends(site)} == {"200", "300"}, [
            (life.machinetype, life.message) for life in site.factory.lives()
        ]
        assert {name for name, code in ends(site) if code == "200"} == set(TYPES)

        queue.add(f"echo {number}" for number in range(MORE_TASKS))
        site.factory.wait_for(
            lambda: queue.counts()["done"] == TASKS + MORE_TASKS, "work has been resumed", 2 * PATIENCE
        )
        assert set(queue.tries().values()) == {1}
