#!/usr/bin/env python3
"""A small task queue over HTTP, to try pilots with: `taskqueue.py --database FILE [--port 8080]`.

A task is one line of shell. Pilots claim tasks one by one and hold each for as long as they renew it; a task
whose pilot has vanished is given to another, a few times at most. Everything is in one SQLite file: the server
may be restarted at any time. Python's standard library is all that it needs. It knows no passwords: keep it
in a network that only pilots can reach.

POST /tasks, one command a line: adds tasks. Answers how many.
POST /claim?worker=NAME: "ID LEASE_SECONDS", and the command on the second line; nothing if there is no task.
POST /renew?worker=NAME&task=ID: another LEASE_SECONDS for the task.
POST /done?worker=NAME&task=ID&status=N: it has ended with this exit status; 0 is success, others are tried anew.
POST /release?worker=NAME&task=ID: it was not this task's fault; somebody else may have it.
GET /: how many tasks wait, are claimed, are done and have failed for good, as JSON.

What is not the worker's (any more) is answered with status 409.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, NamedTuple
from urllib.parse import parse_qsl, urlsplit

LARGEST_BYTES = 10 * 1024 * 1024
REQUEST_SECONDS = 60.0
_TABLE = """
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY,
    command TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    tries INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    lease_time REAL,
    status INTEGER
)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS by_state ON task (state, id)"
_EXPIRE = """
UPDATE task SET worker = NULL, lease_time = NULL, state = CASE WHEN tries < ? THEN 'waiting' ELSE 'failed' END
WHERE state = 'claimed' AND lease_time < ?
"""
_NEXT = "SELECT id, command FROM task WHERE state = 'waiting' ORDER BY tries, id LIMIT 1"
_CLAIM = "UPDATE task SET state = 'claimed', tries = tries + 1, worker = ?, lease_time = ? WHERE id = ?"
_FINISH = """
UPDATE task SET worker = NULL, lease_time = NULL, status = ?,
    state = CASE WHEN ? = 0 THEN 'done' WHEN tries < ? THEN 'waiting' ELSE 'failed' END
WHERE id = ? AND worker = ?
"""
_RELEASE = """
UPDATE task SET state = 'waiting', tries = tries - 1, worker = NULL, lease_time = NULL WHERE id = ? AND worker = ?
"""
STATES = ("waiting", "claimed", "done", "failed")


class Task(NamedTuple):
    """A task that has been claimed."""

    number: int
    command: str


class Queue:
    """The tasks in a database. Any thread may call any method; each is one transaction."""

    def __init__(
        self,
        database: Path | str,
        lease_seconds: float = 300.0,
        most_tries: int = 3,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease_seconds = lease_seconds
        self._most_tries = most_tries
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(str(database), check_same_thread=False, isolation_level=None)
        with self._transaction() as connection:
            connection.execute(_TABLE)
            connection.execute(_INDEX)

    def add(self, commands: Iterable[str]) -> int:
        """Add a task for each command; how many there were."""
        rows = [(command,) for command in commands]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO task (command) VALUES (?)", rows)
        return len(rows)

    def claim(self, worker: str) -> Task | None:
        """Give the worker the task that has waited longest, to nobody else as long as it renews it."""
        now = self._clock()
        with self._transaction() as connection:
            connection.execute(_EXPIRE, (self._most_tries, now))
            found = connection.execute(_NEXT).fetchone()
            if found is None:
                return None
            connection.execute(_CLAIM, (worker, now + self.lease_seconds, found[0]))
        return Task(*found)

    def renew(self, worker: str, number: int) -> bool:
        """The worker is still at it; False: the task is no longer its own."""
        until = self._clock() + self.lease_seconds
        return self._change(
            "UPDATE task SET lease_time = ? WHERE id = ? AND worker = ?", until, number, worker
        )

    def done(self, worker: str, number: int, status: int) -> bool:
        """The task has ended with this exit status; False as for renew()."""
        return self._change(_FINISH, status, status, self._most_tries, number, worker)

    def release(self, worker: str, number: int) -> bool:
        """The worker has to go; somebody else may have the task. False as for renew()."""
        return self._change(_RELEASE, number, worker)

    def counts(self) -> dict[str, int]:
        """Return the number of tasks in each state."""
        with self._transaction() as connection:
            connection.execute(_EXPIRE, (self._most_tries, self._clock()))
            found = dict(connection.execute("SELECT state, count(*) FROM task GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def tries(self) -> dict[int, int]:
        """Return the number of claims of each task, by the task's number."""
        with self._transaction() as connection:
            return dict(connection.execute("SELECT id, tries FROM task").fetchall())

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._connection.close()

    def _change(self, statement: str, *values: object) -> bool:
        with self._transaction() as connection:
            return connection.execute(statement, values).rowcount == 1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


class Server(ThreadingHTTPServer):
    """Answers pilots."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], queue: Queue) -> None:
        super().__init__(address, _Handler)
        self.queue = queue


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        self._answer(200, json.dumps(self.server.queue.counts()) + "\n")

    def do_POST(self) -> None:
        try:
            self._answer(200, self._carry_out())
        except _Refused as refused:
            self._answer(refused.status, f"{refused}\n")

    def _carry_out(self) -> str:
        url = urlsplit(self.path)
        body = self._body()
        fields = dict(parse_qsl(url.query))
        queue, worker = self.server.queue, fields.get("worker", "")
        if url.path == "/tasks":
            return f"{queue.add(line for line in body.splitlines() if line.strip())} added\n"
        if not worker:
            raise _Refused(400, "worker=NAME is missing")
        if url.path == "/claim":
            task = queue.claim(worker)
            return f"{task.number} {queue.lease_seconds:.0f}\n{task.command}\n" if task else ""
        if url.path == "/renew":
            mine = queue.renew(worker, _number(fields, "task"))
        elif url.path == "/done":
            mine = queue.done(worker, _number(fields, "task"), _number(fields, "status"))
        elif url.path == "/release":
            mine = queue.release(worker, _number(fields, "task"))
        else:
            raise _Refused(404, "there is no such thing")
        if not mine:
            raise _Refused(409, "this task isn't yours")
        return "ok\n"

    def _body(self) -> str:
        try:
            size = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            size = -1
        if not 0 <= size <= LARGEST_BYTES:
            self.close_connection = True
            raise _Refused(413, f"a body of 0 to {LARGEST_BYTES} bytes is right")
        return self.rfile.read(size).decode("utf-8", "replace")

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Only errors are logged."""


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise _Refused(400, f"{name}=NUMBER is missing")
    return int(text)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A small task queue over HTTP for trying pilots.")
    parser.add_argument("--database", type=Path, required=True, help="SQLite file that keeps the tasks")
    parser.add_argument("--host", default="", help="address to listen on; default: all")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--lease-seconds", type=float, default=300.0, help="a task that isn't renewed is given away"
    )
    parser.add_argument("--tries", type=int, default=3, help="a task fails for good after so many")
    arguments = parser.parse_args()
    queue = Queue(arguments.database, arguments.lease_seconds, arguments.tries)
    server = Server((arguments.host, arguments.port), queue)
    print(f"listening on port {server.server_port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    queue.close()


if __name__ == "__main__":
    main()
