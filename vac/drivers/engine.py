"""An engine's threads: they make the calls that may never return, so that nobody else waits for them.

Three daemon threads go with one driver: one observes, one creates and ends machines (or, if these don't depend on
one another, one for each machine to which something is being done), one listens for events. What comes of a call is
posted as a message; the factory's loop, which alone writes state, takes it from there.
"""

from __future__ import annotations

import enum
import logging
import queue
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple, TypeVar

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineState,
    EngineUnavailable,
    LeftProcess,
    MachineSpec,
    Observed,
    Trace,
)
from vac.drivers.lines import Lines
from vac.drivers.messages import (
    ActionResult,
    Changed,
    Created,
    CreationRefused,
    Destroyed,
    DestructionFailed,
    Message,
    Observation,
    ObservationFailed,
    StopFailed,
    Stopped,
)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between attempts to listen for events again, after they broke off, unless observing shows that they can work."""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class ActionKind(enum.Enum):
    """What the acting thread does."""

    CREATE = "create"
    STOP = "stop"
    DESTROY = "destroy"


class Action(NamedTuple):
    """One thing that has been asked for."""

    kind: ActionKind
    name: str
    uuid: str


@dataclass(frozen=True)
class Deadlines:
    """How long a call may take before the engine counts as late, and when a failed one is made again."""

    observation_seconds: float = 30.0
    action_seconds: float = 300.0
    retry_seconds: float = 5.0
    """From an observation that failed to the next attempt, if nobody asks sooner."""


@dataclass(frozen=True)
class _Failure:
    reason: str
    unavailable: bool


@dataclass(frozen=True)
class _Call:
    what: str
    """For people; "" for an observation."""
    begun_time: float
    """By the timer, as deadline is."""
    deadline: float


_ANSWERS: Mapping[ActionKind, type[Created | Stopped | Destroyed]] = {
    ActionKind.CREATE: Created,
    ActionKind.STOP: Stopped,
    ActionKind.DESTROY: Destroyed,
}
_KINDS: Mapping[type, ActionKind] = {
    Created: ActionKind.CREATE,
    CreationRefused: ActionKind.CREATE,
    Stopped: ActionKind.STOP,
    StopFailed: ActionKind.STOP,
    Destroyed: ActionKind.DESTROY,
    DestructionFailed: ActionKind.DESTROY,
}


class InlineEngine:
    """The engine without threads: each request is carried out at once, in the caller's thread.

    For tests and simulations in virtual time, and the part that Engine shares. Events are not listened to.
    post takes each Message; clock gives Unix seconds, and timer those that deadlines are reckoned in, which no
    setting of the host's clock touches.
    """

    def __init__(
        self,
        name: str,
        driver: Driver,
        post: Callable[[Message], object],
        clock: Callable[[], float],
        deadlines: Deadlines = Deadlines(),
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._driver = driver
        self._post = post
        self._clock = clock
        self._timer = timer
        self._deadlines = deadlines
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._pending: set[Action] = set()
        self._observation_failure: str | None = None
        self._detailed: set[str] = set()

    def request_observation(self) -> None:
        """Ask for an Observation. While one is being made, one more is remembered."""
        self._observe()

    def create(self, spec: MachineSpec) -> None:
        """Ask for a machine: Created or CreationRefused will be posted."""
        self._ask(Action(ActionKind.CREATE, spec.name, spec.uuid), lambda: self._driver.create(spec))

    def stop(self, name: str, uuid: str) -> None:
        """Ask for the machine's end, its remains being kept: Stopped or StopFailed will be posted."""
        self._ask(Action(ActionKind.STOP, name, uuid), lambda: self._driver.stop(name, uuid))

    def destroy(self, name: str, uuid: str) -> None:
        """Ask for the machine's end and removal: Destroyed or DestructionFailed will be posted."""
        self._ask(Action(ActionKind.DESTROY, name, uuid), lambda: self._driver.destroy(name, uuid))

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """Why no machine of this type can be made yet, such as an image that is being pulled; see Driver."""
        return self._driver.prepare(machinetype, settings, files)

    def notices(self) -> Sequence[str]:
        """What is probably wrong with this host; see Driver."""
        return self._driver.notices()

    def adopt(self, machines: Mapping[str, str]) -> None:
        """Tell the driver which machines are the factory's whatever marks they bear; see Driver."""
        self._driver.adopt(machines)

    def follow(self, processes: Mapping[str, LeftProcess]) -> None:
        """Tell the driver of machines that an older Vac has left running; see Driver."""
        self._driver.follow(processes)

    def settle(self, message: ActionResult) -> None:
        """Tell that this result has been received and acted upon: its action is pending no more."""
        with self._lock:
            self._pending.discard(Action(_KINDS[type(message)], message.name, message.uuid))

    @property
    def pending(self) -> frozenset[Action]:
        """All that was asked for and not settled. To ask for the same again changes nothing."""
        with self._lock:
            return frozenset(self._pending)

    @property
    def pending_creations(self) -> frozenset[str]:
        """Names of the machines whose creation is pending."""
        return frozenset(action.name for action in self.pending if action.kind is ActionKind.CREATE)

    @property
    def pending_destructions(self) -> frozenset[str]:
        """Names of the machines whose end is pending, be it stop or destroy."""
        return frozenset(action.name for action in self.pending if action.kind is not ActionKind.CREATE)

    def late(self) -> bool:
        """Is a call outstanding for longer than its deadline?"""
        return self.stuck_seconds() > 0

    def problem(self) -> str | None:
        """Why this engine must be taken as unavailable, in words; None if it need not.

        That is a call that is late, or an observation that failed and no better one since.
        """
        now = self._timer()
        for call in self._outstanding():
            if now > call.deadline:
                return f"no answer for {now - call.begun_time:.0f} s{call.what}"
        return self._observation_failure

    def stuck_seconds(self) -> float:
        """For how long the latest call has been past its deadline, seconds; 0.0 if none is."""
        now = self._timer()
        return max((now - call.deadline for call in self._outstanding() if now > call.deadline), default=0.0)

    def close(self) -> None:
        """Let go of the engine. What was asked for and has not been begun is not done any more."""
        self._driver.close()

    def _ask(self, action: Action, call: Callable[[], None]) -> None:
        with self._lock:
            if action in self._pending:
                return
            self._pending.add(action)
        self._submit(action, call)

    def _submit(self, action: Action, call: Callable[[], None]) -> None:
        self._act(action, call)

    def _observe(self) -> None:
        asked_time = self._clock()

        def look() -> Observation:
            machines = tuple(self._driver.list())
            usage, details, traces = (
                dict(self._driver.usage()),
                self._details(machines),
                self._driver.traces(),
            )
            told = {
                uuid: {**details.get(uuid, {}), **traces.get(uuid, Trace()).facts}
                for uuid in {*details, *traces}
            }
            contacts = {uuid: trace.contacts for uuid, trace in traces.items() if trace.contacts}
            told = {uuid: facts for uuid, facts in told.items() if facts}
            return Observation(self.name, machines, usage, asked_time, self._clock(), told, contacts)

        seen = self._attempt("", self._deadlines.observation_seconds, look)
        if isinstance(seen, _Failure):
            self._observation_failure = seen.reason
            self._post(ObservationFailed(self.name, seen.reason, asked_time, self._clock()))
        else:
            self._observation_failure = None
            self._post(seen)

    def _details(self, machines: tuple[Observed, ...]) -> Mapping[str, Mapping[str, str]]:
        running = {machine.uuid for machine in machines if machine.state is EngineState.RUNNING}
        found = {uuid: dict(self._driver.details(uuid)) for uuid in running - self._detailed}
        self._detailed = running.intersection(
            {*self._detailed, *(uuid for uuid, told in found.items() if told)}
        )
        return found

    def _act(self, action: Action, call: Callable[[], None]) -> None:
        kind, name, uuid = action
        failure = self._attempt(f" to {kind.value} {name}", self._deadlines.action_seconds, call)
        now = self._clock()
        if failure is None:
            self._post(_ANSWERS[kind](self.name, name, uuid, now))
        elif kind is ActionKind.CREATE:
            self._post(CreationRefused(self.name, name, uuid, failure.reason, failure.unavailable, now))
        elif kind is ActionKind.STOP:
            self._post(StopFailed(self.name, name, uuid, failure.reason, now))
        else:
            self._post(DestructionFailed(self.name, name, uuid, failure.reason, now))

    def _outstanding(self) -> list[_Call]:
        with self._lock:
            return list(self._calls.values())

    def _attempt(self, what: str, deadline_seconds: float, call: Callable[[], _Result]) -> _Result | _Failure:
        thread = threading.get_ident()
        begun_time = self._timer()
        with self._lock:
            self._calls[thread] = _Call(what, begun_time, begun_time + deadline_seconds)
        try:
            return call()
        except EngineUnavailable as error:
            return _Failure(str(error), unavailable=True)
        except CreationFailed as error:
            return _Failure(str(error), unavailable=False)
        except Exception as error:  # noqa: BLE001  a bug in a driver must not end the thread
            _log.exception("engine %s: unexpected error%s", self.name, what)
            return _Failure(f"unexpected {type(error).__name__}: {error}", unavailable=True)
        finally:
            with self._lock:
                del self._calls[thread]


class Engine(InlineEngine):
    """The engine with its three threads. No method blocks, whatever the engine does.

    apart: what doesn't wait for other machines: it is done in threads of each machine's own, in order.
    """

    def __init__(
        self,
        name: str,
        driver: Driver,
        post: Callable[[Message], object],
        clock: Callable[[], float],
        deadlines: Deadlines = Deadlines(),
        timer: Callable[[], float] = time.monotonic,
        apart: Collection[ActionKind] = (),
    ) -> None:
        super().__init__(name, driver, post, clock, deadlines, timer)
        self._apart = frozenset(apart)
        self._lines = Lines(f"{name}-acting")
        self._closed = threading.Event()
        self._observation_wanted = threading.Event()
        self._answers_again = threading.Event()
        self._actions: queue.SimpleQueue[tuple[Action, Callable[[], None]] | None] = queue.SimpleQueue()
        for task in (self._keep_observing, self._keep_acting, self._keep_listening):
            title = f"{name}-{task.__name__.rpartition('_')[2]}"
            threading.Thread(target=task, name=title, daemon=True).start()

    def request_observation(self) -> None:
        """Ask for an Observation. While one is being made, one more is remembered."""
        self._observation_wanted.set()

    def close(self) -> None:
        """Let go of the engine. What was asked for and has not been begun is not done any more."""
        self._closed.set()
        self._observation_wanted.set()
        self._answers_again.set()
        self._actions.put(None)
        super().close()

    def _submit(self, action: Action, call: Callable[[], None]) -> None:
        if action.kind in self._apart:
            self._lines.add(action.name, lambda: self._act_unless_closed(action, call))
        else:
            self._actions.put((action, call))

    def _act_unless_closed(self, action: Action, call: Callable[[], None]) -> None:
        if not self._closed.is_set():
            self._act(action, call)

    def _keep_observing(self) -> None:
        while True:
            failure = self._observation_failure
            self._observation_wanted.wait(None if failure is None else self._deadlines.retry_seconds)
            if self._closed.is_set():
                return
            self._observation_wanted.clear()
            self._observe()
            if failure is not None and self._observation_failure is None:
                self._answers_again.set()

    def _keep_acting(self) -> None:
        while (asked := self._actions.get()) is not None and not self._closed.is_set():
            self._act(*asked)

    def _keep_listening(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._closed.is_set():
            try:
                for machine in self._driver.events():
                    pause_seconds = FIRST_PAUSE_SECONDS
                    self._post(Changed(self.name, machine))
                reason = "they broke off"
            except EngineUnavailable as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001  a bug in a driver must not end the thread
                _log.exception("engine %s: unexpected error while listening for events", self.name)
                reason = f"unexpected {type(error).__name__}: {error}"
            self._answers_again.wait(pause_seconds)
            self._answers_again.clear()
            if not self._closed.is_set():
                _log.info("engine %s: listening for events again: %s", self.name, reason)
                pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
                self._post(Changed(self.name, ""))
