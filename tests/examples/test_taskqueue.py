"""The task queue of the examples: each task to one pilot at a time, until it is done."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.taskqueue.taskqueue import LARGEST_BYTES, Queue, Server, Task


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[Queue]:
    with contextlib.closing(Queue(tmp_path / "tasks", lease_seconds=60, most_tries=2, clock=clock)) as queue:
        yield queue


def test_tasks_come_in_order_and_end(queue: Queue) -> None:
    assert queue.add(["one", "two"]) == 2
    assert queue.claim("a") == Task(1, "one")
    assert queue.claim("b") == Task(2, "two")
    assert queue.claim("c") is None
    assert queue.done("a", 1, 0)
    assert queue.counts() == {"waiting": 0, "claimed": 1, "done": 1, "failed": 0}


def test_what_is_not_renewed_is_given_to_another(queue: Queue, clock: Clock) -> None:
    queue.add(["one"])
    queue.claim("a")
    clock.now += 59
    assert queue.renew("a", 1)
    clock.now += 59
    assert queue.claim("b") is None
    clock.now += 2
    assert queue.claim("b") == Task(1, "one")
    assert not queue.renew("a", 1)
    assert not queue.done("a", 1, 0)
    assert queue.done("b", 1, 0)


def test_a_task_fails_for_good_after_some_tries(queue: Queue, clock: Clock) -> None:
    queue.add(["bad", "lost", "good"])
    assert queue.claim("a") == Task(1, "bad")
    assert queue.done("a", 1, 1)
    assert queue.claim("a") == Task(2, "lost")
    assert queue.claim("b") == Task(3, "good"), "what has been tried comes after what has not"
    assert queue.done("b", 3, 0)
    assert queue.claim("b") == Task(1, "bad")
    assert queue.done("b", 1, 1)
    clock.now += 61
    assert queue.claim("c") == Task(2, "lost")
    clock.now += 61
    assert queue.counts() == {"waiting": 0, "claimed": 0, "done": 1, "failed": 2}


def test_what_is_released_has_not_been_tried(queue: Queue) -> None:
    queue.add(["one"])
    for _ in range(5):
        assert queue.claim("a") == Task(1, "one")
        assert queue.release("a", 1)
    assert not queue.release("a", 1)
    assert queue.tries() == {1: 0}


def test_the_queue_survives_its_server(tmp_path: Path, clock: Clock) -> None:
    with contextlib.closing(Queue(tmp_path / "tasks", clock=clock)) as queue:
        queue.add(["one", "two"])
        queue.claim("a")
    with contextlib.closing(Queue(tmp_path / "tasks", clock=clock)) as queue:
        assert queue.renew("a", 1)
        assert queue.claim("b") == Task(2, "two")


def test_many_at_once_never_get_the_same_task(queue: Queue) -> None:
    queue.add(f"task {number}" for number in range(40))
    given: Counter[int] = Counter()

    def work(worker: str) -> None:
        while (task := queue.claim(worker)) is not None:
            given[task.number] += 1
            assert queue.done(worker, task.number, 0)

    threads = [threading.Thread(target=work, args=(f"worker{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == Counter(range(1, 41))


@pytest.fixture
def server(queue: Queue) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), queue)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server: Server, path: str, body: str | None = None, method: str = "POST") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_pilots_speak_http(server: Server) -> None:
    assert ask(server, "/tasks", "echo one\n\necho 'two  2'\n") == (200, "2 added\n")
    assert ask(server, "/claim?worker=a") == (200, "1 60\necho one\n")
    assert ask(server, "/claim?worker=b") == (200, "2 60\necho 'two  2'\n")
    assert ask(server, "/claim?worker=c") == (200, "")
    assert ask(server, "/renew?worker=a&task=1") == (200, "ok\n")
    assert ask(server, "/done?worker=a&task=1&status=0") == (200, "ok\n")
    assert ask(server, "/release?worker=b&task=2") == (200, "ok\n")
    status, text = ask(server, "/", method="GET")
    assert (status, json.loads(text)) == (200, {"waiting": 1, "claimed": 0, "done": 1, "failed": 0})


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/claim", 400),
        ("/renew?worker=a", 400),
        ("/renew?worker=a&task=x", 400),
        ("/done?worker=a&task=1", 400),
        ("/done?worker=a&task=1&status=-1", 400),
        ("/renew?worker=a&task=7", 409),
        ("/nothing?worker=a", 404),
    ],
)
def test_what_makes_no_sense_is_refused(server: Server, path: str, status: int) -> None:
    assert ask(server, path)[0] == status


def test_a_body_without_end_is_refused(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/tasks")
        connection.putheader("Content-Length", str(LARGEST_BYTES + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413
