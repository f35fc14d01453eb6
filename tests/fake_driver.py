"""Simulated machines: a driver for tests that needs no engine and no processes.

FakeEngine stands for what outlives a factory, as dockerd or the kernel do: its machines are found by the
successor of a factory that died. Scripts say how each machine will fare.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

from vac.drivers.base import (
    CreationFailed,
    Driver,
    EngineState,
    EngineUnavailable,
    MachineSpec,
    Observed,
    Usage,
)
from vac.drivers.engine import Action, Engine


class InlineEngine(Engine):
    """An engine without threads: each request is carried out at once, in the caller's thread; no events."""

    def _start(self) -> None:
        """Start nothing."""

    def request_observation(self) -> None:
        self._observe()

    def _submit(self, action: Action, call: Callable[[Driver], None]) -> None:
        self._act(action, call)


CALLS = ("list", "create", "stop", "destroy", "events")


@dataclass(frozen=True)
class Script:
    """A machine's behaviour. The default runs until somebody ends it, using one processor in full."""

    lifetime_seconds: float | None = None
    shutdown_message: str | None = None
    """First line of joboutputs/shutdown_message, written when the lifetime is over."""
    failure: str | None = None
    """The machine can't be created, for this reason."""
    paused: bool = False
    vanishes: bool = False
    """At its end it isn't listed any more, as with engines that keep no remains."""
    processors_used: float = 1.0
    """CPU seconds per second."""
    memory_bytes: int | None = None
    busy_tasks: int | None = None


@dataclass(frozen=True)
class FakeMachine:
    """One simulated machine."""

    spec: MachineSpec
    script: Script
    created_time: float
    stopped_time: float | None = None
    """Time at which it was ended by force."""

    def end_time(self) -> float | None:
        """Return the time of its end; None: it doesn't end by itself."""
        lifetime = self.script.lifetime_seconds
        own = None if lifetime is None or self.script.paused else self.created_time + lifetime
        return min((time for time in (own, self.stopped_time) if time is not None), default=None)

    def observed(self, now: float) -> Observed:
        """Return its state in the engine's listing at this time."""
        end_time = self.end_time()
        ended = end_time is not None and end_time <= now
        running = EngineState.PAUSED if self.script.paused else EngineState.RUNNING
        seconds = (end_time if ended and end_time is not None else now) - self.created_time
        used = 0.0 if self.script.paused else seconds * self.script.processors_used
        memory = self.script.memory_bytes
        usage = Usage(used, 0 if ended and memory is not None else memory, memory)
        usage = dataclasses.replace(
            usage, busy_tasks=self.script.busy_tasks, ended_time=end_time if ended else None
        )
        return Observed(self.spec.name, self.spec.uuid, EngineState.ENDED if ended else running, usage)


class FakeEngine:
    """The simulated engine. Its attributes may be changed at any time; then call wake().

    clock gives Unix seconds, real or virtual. script chooses how a new machine fares. hook, if given, is
    called with a call's name and "before" or "after" and may raise, which leaves the call undone or done.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        script: Callable[[MachineSpec], Script] = lambda spec: Script(),
        hook: Callable[[str, str], None] = lambda call, moment: None,
    ) -> None:
        self.clock = clock
        self.script = script
        self.hook = hook
        self.unavailable: str | None = None
        """If set, the reason that every call fails with."""
        self.machines: dict[str, FakeMachine] = {}
        """By uuid, those whose remains have not been destroyed."""
        self.changed = threading.Condition()
        self.changes: list[str] = []
        """Names of machines that have changed, in order: what events() goes by."""
        self._ended: set[str] = set()
        self._gates: dict[str, threading.Event] = {}

    def driver(self) -> FakeDriver:
        """A driver of this engine, as a factory opens when it starts."""
        return FakeDriver(self)

    def hang(self, call: str) -> threading.Event:
        """Let each call of this name block; setting the event that is returned releases them."""
        if call not in CALLS:
            raise ValueError(f"{call!r}: no call of a driver; there are {', '.join(CALLS)}")
        self._gates[call] = threading.Event()
        return self._gates[call]

    def wake(self) -> None:
        """Let time's effects happen: machines whose lifetime is over end, and listeners hear of it."""
        with self.changed:
            self._end_due_machines()
            self.changed.notify_all()

    def enter(self, call: str) -> None:
        """Begin a driver's call: it may hang here, or fail."""
        if call in self._gates:
            self._gates[call].wait()
        if self.unavailable is not None:
            raise EngineUnavailable(self.unavailable)
        self.hook(call, "before")
        self.wake()

    def leave(self, call: str) -> None:
        """A driver's call has done its work."""
        self.hook(call, "after")

    def change(self, uuid: str, machine: FakeMachine | None) -> None:
        """Put this machine in the uuid's place, or remove it, and tell listeners."""
        with self.changed:
            before = self.machines.pop(uuid, None)
            if machine is not None:
                self.machines[uuid] = machine
            self.changes.extend(each.spec.name for each in (machine or before,) if each is not None)
            self.changed.notify_all()

    def seconds_to_next_end(self) -> float | None:
        """Until a machine's lifetime is over; None if that won't happen."""
        ends = (m.end_time() for uuid, m in self.machines.items() if uuid not in self._ended)
        return min((time - self.clock() for time in ends if time is not None), default=None)

    def _end_due_machines(self) -> None:
        now = self.clock()
        for uuid, machine in list(self.machines.items()):
            end_time = machine.end_time()
            if uuid in self._ended or end_time is None or end_time > now:
                continue
            self._ended.add(uuid)
            self.changes.append(machine.spec.name)
            by_itself = machine.stopped_time is None or machine.stopped_time > end_time
            outputs = machine.spec.directory / "joboutputs"
            if by_itself and machine.script.shutdown_message is not None and outputs.is_dir():
                (outputs / "shutdown_message").write_text(machine.script.shutdown_message + "\n")
            if machine.script.vanishes:
                del self.machines[uuid]


class FakeDriver(Driver):
    """Driver of a FakeEngine's machines."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._closed = False
        self._heard = len(engine.changes)

    def list(self) -> Sequence[Observed]:
        """See Driver."""
        self._engine.enter("list")
        now = self._engine.clock()
        machines = [machine.observed(now) for machine in list(self._engine.machines.values())]
        self._engine.leave("list")
        return machines

    def create(self, spec: MachineSpec) -> None:
        """See Driver."""
        self._engine.enter("create")
        script = self._engine.script(spec)
        if script.failure is not None:
            raise CreationFailed(script.failure)
        if any(machine.spec.name == spec.name for machine in list(self._engine.machines.values())):
            raise CreationFailed(f"there is a machine {spec.name} already")
        self._engine.change(spec.uuid, FakeMachine(spec, script, self._engine.clock()))
        self._engine.leave("create")

    def stop(self, name: str, uuid: str) -> None:
        """See Driver."""
        self._engine.enter("stop")
        machine = self._find(name, uuid)
        if machine is not None and machine.stopped_time is None:
            stopped = dataclasses.replace(machine, stopped_time=self._engine.clock())
            self._engine.change(uuid, stopped)
            self._engine.wake()
        self._engine.leave("stop")

    def destroy(self, name: str, uuid: str) -> None:
        """See Driver."""
        self._engine.enter("destroy")
        if self._find(name, uuid) is not None:
            self._engine.change(uuid, None)
        self._engine.leave("destroy")

    def events(self) -> Iterator[str]:
        """See Driver."""
        self._engine.enter("events")
        while not self._closed:
            with self._engine.changed:
                if self._heard == len(self._engine.changes):
                    seconds = self._engine.seconds_to_next_end()
                    self._engine.changed.wait(None if seconds is None else max(seconds, 0.0))
            self._engine.wake()
            if self._engine.unavailable is not None:
                raise EngineUnavailable(self._engine.unavailable)
            changes = self._engine.changes[self._heard :]
            self._heard += len(changes)
            yield from changes

    def close(self) -> None:
        """See Driver."""
        self._closed = True
        with self._engine.changed:
            self._engine.changed.notify_all()

    def _find(self, name: str, uuid: str) -> FakeMachine | None:
        machine = self._engine.machines.get(uuid)
        return machine if machine is not None and machine.spec.name == name else None
