"""What an ended machine holds of this host's disk is given back at its end, not with its directory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.simulated import World
from vac.drivers.base import EngineUnavailable
from vac.machines import files
from vac.machines.machine import Machine


def ends(world: World) -> Machine:
    """A machine with something on its disk and in its joboutputs, which has just ended."""
    machine = world.machine()
    (machine.directory / "mnt/tmp").mkdir()
    (machine.directory / "mnt/tmp/core").write_text("large")
    (machine.directory / "joboutputs/log").write_text("all well")
    world.engine().driver().stop(machine.name, machine.uuid)
    return machine


def test_scratch_goes_when_the_machine_has_ended_and_all_else_stays(world: World) -> None:
    world.fill()
    machine = ends(world)
    before = {path.name for path in machine.directory.iterdir()}
    world.turn()
    after = {path.name for path in machine.directory.iterdir()}
    assert before - after == {"mnt"}
    assert (machine.directory / "joboutputs/log").read_text() == "all well"
    assert (world.machine(1).directory / "mnt").is_dir(), "a machine that runs keeps it"
    assert not list(world.state.tmp.iterdir())


def test_scratch_stays_as_long_as_the_engine_has_not_let_go(world: World) -> None:
    world.fill()
    refusing = True

    def refuse(call: str, moment: str) -> None:
        if call == "destroy" and refusing:
            raise EngineUnavailable("device is busy")

    world.hook = refuse
    machine = ends(world)
    world.run(90)
    assert machine.finished
    assert (machine.directory / "mnt/tmp/core").exists()
    refusing = False
    world.run(90)
    assert not (machine.directory / "mnt").exists()


def test_scratch_that_something_is_mounted_on_is_told_of_once_and_goes_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    discard = files.discard

    def busy(path: Path, *, tmp: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(files, "discard", busy)
    world.types = ()
    world.run(65)
    machine = ends(world)
    world.run(200)
    assert caplog.text.count("scratch space can't be removed") == 1
    monkeypatch.setattr(files, "discard", discard)
    world.run(65)
    assert not (machine.directory / "mnt").exists()
