"""Talking to a Docker-compatible engine: one client a thread, time limits, and failures in words.

The calls are those of the Docker SDK's low-level client (Docker Engine API; the version is negotiated with
the first call, and again after a failure, since the engine may have come back as another version).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import docker
import docker.errors
import requests
import urllib3.exceptions

from vac.drivers.base import EngineUnavailable

CALL_SECONDS = 60.0
"""Longest silence of the engine within a call."""


class Client(docker.APIClient):
    """A client whose streams have a time limit too: the SDK lets them wait for ever."""

    def __init__(self, url: str, seconds: float, stream_seconds: float) -> None:
        self._stream_seconds = stream_seconds
        super().__init__(base_url=url, version="auto", timeout=seconds)  # type: ignore[arg-type]  # floats do

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """As requests.Session.request."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._stream_seconds
        return super().request(method, url, *args, **kwargs)

    def make_container(self, config: Mapping[str, object], name: str) -> str:
        """Create a container as configured, and give its id."""
        made = self.create_container_from_config(config, name)  # type: ignore[no-untyped-call]
        return str(made["Id"])

    def image(self, reference: str) -> Mapping[str, Any] | None:
        """What the engine tells of an image; None if it hasn't got it."""
        try:
            found: Mapping[str, Any] = self.inspect_image(reference)  # type: ignore[no-untyped-call]
        except docker.errors.NotFound:
            return None
        return found

    def tags(self) -> frozenset[str]:
        """The names of all images, each with its tag, as the engine writes them."""
        found = cast("Iterable[Mapping[str, Any]]", self.images())
        return frozenset(tag for image in found for tag in image.get("RepoTags") or ())

    def pull_lines(self, reference: str) -> Iterator[Mapping[str, object]]:
        """Pull an image; the engine's report, as it comes."""
        return cast("Iterator[Mapping[str, object]]", self.pull(reference, stream=True, decode=True))

    def load_lines(self, file: BinaryIO) -> Iterator[Mapping[str, object]]:
        """Load an archive of images; the engine's report, as it comes."""
        lines: Iterator[Mapping[str, object]] = self.load_image(file)  # type: ignore[no-untyped-call]
        return lines


class Connection:
    """The way to one engine, for any thread. Nothing is asked of the engine before it is needed."""

    def __init__(self, url: str, seconds: float = CALL_SECONDS) -> None:
        self.url = url
        self.seconds = seconds
        self._threads = threading.local()

    @contextmanager
    def client(self) -> Iterator[Client]:
        """This thread's client. Failures that are not caught within it leave it as EngineUnavailable."""
        try:
            with self.explained():
                if getattr(self._threads, "client", None) is None:
                    self._threads.client = Client(self.url, self.seconds, self.seconds)
                yield self._threads.client
        except EngineUnavailable:
            self.forget()
            raise

    @contextmanager
    def stream_client(self, silence_seconds: float) -> Iterator[Client]:
        """A client of its own, which gives a stream up when nothing comes for that long."""
        with self.explained(silence_seconds):
            client = Client(self.url, self.seconds, silence_seconds)
            try:
                yield client
            finally:
                client.close()

    @contextmanager
    def explained(self, seconds: float | None = None) -> Iterator[None]:
        """Turn what the SDK raises into EngineUnavailable with one clear reason."""
        try:
            yield
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            docker.errors.DockerException,
        ) as error:
            why = _why(error, self.seconds if seconds is None else seconds)
            raise EngineUnavailable(f"{self.url}: {why}") from error

    def forget(self) -> None:
        """Let go of this thread's client, if it has one."""
        client = getattr(self._threads, "client", None)
        self._threads.client = None
        if client is not None:
            client.close()


def explanation(error: docker.errors.APIError) -> str:
    """What the engine says about a call that it refused, in one line without the layers' preambles."""
    text = " ".join(str(error.explanation or error).split())
    return re.sub(
        r"^(failed to create (shim )?task: |OCI runtime create failed: |runc create failed: )+", "", text
    )


def timed_out(error: BaseException) -> bool:
    """Did the engine stay silent for too long?"""
    silence = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    return any(isinstance(cause, silence) for cause in _causes(error))


def _why(error: Exception, seconds: float) -> str:
    if isinstance(error, docker.errors.APIError):
        return explanation(error)
    causes = list(_causes(error))
    for kind, text in (
        (FileNotFoundError, "no such socket; is the engine installed and running?"),
        (PermissionError, "permission denied"),
        (ConnectionRefusedError, "refuses connections; is the engine running?"),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return text
    if timed_out(error):
        return f"no answer for {seconds:g} s"
    if any(isinstance(cause, (ConnectionError, urllib3.exceptions.ProtocolError)) for cause in causes):
        return "the engine closed the connection"
    return " ".join(str(error).split())


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            waiting += [cause.__cause__, cause.__context__, *cause.args]
            yield cause
