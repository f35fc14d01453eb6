"""The pilot of the examples, run by a shell: what it does with tasks, and the message that it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.taskqueue.taskqueue import Queue, Server
from tests.conftest import require_tool
from tests.examples.scripts import EXAMPLES, FeaturesServer, Place, wait_for_file
from tests.waiting import PATIENCE_SECONDS, wait_for

PILOT = EXAMPLES / "taskqueue" / "pilot.sh"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with contextlib.closing(Queue(tmp_path / "tasks", lease_seconds=1)) as queue:
        yield queue


@pytest.fixture
def url(queue: Queue) -> Iterator[str]:
    server = Server(("127.0.0.1", 0), queue)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_without_work_it_says_so(place: Place, url: str) -> None:
    assert place.run(place.script(PILOT, queue_url=url)) == "300 No work available"
    assert (place.joboutputs / "pilot-heartbeat").exists()
    assert list(place.temporary.iterdir()) == []


def test_it_does_what_there_is_to_do(place: Place, queue: Queue, url: str) -> None:
    queue.add(["echo  'a  b' \"$(echo c)\" \\\\; exit 0", "cat; pwd", "false || echo fine"])
    assert place.run(place.script(PILOT, queue_url=url)) == "200 Success: 3 tasks"
    assert queue.counts() == {"waiting": 0, "claimed": 0, "done": 3, "failed": 0}
    assert queue.tries() == {1: 1, 2: 1, 3: 1}
    assert (place.joboutputs / "task-1.log").read_text() == "a  b c \\\n"


def test_a_task_that_fails_is_tried_three_times(place: Place, queue: Queue, url: str) -> None:
    queue.add(["exit 7"])
    assert place.run(place.script(PILOT, queue_url=url)) == "200 Success: 3 tasks"
    assert queue.counts()["failed"] == 1


def test_a_long_task_is_kept(place: Place, queue: Queue, url: str) -> None:
    """The lease is 1 s."""
    queue.add(["sleep 3"])
    assert place.run(place.script(PILOT, queue_url=url)) == "200 Success: 1 tasks"
    assert queue.tries() == {1: 1}
    beat = int((place.joboutputs / "pilot-heartbeat").read_text())
    assert abs(beat - time.time()) < PATIENCE_SECONDS


def test_without_a_queue_it_fails(place: Place) -> None:
    script = place.script(PILOT, queue_url="http://127.0.0.1:9")
    assert place.run(script) == "700 The task queue can not be reached, after 0 tasks"


def test_without_a_url_it_fails(place: Place) -> None:
    assert place.run(place.script(PILOT)) == "700 user_data_option_queue_url is not set"


def test_without_time_for_a_task_it_takes_none(place: Place, queue: Queue, url: str) -> None:
    queue.add(["true"])
    place.set_shutdown_time(time.time() + 500)
    assert place.run(place.script(PILOT, queue_url=url)) == "100 There is no time for a task"
    assert queue.counts()["waiting"] == 1
    assert place.run(place.script(PILOT, queue_url=url, task_seconds="100")) == "200 Success: 1 tasks"


def test_nothing_of_it_is_left_even_if_a_signal_is_lost(place: Place, url: str) -> None:
    script = place.script(PILOT, queue_url=url)
    content = script.read_bytes()
    assert b'kill "$keeper"' in content
    script.write_bytes(content.replace(b'kill "$keeper"', b'true "$keeper"'))
    assert place.run(script) == "300 No work available"
    wait_for(lambda: not list(processes_of(script)), "none of its processes is left")


def processes_of(script: Path) -> Iterator[Path]:
    """Return the processes that run it, or a part of it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if os.fsencode(script) in (process / "cmdline").read_bytes():
                yield process


def test_a_task_that_time_does_not_suffice_for_is_given_back(place: Place, queue: Queue, url: str) -> None:
    """`vac finish` may lower the shutdown time at any moment."""
    queue.add([f"touch {place.home}/begun; sleep 600"])
    with place.start(place.script(PILOT, queue_url=url)) as process:
        wait_for_file(place.home / "begun")
        place.set_shutdown_time(time.time() + 10)
        process.wait(PATIENCE_SECONDS)
    assert place.message() == "100 Time is up, after 0 tasks"
    assert queue.counts()["waiting"] == 1
    assert queue.tries() == {1: 0}


def test_told_to_end_it_gives_its_task_back(place: Place, queue: Queue, url: str) -> None:
    queue.add([f"touch {place.home}/begun; sleep 600"])
    with place.start(place.script(PILOT, queue_url=url)) as process:
        wait_for_file(place.home / "begun")
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
    assert place.message() == "100 Told to end"
    assert queue.tries() == {1: 0}


@pytest.mark.parametrize("program", ["wget and nc", "curl"])
def test_in_a_virtual_machine_everything_goes_over_http(
    place: Place, queue: Queue, url: str, program: str
) -> None:
    if program == "curl":
        (place.programs / "curl").symlink_to(require_tool("curl"))
        (place.programs / "wget").unlink()
        (place.programs / "nc").unlink()
    queue.add(["echo hello"])
    with contextlib.closing(FeaturesServer(place.home)) as server:
        script = place.script(PILOT, f"{server.url}/jobfeatures", f"{server.url}/joboutputs", queue_url=url)
        assert place.run(script) == "200 Success: 1 tasks"
        place.set_shutdown_time(time.time() + 10)
        assert place.run(script) == "100 There is no time for a task"
    assert (place.joboutputs / "task-1.log").read_text() == "hello\n"
    assert (place.joboutputs / "pilot-heartbeat").exists()
    assert (place.home / "off").exists()
