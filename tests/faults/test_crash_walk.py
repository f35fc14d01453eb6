"""The factory killed at every step of a machine's life and started again: nothing is lost, doubled, orphaned.

A first run of each life counts its steps: the gaps between any two effects of the table, each step of
vac.machines.files, and each engine call before and after it has its effect. Then the life is lived once for each step,
and the factory dies there.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_driver import FakeMachine, Script
from tests.simulated import World, one_type, simulate_host
from tests.steps import at_effects, at_files
from vac.accounting.records import day_name
from vac.config.machinetype import Machinetype
from vac.drivers.base import MachineSpec

FIZZLE_SECONDS = 100
LIFETIME_SECONDS = 190
STEP_SECONDS = 10.0
PATIENCE_SECONDS = 2000.0
UNSEEN_SECONDS = 60 + STEP_SECONDS
"""Longest that a machine lives between two heartbeats, at the steps in which time passes here."""
PAIRS = 25
"""The number of lives in which the factory is killed twice."""
NOT_YET = -1.0
"""The age of a machine that has not been made."""


class Killed(BaseException):
    """The factory dies here."""


class Killer:
    """Counts the steps of a factory, and kills it at one of them: from then on it can't do anything."""

    def __init__(self) -> None:
        self.counting = False
        self.count = 0
        self.at: int | None = None
        self.last_words = ""

    def step(self, *what: object) -> None:
        """The factory is about to do something, or has just done it."""
        if not self.counting:
            return
        if self.at is not None and self.count >= self.at:
            if self.count == self.at:
                self.last_words = " ".join(map(str, what))
            self.count += 1
            raise Killed(self.last_words)
        self.count += 1


@dataclass(frozen=True)
class Life:
    """Course of the machine whose life is walked. Beside it another one runs all the time."""

    script: Script
    message: str | None = "200 Success"
    recorded: bool = True
    """Did it run long enough for a record, if the factory sees it?"""
    failures: int = 0
    """Number of creations that fail before one succeeds."""
    max_wallclock_seconds: int = 86400
    asked: str | None = None
    """A request to the factory 150 s after its start."""
    down_seconds: float = 0.0
    """From the factory's death to its next start."""
    walked: tuple[float, float] = (NOT_YET, math.inf)
    """From which age of the machine to which other the factory is killed, in seconds."""


LIVES = {
    "ends by itself": Life(Script(LIFETIME_SECONDS, "200 Success")),
    "ends while the factory is dead": Life(Script(LIFETIME_SECONDS, "200 Success"), down_seconds=1000.0),
    "is destroyed on request": Life(
        Script(), "100 Destroyed by the administrator", asked="destroy", walked=(149.0, math.inf)
    ),
    "reaches its shutdown time": Life(
        Script(), "100 Shutdown time reached", max_wallclock_seconds=150, walked=(149.0, math.inf)
    ),
    "dies at once": Life(Script(30.0, None), None, recorded=False, walked=(25.0, math.inf)),
    "fails to be created": Life(Script(LIFETIME_SECONDS, "200 Success"), failures=1, walked=(NOT_YET, 0.0)),
    "vanishes from its engine": Life(
        Script(LIFETIME_SECONDS, "200 Success", vanishes=True), walked=(LIFETIME_SECONDS - 20.0, math.inf)
    ),
}


class Walk:
    """One life in one world, lived by as many factories as it takes."""

    def __init__(self, root: Path, life: Life, killer: Killer) -> None:
        self.life = life
        self.killer = killer
        self.failures_left = life.failures
        self.asked = False
        self.subject: FakeMachine | None = None
        """As it is, or was when its engine let go of it."""
        self.seen_alive: float | None = None
        """The subject's heartbeat when the factory died last, if it has one."""
        bystander = one_type("bystander")
        self.world = World(root, bystander)
        self.world.scripts = self._script
        self.world.start()
        self.world.turn()
        assert len(self.world.made) == 1
        self.world.hook = self._engine_call
        self.world.types = (dataclasses.replace(bystander, target_share=0.0), self._subject_type())

    def _subject_type(self) -> Machinetype:
        """None is wanted any more once there has been one."""
        return one_type(
            "subject",
            target_share=float(self.subject is None),
            fizzle_seconds=FIZZLE_SECONDS,
            backoff_seconds=3600,
            max_wallclock_seconds=self.life.max_wallclock_seconds,
            accounting_fqan="/vo/Role=NULL",
        )

    def _engine_call(self, call: str, moment: str) -> None:
        for machine in self.world.engine().machines.values():
            if machine.spec.machinetype.name == "subject":
                self.subject = machine
        self.killer.step(call, moment)

    def _script(self, spec: MachineSpec) -> Script:
        (spec.directory / "mnt/tmp").mkdir()
        (spec.directory / "mnt/tmp/scratch").write_text("what nobody needs afterwards")
        if spec.machinetype.name == "bystander":
            return Script()
        if self.failures_left:
            self.failures_left -= 1
            return Script(failure="no image")
        return self.life.script

    def live(self) -> bool:
        """Let a factory work until all is over and quiet; False if it has been killed."""
        end = self.world.clock.now + PATIENCE_SECONDS
        self._want()
        try:
            self._counted(self.world.start)
            while not self.quiet():
                assert self.world.clock.now < end, f"not quiet after {PATIENCE_SECONDS} s"
                self._counted(self.world.turn)
                self._outside()
                self.world.clock.now += STEP_SECONDS
        except Killed:
            self._died()
            return False
        finally:
            self.killer.counting = False
        return True

    def _counted(self, act: object) -> None:
        assert callable(act)
        begin, end = self.life.walked
        self.killer.counting = begin <= self._lived() < end
        act()
        self.killer.counting = False

    def _outside(self) -> None:
        """Play the world's part: no more machines are wanted than the one; somebody asks something."""
        self._want()
        if self.life.asked and not self.asked and self.subject and self._lived() >= 150:
            self.asked = True
            slot = self.world.factory.state.slots.get(self.subject.spec.name)
            assert slot is not None
            assert slot.machine is not None
            self.world.ask(self.life.asked, slot.machine)
            self._counted(self.world.wake)

    def _want(self) -> None:
        self.world.types = (self.world.types[0], self._subject_type())

    def _lived(self) -> float:
        return self.world.clock.now - self.subject.created_time if self.subject else NOT_YET

    def _died(self) -> None:
        heartbeats = [path / "heartbeat" for path in self.world.directories() if "_subject_" in path.name]
        self.seen_alive = max((path.stat().st_mtime for path in heartbeats if path.exists()), default=None)
        self.world.clock.now += self.life.down_seconds

    def quiet(self) -> bool:
        """Return True if the machine has lived, and been forgotten by engine and factory."""
        if self.subject is None:
            return False
        uuids = {machine.spec.uuid for machine in self.world.engine_machines()}
        if (self.subject.spec.directory / "mnt").exists() or list(self.world.state.tmp.iterdir()):
            return False
        return self.subject.spec.uuid not in uuids and not self.world.asked() and self._said()

    def _said(self) -> bool:
        counts = self.world.state.counts
        return counts.exists() and counts.read_text().startswith("1 2 1 2 ")

    def check(self) -> None:
        """Check all that must be so in the end, whatever happened."""
        self.check_remains()
        self.check_accounting()

    def check_remains(self) -> None:
        """One machine has ended, the other one runs, and there is nothing else anywhere."""
        world, state = self.world, self.world.state
        assert sorted(spec.machinetype.name for spec in world.made) == ["bystander", "subject"]
        (bystander,) = world.engine_machines()
        assert bystander.spec.machinetype.name == "bystander"
        assert world.running() == [bystander.spec.uuid], "a machine was ended that should live"
        assert self.subject is not None
        subject = self.subject.spec
        assert world.directories() == sorted([subject.directory, bystander.spec.directory])
        for spec, ended in ((subject, True), (bystander.spec, False)):
            name = spec.directory.name.split("_")
            assert state.slot(spec.name).read_text() == f"{name[0]} {name[1]} docker\n"
            assert (spec.directory / "started").exists()
            assert (spec.directory / "finished").exists() is ended
            assert (spec.directory / "mnt").exists() is not ended, (
                "its disk is given back at its end, and then only"
            )
            assert (spec.directory / "jobfeatures/job_id").read_text() == spec.uuid
        assert len(list(state.slots.iterdir())) == 2
        assert [path.name for path in state.tmp.iterdir()] == []
        assert not world.asked()
        occupied = [slot.name for slot in world.factory.state.slots if slot.occupied]
        assert occupied == [bystander.spec.name]

    def check_accounting(self) -> None:
        """The end is written once, with the right numbers."""
        world, state, life = self.world, self.world.state, self.life
        assert self.subject is not None
        subject = self.subject.spec
        created = int(self.subject.created_time)
        ended = self.subject.end_time() or 0.0
        last_seen = (subject.directory / "heartbeat").stat().st_mtime
        least = ended - UNSEEN_SECONDS if not life.down_seconds else (self.seen_alive or created)
        assert least <= last_seen <= ended
        assert (state.finishes / "subject").read_text() == f"{created} subject {subject.name}\n"
        message = subject.directory / "shutdown_message"
        assert (message.read_text() if message.exists() else "") == (
            f"{life.message}\n" if life.message else ""
        )
        records = world.records()
        if not life.recorded or last_seen - created < FIZZLE_SECONDS:
            assert life.down_seconds or not life.recorded
            assert records == []
            return
        (record,) = records
        assert record["LocalJobId"] == subject.uuid
        assert record["FQAN"] == "/vo/Role=NULL"
        assert int(record["StartTime"]) == created
        assert int(record["EndTime"]) == int(last_seen)
        assert int(record["WallDuration"]) == int(last_seen) - created
        used = int(ended) - created
        least_used = used - UNSEEN_SECONDS if life.script.vanishes else used
        assert least_used <= int(record["CpuDuration"]) <= used
        (archived,) = state.apel_archive.glob("*/*")
        (sent,) = state.apel_outgoing.glob("*/*")
        assert archived.parent.name == sent.parent.name == day_name(last_seen)
        assert archived.name == sent.name
        assert archived.read_bytes() == sent.read_bytes()


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    killer = Killer()
    simulate_host(monkeypatch)
    at_files(monkeypatch.setattr, killer.step)
    at_effects(monkeypatch.setattr, killer.step)
    return killer


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where that is possible: there are thousands of files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        yield Path(place)


def walk(root: Path, life: Life, killer: Killer, *kills: int | None) -> int:
    """Live the life with a factory killed at each of these steps, and one more; the last one's steps."""
    places = []
    with tempfile.TemporaryDirectory(dir=root) as state_dir:
        lived = Walk(Path(state_dir), life, killer)
        try:
            for at in (*kills, None):
                killer.count, killer.at = 0, at
                if not lived.live():
                    places.append(f"step {at}: {killer.last_words}")
            lived.check()
        except AssertionError as error:
            raise AssertionError(f"killed at {' and at '.join(places) or 'no step'}: {error}") from error
    return killer.count


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_a_factory_killed_at_any_step_leaves_nothing_undone(life: Life, killer: Killer, root: Path) -> None:
    steps = walk(root, life, killer)
    assert steps > 20
    for at in range(steps):
        walk(root, life, killer, at)


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_a_factory_killed_twice_leaves_nothing_undone(life: Life, killer: Killer, root: Path) -> None:
    steps = walk(root, life, killer)
    rng = random.Random(4)
    for _ in range(PAIRS):
        walk(root, life, killer, rng.randrange(steps), rng.randrange(steps))
