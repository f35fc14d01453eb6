"""Keeps the copies of Vacuum Pipes' documents up to date. Fetching is done in the background; nobody waits for it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from typing import Callable

from vac.background import BackgroundWork, Outcome, Rest
from vac.config.machinetype import VacuumPipe
from vac.config.pipe_document import parse_pipe
from vac.config.pipe_types import PipeCopy, digest, document_path, read_copy, record, record_path
from vac.context.downloads import fetch_pipe
from vac.decoding import BadJson
from vac.factory.state import FactoryState, Wake
from vac.machines import files
from vac.text import without_url_secrets

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""From the first failure to the next attempt; doubled with each further one."""
LONGEST_RETRY_SECONDS = 900.0
AT_ONCE = 16
"""Documents fetched at the same time."""


class Pipes:
    """The pipes of the configuration in force."""

    def __init__(self, state: FactoryState, fetch: Callable[[str], bytes] = fetch_pipe) -> None:
        self.state = state
        self._fetch = fetch
        self._copies: dict[str, PipeCopy] = {}
        """By name and URL."""
        rest = Rest(0.0, RETRY_SECONDS, LONGEST_RETRY_SECONDS)
        self._work: BackgroundWork[bytes] = state.background(
            "pipe", self._fetched, at_once=AT_ONCE, rest=rest
        )

    def start_due(self, now: float) -> None:
        """Ask for the documents of which it is time to; now is in Unix seconds."""
        pipes = self._pipes()
        for key in [key for key in self._copies if key not in pipes]:
            name = key.partition(" ")[0]
            del self._copies[key]
            self._work.forget(key)
            self.state.pipes.pop(name, None)
            self.state.changes.clear(f"pipe {name}")
        for key, pipe in pipes.items():
            if key not in self._copies:
                self._take(pipe, read_copy(self.state.dir.pipescache, pipe))
            copy = self._copies[key]
            failed_lately = copy.failure is not None and 0 <= now - copy.failure_time < RETRY_SECONDS
            if copy.due(now) and not failed_lately:
                self._work.start(key, functools.partial(self._ask, pipe.vacuum_pipe_url))

    def _pipes(self) -> dict[str, VacuumPipe]:
        return {_key(pipe): pipe for pipe in self.state.configuration.pipes.values()}

    def _ask(self, url: str) -> bytes:
        """Return the document if it can be used. Blocks."""
        content = self._fetch(url)
        try:
            parse_pipe(content)
        except BadJson as error:
            raise ValueError(f"the document can't be used: {error}") from error
        return content

    def _fetched(self, outcome: Outcome[bytes]) -> None:
        """Take up an answer, and have the configuration loaded if machinetypes may be others now."""
        pipe = self._pipes().get(outcome.key)
        if pipe is None or outcome.key not in self._copies:
            return
        now, failure = self.state.clock.unix(), outcome.failure
        try:
            self._store(pipe, outcome.value, failure, now)
        except OSError as error:
            failure = f"{failure}{'; ' if failure else ''}its copy can't be written: {error.strerror}"
        before = self._copies[outcome.key].digest
        copy = read_copy(self.state.dir.pipescache, pipe)
        self._take(pipe, dataclasses.replace(copy, failure=failure or None, failure_time=now))
        if self._copies[outcome.key].digest != before:
            log.info("pipe %s: a new document", pipe.name)
            self.state.post(Wake())

    def _store(self, pipe: VacuumPipe, content: bytes | None, failure: str, now: float) -> None:
        """Make this the copy that serves from now on, of the same content only its time; or note the failure."""
        directory, tmp = self.state.dir.pipescache, self.state.dir.tmp
        path, copy = document_path(directory, pipe.name), read_copy(directory, pipe)
        if content is not None and copy.digest == digest(content):
            os.utime(path, (now, now))
        else:
            if copy.foreign:  # it has to go before the record says that the copy is of this URL
                path.unlink(missing_ok=True)
            if content is not None:
                files.write_atomic(path, content, tmp=tmp, mode=0o600, mtime=now)
        url = pipe.vacuum_pipe_url
        noted = record(url, failure, now) if content is None else record(url)
        files.write_atomic(record_path(directory, pipe.name), noted, tmp=tmp, mode=0o600)

    def _take(self, pipe: VacuumPipe, copy: PipeCopy) -> None:
        """Remember a copy; log what is wrong, once, and keep it for those who ask."""
        self._copies[_key(pipe)] = copy
        trouble = copy.trouble()
        self.state.pipes[pipe.name] = trouble
        self.state.reported = False
        if trouble is None:
            self.state.changes.clear(f"pipe {pipe.name}")
        elif copy.failure is not None or copy.problem is not None:
            text = f"pipe {pipe.name}: {without_url_secrets(pipe.vacuum_pipe_url)}: {trouble}"
            self.state.changes.say(f"pipe {pipe.name}", text, logging.WARNING)


def _key(pipe: VacuumPipe) -> str:
    return f"{pipe.name} {pipe.vacuum_pipe_url}"
