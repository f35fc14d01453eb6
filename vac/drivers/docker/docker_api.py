"""Calls and events of a Docker-compatible engine: one client per thread, deadlines, and failures in words.

The calls are those of the Docker SDK's low-level client (Docker Engine API; the version is negotiated with the first
call, and again after a failure, since the engine may have come back as another version).
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, NamedTuple, cast

import docker
import docker.errors
import requests
import urllib3.exceptions

from vac.drivers.base import EngineUnavailable

CALL_SECONDS = 60.0
"""Longest silence of the engine within a call."""
NEWS = frozenset({"die", "died", "destroy", "remove", "pause", "unpause", "rename", "oom"})
"""Events that matter. Docker says `die` and `destroy` where Podman says `died` and `remove`, and a filter on these
names finds nothing on the other: so all events of our containers are read."""
ENDS = frozenset({"die", "died"})
SILENCE_SECONDS = 300.0
"""A stream of events that has been silent for so long is opened again: a connection can be dead without a sign."""
OVERLAP_SECONDS = 1
"""So much of the past is asked for with a new stream: Docker answers before it starts collecting events."""


class Server(NamedTuple):
    """What creations have to know of an engine."""

    podman: bool
    systemd: bool
    """It has systemd make cgroups."""


class Client(docker.APIClient):
    """A client whose streams have a deadline, too: those of the SDK wait for ever."""

    def __init__(self, url: str, seconds: float, stream_seconds: float, version: str = "auto") -> None:
        self._stream_seconds = stream_seconds
        super().__init__(base_url=url, version=version, timeout=seconds)  # type: ignore[arg-type]  # floats do

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """As requests.Session.request."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._stream_seconds
        return super().request(method, url, *args, **kwargs)

    def make_container(self, config: Mapping[str, object], name: str) -> str:
        """Create a container as configured, and return its id."""
        made = self.create_container_from_config(config, name)  # type: ignore[no-untyped-call]
        return str(made["Id"])

    def has_path(self, container_id: str, path: str) -> bool:
        """Tell if there is such a file in a container.

        The SDK's get_archive() would begin to send the file, on a connection that stays open until it is collected.
        """
        url = self._url("/containers/{0}/archive", container_id)  # type: ignore[attr-defined]
        with self.head(url, params={"path": path}) as response:
            if response.status_code == requests.codes.not_found:
                return False
            self._raise_for_status(response)  # type: ignore[attr-defined]
        return True

    def image(self, reference: str) -> Mapping[str, Any] | None:
        """Return the description of an image; None if the engine doesn't have it."""
        try:
            found: Mapping[str, Any] = self.inspect_image(reference)  # type: ignore[no-untyped-call]
        except docker.errors.NotFound:
            return None
        return found

    def tags(self) -> frozenset[str]:
        """Return the names of all images, each with its tag, as the engine writes them."""
        found = cast("Iterable[Mapping[str, Any]]", self.images())
        return frozenset(tag for image in found for tag in image.get("RepoTags") or ())

    def pull_lines(self, reference: str) -> Iterator[Mapping[str, object]]:
        """Pull an image and yield the engine's report as it comes."""
        return cast("Iterator[Mapping[str, object]]", self.pull(reference, stream=True, decode=True))

    def load_lines(self, archive: Iterable[bytes]) -> Iterator[Mapping[str, object]]:
        """Load an archive of an image and yield the engine's report as it comes."""
        lines: Iterator[Mapping[str, object]] = self.load_image(archive)  # type: ignore[no-untyped-call]
        return lines


class Connection:
    """The connections to one engine, for any thread, opened when they are needed.

    Which version it is and what it can do is asked once, until a stream of events begins anew: on Debian each answer
    of Podman takes tenths of a second of CPU time, for it looks up the packages of all its parts.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.seconds = CALL_SECONDS
        self._threads = threading.local()
        self._version = "auto"
        self._server: Server | None = None

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """Yield this thread's client. Failures that leave the block become EngineUnavailable."""
        try:
            with self.explained(self.seconds):
                if getattr(self._threads, "client", None) is None:
                    self._threads.client = Client(self.url, self.seconds, self.seconds, self._version)
                    self._version = self._threads.client.api_version
                yield self._threads.client
        except EngineUnavailable:
            self.forget()
            raise

    @contextlib.contextmanager
    def stream_client(self, silence_seconds: float) -> Iterator[Client]:
        """Yield a separate client, which gives a stream up when nothing comes for that long."""
        with self.explained(silence_seconds):
            client = Client(self.url, self.seconds, silence_seconds)
            self._version, self._server = client.api_version, None
            try:
                yield client
            finally:
                client.close()

    @contextlib.contextmanager
    def explained(self, seconds: float) -> Iterator[None]:
        """Turn the SDK's exceptions into EngineUnavailable with one clear reason."""
        try:
            yield
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            docker.errors.DockerException,
        ) as error:
            raise EngineUnavailable(f"{self.url}: {_reason(error, seconds)}") from error

    def server(self, client: Client) -> Server:
        """Return what is known of the engine, or ask it."""
        if self._server is None:
            parts = client.version(api_version=False).get("Components") or []
            podman = any("podman" in str(part.get("Name", "")).lower() for part in parts)
            self._server = Server(podman, systemd=client.info().get("CgroupDriver") == "systemd")
        return self._server

    def forget(self) -> None:
        """Close this thread's client, if it has one, and ask the engine anew."""
        self._version, self._server = "auto", None
        client = getattr(self._threads, "client", None)
        self._threads.client = None
        if client is not None:
            client.close()


class EventReader:
    """Reads the engine's events as a stream of machine names.

    filters returns those of the containers that matter now; identify returns the machine's name by a container's id
    and labels, or None if it isn't ours.
    """

    def __init__(
        self,
        connection: Connection,
        filters: Callable[[], Mapping[str, list[str]]],
        identify: Callable[[str, Mapping[str, str]], tuple[str, str] | None],
    ) -> None:
        self._connection = connection
        self._filters = filters
        self._identify = identify
        self._lock = threading.Lock()
        self._stream: Any = None
        self._closed = False

    def listen(self) -> Iterator[str]:
        """Yield names of machines that have changed, and "" for any, as whenever a stream of events begins: what
        happened before it isn't in it. Ends with close()."""
        while not self._closed:
            try:
                yield from self._read_stream()
                raise EngineUnavailable(f"{self._connection.url}: the engine closed the stream of events")
            except EngineUnavailable as error:
                if not self._closed and (error.__cause__ is None or not timed_out(error.__cause__)):
                    raise

    def close(self) -> None:
        """End listen()."""
        with self._lock:
            self._closed = True
        self._hang_up()

    def machine(self, event: Mapping[str, Any]) -> str | None:
        """Return the name of the machine that this event is news of; None if there is none."""
        actor = event.get("Actor") or {}
        if _action(event) not in NEWS:
            return None
        identity = self._identify(str(actor.get("ID", "")), actor.get("Attributes") or {})
        return identity[0] if identity is not None else None

    def _read_stream(self) -> Iterator[str]:
        filters = {"type": ["container"], **self._filters()}
        with self._connection.stream_client(SILENCE_SECONDS) as client:
            since = int(time.time()) - OVERLAP_SECONDS
            stream = client.events(since=since, decode=True, filters=filters)
            with self._lock:
                self._stream = stream
            try:
                yield ""
                for event in () if self._closed else stream:
                    name = self.machine(event)
                    if name is None:
                        continue
                    if _action(event) in ENDS:
                        with self._connection.client() as asking:
                            await_listing(asking, event["Actor"]["ID"])
                    yield name
            finally:
                self._hang_up()

    def _hang_up(self) -> None:
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError, docker.errors.DockerException):
                stream.close()


def await_listing(client: Client, container_id: str) -> None:
    """Return when the engine lists the container in its present state: Docker tells of an end before it lists it.

    Inspecting it takes its lock, which Docker holds from the end of its process until it is listed as ended. What the
    engine says about it, such as that it is being removed, doesn't matter.
    """
    with contextlib.suppress(docker.errors.APIError):
        client.inspect_container(container_id)


def explanation(error: docker.errors.APIError) -> str:
    """Return the engine's reason for refusing a call, in one line without the layers' preambles."""
    text = " ".join(str(error.explanation or error).split())
    return re.sub(
        r"^(failed to create (shim )?task: |OCI runtime create failed: |runc create failed: )+", "", text
    )


def timed_out(error: BaseException) -> bool:
    """Tell if the engine was silent for too long."""
    silence = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    return any(isinstance(cause, silence) for cause in _causes(error))


def _action(event: Mapping[str, Any]) -> object:
    return event.get("Action", event.get("status"))


def _reason(error: Exception, seconds: float) -> str:
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
