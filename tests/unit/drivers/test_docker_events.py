"""The stream of Docker's events, from an engine's stand-in: nothing is missed where streams begin and break."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from vac.drivers.base import EngineUnavailable
from vac.drivers.docker.api import Connection
from vac.drivers.docker.events import EventReader, event_machine
from vac.drivers.docker.listing import Ownership

OWNERSHIP = Ownership("f1.example.com", {})
LABELS = {"vac.factory": "f1.example.com", "vac.uuid": "u0", "vac.machine": "f1-00.example.com"}
BROKEN_OFF = None


def event(action: str, **labels: str) -> dict[str, Any]:
    return {"Type": "container", "Action": action, "Actor": {"ID": "c0", "Attributes": {**LABELS, **labels}}}


class Stream:
    """What the SDK gives for the events of one connection."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.events.get, BROKEN_OFF)

    def close(self) -> None:
        self.events.put(BROKEN_OFF)


class StandIn(Connection):
    """An engine that tells what tests put into its stream."""

    def __init__(self) -> None:
        super().__init__("unix:///stand-in")
        self.stream = Stream()
        self.asked: dict[str, Any] = {}

    @contextlib.contextmanager
    def stream_client(self, silence_seconds: float) -> Iterator[Any]:
        yield self

    def events(self, **asked: Any) -> Stream:
        self.asked = asked
        return self.stream


@pytest.fixture
def engine() -> StandIn:
    return StandIn()


@pytest.fixture
def reader(engine: StandIn) -> Iterator[EventReader]:
    reader = EventReader(cast(Connection, engine), lambda: OWNERSHIP)
    yield reader
    reader.close()


def test_whoever_listens_is_told_to_look_once_the_engine_collects_events(
    engine: StandIn, reader: EventReader
) -> None:
    listening = reader.listen()
    assert next(listening) == "", "what has happened before isn't told by events"
    assert engine.asked["since"] < time.time(), "the engine answers before it begins to collect"
    engine.stream.events.put(event("pause"))
    assert next(listening) == "f1-00.example.com"


def test_a_stream_that_breaks_off_is_an_error_and_the_next_begins_as_the_first(
    engine: StandIn, reader: EventReader
) -> None:
    listening = reader.listen()
    next(listening)
    engine.stream.close()
    with pytest.raises(EngineUnavailable, match="closed the stream of events"):
        next(listening)
    assert next(reader.listen()) == ""


@pytest.mark.parametrize(
    ("told", "machine"),
    [
        (event("die"), "f1-00.example.com"),
        (event("died"), "f1-00.example.com"),
        (event("remove"), "f1-00.example.com"),
        (event("exec_create: sh"), None),
        (event("start"), None),
        (event("die", **{"vac.factory": "f2.example.com"}), None),
        ({"status": "die", "Actor": {"ID": "c0", "Attributes": LABELS}}, "f1-00.example.com"),
        ({"Type": "container", "Action": "die"}, None),
    ],
)
def test_events_that_are_news_name_the_machine(told: dict[str, Any], machine: str | None) -> None:
    assert event_machine(told, OWNERSHIP) == machine
