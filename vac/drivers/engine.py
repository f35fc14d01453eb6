"""Engines by machine model, and their threads, which make the calls that may never return, so that nobody else waits.

Daemon threads go with one engine: one observes, one listens for events, and while there is something to do one creates
and ends machines (or, where these don't depend on one another, one for each machine). Results are posted as messages to
the factory's loop, which alone writes state.
"""

from __future__ import annotations

import collections
import enum
import importlib
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, NamedTuple, TypeVar, Union, cast

from vac.config.machinetype import MODELS, Machinetype
from vac.config.settings import Settings
from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineUnavailable,
    Fetch,
    LeftProcess,
    MachineSpec,
    Observed,
    no_images,
)
from vac.host.connections import Contact, Sampling

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between attempts to listen for events again, after they broke off, unless observing shows that they can work."""

OBSERVATION_SECONDS, ACTION_SECONDS = 30.0, 300.0
"""Deadlines of calls, after which the engine counts as late."""
RETRY_SECONDS = 5.0
"""From an observation that failed to the next attempt, if nobody asks sooner."""
ANSWER_SECONDS = 2.0
"""An engine that has not answered for so long may not have told of a machine's end."""

MODULES = {
    "libvirt": "vac.drivers.libvirt.libvirt_driver",
    "docker": "vac.drivers.docker.docker_driver",
    "processes": "vac.drivers.processes.process_driver",
}
"""By engine, as MODELS of config/machinetype.py names them; each has a function open_driver(settings, fetch).

Singularity and bubblewrap share one, as their machines share one tree of cgroups."""
PACKAGES = {"libvirt": "python3-libvirt", "docker": "python3-docker"}
"""Packages of engines' Python libraries, by the names that Debian and EL9 share."""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class ActionKind(enum.Enum):
    """Things that can be done to a machine."""

    CREATE = "create"
    STOP = "stop"
    DESTROY = "destroy"


APART: Mapping[str, frozenset[ActionKind]] = {
    "libvirt": frozenset([ActionKind.STOP]),
    "processes": frozenset(ActionKind),
}
"""By engine what must not wait for other machines: stops where machines get time to end by themselves, and all where a
creation may hang with the file system that its image is on."""


class Action(NamedTuple):
    """One thing that is asked of the engine."""

    kind: ActionKind
    name: str
    """Host name of the machine."""
    uuid: str


@dataclass(frozen=True)
class ActionDone:
    """The engine has answered to an action: a machine runs, has been stopped or removed, or the reason why not."""

    engine: str
    action: Action
    time: float
    """By the engine's clock, as all times here."""
    problem: str | None = None
    """The reason of the failure; None: the action succeeded."""
    unavailable: bool = False
    """The engine couldn't be reached: it is unknown whether the action had its effect."""


@dataclass(frozen=True)
class Observation:
    """The engine's machines."""

    engine: str
    machines: tuple[Observed, ...]
    asked_time: float
    """Time at which the engine was asked: the listing says nothing of a machine that was created later."""
    contacts: Mapping[str, frozenset[Contact]] = field(default_factory=dict)
    """By uuid, the network peers of those machines that were examined."""


@dataclass(frozen=True)
class Unobserved:
    """The engine couldn't be asked, or its events broke off: machines may have ended unseen, even by its own doing."""

    engine: str
    time: float


@dataclass(frozen=True)
class Changed:
    """Something has changed with the machine of this name, or with any if it is "": worth an observation."""

    engine: str
    name: str


Message = Union[Observation, Unobserved, ActionDone, Changed]


@dataclass(frozen=True)
class _Call:
    purpose: str
    """For people; "" for an observation."""
    begin_time: float
    deadline: float


class Engine:
    """An engine with its threads. No method blocks, whatever the engine does.

    open_driver may raise EngineUnavailable, and is then called again for the next request. post takes each Message.
    clock gives seconds of a monotonic clock. apart: kinds of actions that need not wait for other machines: they are
    done in a thread for each machine, in order.
    """

    def __init__(
        self,
        name: str,
        open_driver: Callable[[], Driver],
        post: Callable[[Message], object],
        clock: Callable[[], float],
        apart: Collection[ActionKind] = (),
    ) -> None:
        self.name = name
        self._open_driver = open_driver
        self._driver: Driver | None = None
        self._opening = threading.Lock()
        self._post = post
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._pending: set[Action] = set()
        self._observation_failure: str | None = None
        self._adopted: tuple[Mapping[str, str], Mapping[str, LeftProcess]] = {}, {}
        self._sampling = Sampling(clock)
        self._apart = frozenset(apart)
        self._executor = KeyedSerialExecutor(f"{name}-acting")
        self._observation_wanted = threading.Event()
        self._answers_again = threading.Event()
        self._start()

    def _start(self) -> None:
        for task in (self._keep_observing, self._keep_listening):
            title = f"{self.name}-{task.__name__.rpartition('_')[2]}"
            threading.Thread(target=task, name=title, daemon=True).start()

    def request_observation(self) -> None:
        """Ask for an Observation. While one is being made, one more is remembered."""
        self._observation_wanted.set()

    def create(self, spec: MachineSpec) -> None:
        """Ask for a machine."""
        self._ask(Action(ActionKind.CREATE, spec.name, spec.uuid), lambda driver: driver.create(spec))

    def stop(self, name: str, uuid: str) -> None:
        """Ask for the machine's end, its remains being kept."""
        self._ask(Action(ActionKind.STOP, name, uuid), lambda driver: driver.stop(name, uuid))

    def destroy(self, name: str, uuid: str) -> None:
        """Ask for the machine's end and removal."""
        self._ask(Action(ActionKind.DESTROY, name, uuid), lambda driver: driver.destroy(name, uuid))

    def prepare(self, machinetype: Machinetype, settings: Settings, files: Path) -> str | None:
        """Return why no machine of this type can be made yet, such as an image that is being pulled; see Driver."""
        driver = self._driver
        return driver.prepare(machinetype, settings, files) if driver else None

    def notices(self) -> Sequence[str]:
        """Return what is probably wrong with this host; see Driver."""
        driver = self._driver
        return driver.notices() if driver else ()

    def adopt(self, machines: Mapping[str, str], processes: Mapping[str, LeftProcess]) -> None:
        """Tell the driver, now or when it is opened, which machines are the factory's own; see Driver."""
        self._adopted = machines, processes
        if driver := self._driver:
            driver.adopt(machines, processes)

    def settle(self, action: Action) -> None:
        """Forget an action whose result has been received and acted upon."""
        with self._lock:
            self._pending.discard(action)

    @property
    def pending(self) -> frozenset[Action]:
        """All actions that were asked for and not settled. To ask for the same again changes nothing."""
        with self._lock:
            return frozenset(self._pending)

    def problem(self) -> str | None:
        """Return why this engine must be taken as unavailable, in words; None if it need not.

        That is a call that is late, or an observation that failed and no better one since.
        """
        now = self._clock()
        for call in self._outstanding():
            if now > call.deadline:
                return f"no answer for {now - call.begin_time:.0f} s{call.purpose}"
        return self._observation_failure

    def answers(self) -> bool:
        """Return True if the last listing succeeded, and none has been waited for for ANSWER_SECONDS."""
        latest = self._clock() - ANSWER_SECONDS
        listings = (call for call in self._outstanding() if not call.purpose)
        return self._observation_failure is None and all(call.begin_time > latest for call in listings)

    def stuck_seconds(self) -> float:
        """Return for how long the latest call has been past its deadline; 0.0 if none is."""
        now = self._clock()
        return max((now - call.deadline for call in self._outstanding() if now > call.deadline), default=0.0)

    def _opened(self) -> Driver:
        with self._opening:
            if self._driver is None:
                self._driver = self._open_driver()
                self._driver.wake = lambda: self._post(Changed(self.name, ""))
                self.adopt(*self._adopted)
            return self._driver

    def _ask(self, action: Action, call: Callable[[Driver], None]) -> None:
        with self._lock:
            if action in self._pending:
                return
            self._pending.add(action)
        self._submit(action, call)

    def _submit(self, action: Action, call: Callable[[Driver], None]) -> None:
        key = action.name if action.kind in self._apart else ""
        self._executor.submit(key, lambda: self._act(action, call))

    def _act(self, action: Action, call: Callable[[Driver], None]) -> None:
        problem, unavailable = None, False
        try:
            self._attempt(f" to {action.kind.value} {action.name}", ACTION_SECONDS, call)
        except (CreationFailed, EngineUnavailable) as failure:
            problem, unavailable = str(failure), isinstance(failure, EngineUnavailable)
        self._post(ActionDone(self.name, action, self._clock(), problem, unavailable))

    def _observe(self) -> None:
        asked_time = self._clock()
        try:
            seen = self._attempt("", OBSERVATION_SECONDS, lambda driver: self._look(driver, asked_time))
        except (CreationFailed, EngineUnavailable) as failure:
            self._observation_failure = str(failure)
            self._post(Unobserved(self.name, self._clock()))
        else:
            self._observation_failure = None
            self._post(seen)

    def _look(self, driver: Driver, asked_time: float) -> Observation:
        machines = tuple(driver.list())
        contacts = {uuid: ends for uuid, ends in self._sampling.sample(driver.contacts).items() if ends}
        return Observation(self.name, machines, asked_time, contacts)

    def _outstanding(self) -> list[_Call]:
        with self._lock:
            return list(self._calls.values())

    def _attempt(self, purpose: str, deadline_seconds: float, call: Callable[[Driver], _Result]) -> _Result:
        """Return the call's result. Raises EngineUnavailable, also for a bug in a driver, and CreationFailed."""
        thread = threading.get_ident()
        begin_time = self._clock()
        with self._lock:
            self._calls[thread] = _Call(purpose, begin_time, begin_time + deadline_seconds)
        try:
            return call(self._opened())
        except (CreationFailed, EngineUnavailable):
            raise
        except Exception as error:
            _log.exception("engine %s: unexpected error%s", self.name, purpose)
            raise EngineUnavailable(f"unexpected {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                del self._calls[thread]

    def _keep_observing(self) -> None:
        while True:
            failure = self._observation_failure
            self._observation_wanted.wait(None if failure is None else RETRY_SECONDS)
            self._observation_wanted.clear()
            self._observe()
            if failure is not None and self._observation_failure is None:
                self._answers_again.set()

    def _keep_listening(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                for machine in self._opened().events():
                    pause_seconds = FIRST_PAUSE_SECONDS
                    self._post(Changed(self.name, machine))
                reason = "they broke off"
            except EngineUnavailable as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001  a bug in a driver must not end the thread
                _log.exception("engine %s: unexpected error while listening for events", self.name)
                reason = f"unexpected {type(error).__name__}: {error}"
            self._post(Unobserved(self.name, self._clock()))
            self._answers_again.wait(pause_seconds)
            self._answers_again.clear()
            _log.info("engine %s: listening for events again: %s", self.name, reason)
            pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            self._post(Changed(self.name, ""))


class KeyedSerialExecutor:
    """Runs tasks of one key in order, each key in a daemon thread of its own as long as it has tasks.

    Tasks may not raise; name is the threads'.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._waiting: dict[str, collections.deque[Callable[[], None]]] = {}
        """By key that has a thread: tasks that have not begun."""

    def submit(self, key: str, task: Callable[[], None]) -> None:
        """Run the task when all earlier ones of its key are done. Doesn't block."""
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(task)
                return
            self._waiting[key] = collections.deque([task])
        threading.Thread(target=self._run, args=(key,), name=self._name, daemon=True).start()

    def _run(self, key: str) -> None:
        while True:
            with self._lock:
                if not self._waiting[key]:
                    del self._waiting[key]
                    return
                task = self._waiting[key].popleft()
            task()


def engine_name(machine_model: str) -> str:
    """Return the engine that makes machines of this model.

    An unknown one, as a slot of another version may have, is an engine of its own that can't be reached.
    """
    return MODELS[machine_model].engine if machine_model in MODELS else machine_model


def driver_for(machine_model: str, settings: Settings, fetch: Fetch = no_images) -> Driver:
    """Return a new driver for the engine of this machine model; fetch is what it gets images with.

    Raises EngineUnavailable, also if the engine's library is not installed.
    """
    engine = engine_name(machine_model)
    if engine not in MODULES:
        raise EngineUnavailable(f"machine_model {machine_model} is not known to this version")
    try:
        module = importlib.import_module(MODULES[engine])
    except ImportError as error:
        raise EngineUnavailable(f"{error}; install {PACKAGES.get(engine, 'it')}") from error
    return cast(Driver, module.open_driver(settings, fetch))
