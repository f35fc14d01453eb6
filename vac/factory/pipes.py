"""Keeps the copies of Vacuum Pipes' documents up to date. Fetching is done in the background; nobody waits for it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
from dataclasses import dataclass
from typing import Callable

from vac.config.machinetype import VacuumPipe
from vac.config.pipe_document import parse_pipe
from vac.config.pipe_types import PipeCopy, digest, document_path, read_copy, record, record_path
from vac.context.downloads import fetch_pipe
from vac.decoding import BadJson
from vac.factory.state import FactoryState
from vac.machines import files
from vac.text import without_url_secrets

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""From the first failure to the next attempt; doubled with each further one."""
LONGEST_RETRY_SECONDS = 900.0


@dataclass(frozen=True)
class PipeFetched:
    """Result of a request for a pipe's document."""

    name: str
    url: str
    content: bytes | None = None
    """A document that can be used; None: there is none."""
    failure: str = ""
    """The reason why there is none."""


@dataclass
class _Watch:
    """One pipe at its present URL."""

    url: str
    copy: PipeCopy
    busy: bool = False
    failures: int = 0

    def retry_seconds(self) -> float:
        """Return the pause after a failure."""
        return float(min(RETRY_SECONDS * 2 ** max(0, self.failures - 1), LONGEST_RETRY_SECONDS))


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="pipe", daemon=True).start()


class Pipes:
    """The pipes of the configuration in force. post takes each PipeFetched, from another thread."""

    def __init__(
        self,
        state: FactoryState,
        post: Callable[[PipeFetched], object],
        fetch: Callable[[str], bytes] = fetch_pipe,
        spawn: Callable[[Callable[[], None]], object] = _in_background,
    ) -> None:
        self.state = state
        self._post = post
        self._fetch = fetch
        self._spawn = spawn
        self._watches: dict[str, _Watch] = {}

    def start_due(self, now: float) -> None:
        """Ask for the documents of which it is time to; now is in Unix seconds."""
        pipes = self.state.configuration.pipes
        for name in [name for name in self._watches if name not in pipes]:
            del self._watches[name]
            self.state.pipes.pop(name, None)
            self.state.changes.clear(f"pipe {name}")
        for name, pipe in pipes.items():
            watch = self._watches.get(name)
            if watch is None or watch.url != pipe.vacuum_pipe_url:
                watch = self._watches[name] = _Watch(pipe.vacuum_pipe_url, self._read(pipe))
                self._tell(pipe, watch)
            if not watch.busy and _due(watch, now):
                watch.busy = True
                self._spawn(functools.partial(self._ask, name, watch.url))

    def _ask(self, name: str, url: str) -> None:
        """Ask for the document, and see whether it can be used. Runs in a thread of its own."""
        try:
            content = self._fetch(url)
            parse_pipe(content)
        except OSError as error:
            self._post(PipeFetched(name, url, failure=str(error)))
        except BadJson as error:
            self._post(PipeFetched(name, url, failure=f"the document can't be used: {error}"))
        else:
            self._post(PipeFetched(name, url, content))

    def fetched(self, message: PipeFetched) -> bool:
        """Take up an answer; True if machinetypes may be others now."""
        watch, pipe = self._watches.get(message.name), self.state.configuration.pipes.get(message.name)
        if watch is None or pipe is None or watch.url != message.url:
            return False
        now, before, failure = self.state.clock.unix(), watch.copy.digest, message.failure
        try:
            if message.content is not None:
                self._keep(pipe, message.content, now)
            else:
                self._note_failure(pipe, failure, now)
        except OSError as error:
            failure = f"{failure}{'; ' if failure else ''}its copy can't be written: {error.strerror}"
        watch.busy = False
        watch.failures = watch.failures + 1 if failure else 0
        watch.copy = dataclasses.replace(self._read(pipe), failure=failure or None, failure_time=now)
        self._tell(pipe, watch)
        if watch.copy.digest != before:
            log.info("pipe %s: a new document", pipe.name)
        return watch.copy.digest != before

    def _keep(self, pipe: VacuumPipe, content: bytes, now: float) -> None:
        """Make this the copy that serves from now on; of the same content only the time is noted."""
        directory, path = self.state.dir, document_path(self.state.dir.pipescache, pipe.name)
        if self._read(pipe).digest == digest(content):
            os.utime(path, (now, now))
        else:
            self._forget_other_urls(pipe)
            files.write_atomic(path, content, tmp=directory.tmp, mode=0o600, mtime=now)
        self._write_record(pipe, record(pipe.vacuum_pipe_url))

    def _note_failure(self, pipe: VacuumPipe, failure: str, now: float) -> None:
        self._forget_other_urls(pipe)
        self._write_record(pipe, record(pipe.vacuum_pipe_url, failure, now))

    def _forget_other_urls(self, pipe: VacuumPipe) -> None:
        """Remove another URL's copy, before the record says that the copy is of this one."""
        if self._read(pipe).foreign:
            document_path(self.state.dir.pipescache, pipe.name).unlink(missing_ok=True)

    def _write_record(self, pipe: VacuumPipe, content: bytes) -> None:
        directory = self.state.dir
        path = record_path(directory.pipescache, pipe.name)
        files.write_atomic(path, content, tmp=directory.tmp, mode=0o600)

    def _read(self, pipe: VacuumPipe) -> PipeCopy:
        return read_copy(self.state.dir.pipescache, pipe)

    def _tell(self, pipe: VacuumPipe, watch: _Watch) -> None:
        """Log what is wrong, once, and keep it for those who ask."""
        trouble = watch.copy.trouble()
        self.state.pipes[pipe.name] = trouble
        self.state.reported = False
        key = f"pipe {pipe.name}"
        if trouble is None:
            self.state.changes.clear(key)
        elif watch.copy.failure is not None or watch.copy.problem is not None:
            text = f"pipe {pipe.name}: {without_url_secrets(watch.url)}: {trouble}"
            self.state.changes.say(key, text, logging.WARNING)


def _due(watch: _Watch, now: float) -> bool:
    copy = watch.copy
    waiting = copy.failure is not None and 0 <= now - copy.failure_time < watch.retry_seconds()
    return copy.due(now) and not waiting
