"""The driver of containers when its engine is killed, hangs, or comes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.driver_contract import usages
from tests.engines.docker_fixture import PrivateDocker, PrivateEngine
from tests.engines.docker_machines import Machines
from tests.engines.podman_fixture import PrivatePodman
from tests.waiting import wait_for
from vac.drivers.base import EngineState, EngineUnavailable

# The SDK leaves sockets that could not be connected to the garbage collector.
pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CALL_SECONDS = 5.0
"""Enough for an engine on a busy host that doesn't hang."""
SLEEP = "#!/bin/sh\nexec sleep 600\n"


@pytest.fixture(
    params=[partial(PrivateDocker, live_restore=True), PrivateDocker, PrivatePodman],
    ids=["live-restore", "plain", "podman"],
)
def engine(request: pytest.FixtureRequest) -> Iterator[PrivateEngine]:
    engine = request.param()
    yield engine
    engine.close()


def test_machines_are_found_again_after_an_outage(engine: PrivateEngine, tmp_path: Path) -> None:
    with contextlib.closing(Machines(engine.url, tmp_path)) as machines:
        spec = machines.spec(SLEEP)
        machines.create(spec)
        before = usages(machines.driver)[spec.uuid]
        with machines.listening() as news:
            assert news.get(timeout=300) == ""
            engine.kill()
            assert (news.get(timeout=300) or "").startswith("!")
            for call in (
                machines.driver.list,
                lambda: machines.driver.create(machines.spec(SLEEP)),
                lambda: machines.driver.stop(spec.name, spec.uuid),
                lambda: machines.driver.destroy(spec.name, spec.uuid),
            ):
                with pytest.raises(EngineUnavailable, match=r"is the engine (installed and )?running"):
                    call()
            engine.start()
            kept = EngineState.RUNNING if engine.live_restore else EngineState.ENDED
            assert machines.state(spec) is kept
            after = usages(machines.driver)[spec.uuid]
            assert (after.cpu_seconds or 0) >= (before.cpu_seconds or 0) > 0
            another = machines.spec(SLEEP)
            machines.create(another)
            assert machines.state(another) is EngineState.RUNNING
            assert usages(machines.successor()).keys() == {spec.uuid, another.uuid}


@pytest.mark.parametrize("kind", [PrivateDocker, PrivatePodman], ids=["docker", "podman"])
def test_an_engine_that_hangs_is_unavailable_until_it_goes_on(
    kind: type[PrivateEngine], tmp_path: Path
) -> None:
    with (
        contextlib.closing(kind()) as engine,
        contextlib.closing(Machines(engine.url, tmp_path, call_seconds=CALL_SECONDS)) as machines,
    ):
        spec = machines.spec(SLEEP)
        machines.create(spec)
        with engine.hanging():
            started = time.monotonic()
            with pytest.raises(EngineUnavailable, match=f"no answer for {CALL_SECONDS:g} s"):
                machines.driver.list()
            assert machines.prepared(spec) is None
            fresh = machines.successor()
            reason = fresh.prepare(spec.machinetype, spec.settings, spec.files)
            assert reason is not None and ("is being looked for" in reason or "no answer" in reason)
            assert time.monotonic() - started < 60, "the engine hangs for longer than anybody waits"

        def answers() -> bool:
            try:
                assert machines.state(spec) is EngineState.RUNNING
            except EngineUnavailable:  # this host may be busy
                return False
            return True

        wait_for(answers, "the engine answers again")


def test_an_engine_that_isnt_installed_is_unavailable(tmp_path: Path) -> None:
    with contextlib.closing(Machines(f"unix://{tmp_path}/none.sock", tmp_path)) as machines:
        for call in (machines.driver.list, lambda: list(machines.driver.events())):
            with pytest.raises(EngineUnavailable, match=r"none\.sock: no such socket"):
                call()
