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

from examples.taskqueue.taskqueue import Queue, Server
from tests.engines.docker_fixture import PrivateDocker
from tests.engines.pipe_fixture import PATIENCE, Piped, piped
from tests.engines.process_site import make_tree
from tests.https_server import Page

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "taskqueue"
PILOT_URL = "https://vo.example.org/vac/pilot.sh"
TASKS, MORE_TASKS = 200, 20
TYPES = ("vo-apptainer", "vo-bubble", "vo-docker")


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


@contextlib.contextmanager
def reachable_from_containers(engine: PrivateDocker, queue: Queue) -> Iterator[str]:
    """The queue at the address that the engine's containers have their host at; its URL."""
    with contextlib.closing(engine.client()) as client:
        subnet = client.inspect_network("bridge")["IPAM"]["Config"][0]["Subnet"]
    gateway = next(ipaddress.ip_network(subnet).hosts())
    server = Server(("127.0.0.1", 0), queue)
    server.socket.close()
    server.socket = engine.listening_socket("0.0.0.0")
    with serving(server):
        yield f"http://{gateway}:{server.socket.getsockname()[1]}"


def image(tree: Path) -> bytes:
    """The tree as an archive that an engine can import."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(tree, ".")
    return buffer.getvalue()


def document(site: Piped) -> dict[str, Any]:
    """The example's pipe with what this test has in place of an experiment's servers, bubblewrap in place of VMs."""
    found: dict[str, Any] = json.loads((EXAMPLE / "vacuum.pipe").read_text())
    entries = {entry["suffix"]: entry for entry in found["machinetypes"]}
    entries["docker"]["root_image"] = "docker://pilot:1"
    entries["apptainer"].update(root_image="busybox", cvmfs_repositories=[])
    entries["bubble"] = {**entries.pop("vm"), "suffix": "bubble", "machine_model": "bubblewrap"}
    del entries["bubble"]["root_image"]
    for entry in entries.values():
        assert entry["user_data"] == PILOT_URL
        entry.update(user_data=site.server.url("/pilot.sh"), fizzle_seconds=20, backoff_seconds=10)
    return {**found, "machinetypes": list(entries.values())}


def done_by(site: Piped) -> dict[str, list[int]]:
    """The tasks that machines of each type have left logs of."""
    found: dict[str, list[int]] = {name: [] for name in TYPES}
    for life in site.factory.lives():
        for log in (life.directory / "joboutputs").glob("task-*.log"):
            match = re.fullmatch(r"task-(\d+)\.log", log.name)
            assert match is not None
            found[life.machinetype].append(int(match[1]))
    return found


def test_work_is_shared_ends_and_resumes(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        queue = stack.enter_context(contextlib.closing(Queue(tmp_path / "tasks", lease_seconds=120)))
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        pages = {"/pilot.sh": Page((EXAMPLE / "pilot.sh").read_bytes())}
        site = stack.enter_context(piped(tmp_path, pages, 6))
        host = stack.enter_context(serving(Server(("127.0.0.1", 0), queue)))
        inside = stack.enter_context(reachable_from_containers(engine, queue))
        tree = site.factory.state.machinetype_files("vo") / "busybox"
        make_tree(tree)
        with contextlib.closing(engine.client()) as client:
            client.import_image_from_data(image(tree), "pilot", "1")
        site.server.pages["/pipe"] = Page(json.dumps(document(site)).encode())
        own = (
            f"user_data_option_queue_url = http://127.0.0.1:{host.server_port}\n"
            f"[machinetype vo-docker]\nuser_data_option_queue_url = {inside}\n"
            "[machinetype vo-bubble]\nroot_image = /\n"
        )
        site.configure(
            {"vo": site.server.url("/pipe")}, own, docker_host=engine.url, singularity_user="nobody"
        )
        queue.add(f"sleep 0.2; echo {number}" for number in range(1, TASKS + 1))
        site.start_drained(*TYPES)

        site.factory.wait_for(lambda: queue.counts()["done"] == TASKS, "all tasks are done", 2 * PATIENCE)
        assert queue.counts() == {"waiting": 0, "claimed": 0, "done": TASKS, "failed": 0}
        assert set(queue.tries().values()) == {1}
        tasks = done_by(site)
        assert Counter(number for numbers in tasks.values() for number in numbers) == Counter(
            range(1, TASKS + 1)
        )
        assert all(tasks.values()), "each model has done some of the work"

        site.factory.wait_for(
            lambda: set(site.factory.status().held_here) == set(TYPES), "all types are held back", PATIENCE
        )
        ends = Counter((life.machinetype, life.message[:3]) for life in site.factory.lives() if life.finished)
        assert {code for _, code in ends} == {"200", "300"}
        assert {name for name, code in ends if code == "200"} == set(TYPES)

        queue.add(f"echo {number}" for number in range(MORE_TASKS))
        site.factory.wait_for(
            lambda: queue.counts()["done"] == TASKS + MORE_TASKS, "work has been resumed", 2 * PATIENCE
        )
        assert set(queue.tries().values()) == {1}
