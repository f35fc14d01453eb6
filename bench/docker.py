"""Cost of the Docker driver: observing 1, 64 and 256 containers, how fast they are made and removed, and how fast
a factory fills its slots with them.

It runs on a dockerd of its own, with the fixture of the engine tests.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from bench.factory import fill
from tests.engines.docker_fixture import IMAGE, PrivateDocker
from tests.engines.docker_machines import Machines
from vac.drivers.base import MachineSpec
from vac.drivers.docker.docker_driver import DockerDriver

SIZES = (1, 64, 256)
LONGEST_SECONDS = 120.0
"""A size that would take longer to reach than this, at the rate so far, is left out."""
ROUNDS = 20
SLEEP = "#!/bin/sh\nexec sleep 3600\n"


def run() -> None:
    """Print the figures, in seconds unless they say otherwise."""
    print("docker: seconds (aim: observing 64 under 0.1)", flush=True)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        machines = stack.enter_context(contextlib.closing(Machines(engine.url, Path(directory))))
        specs: list[MachineSpec] = []
        rate = 0.0
        for size in SIZES:
            if rate and (size - len(specs)) / rate > LONGEST_SECONDS:
                print(f"docker: {size} containers left out: creating them would take too long here")
                continue
            rate = _create(machines, specs, size)
            _observe(machines, size)
        started = time.perf_counter()
        for spec in specs:
            machines.driver.destroy(spec.name, spec.uuid)
        seconds = time.perf_counter() - started
        print(
            f"docker: {len(specs)} destroyed in {seconds:.1f} s, {len(specs) / seconds:.1f} a second",
            flush=True,
        )
        fill("docker", {"root_image": f"docker://{IMAGE}"}, docker_host=engine.url)


def _create(machines: Machines, specs: list[MachineSpec], size: int) -> float:
    """Create up to so many machines; how many a second."""
    started = time.perf_counter()
    before = len(specs)
    while len(specs) < size:
        spec = machines.spec(SLEEP)
        machines.create(spec)
        specs.append(spec)
    seconds = time.perf_counter() - started
    rate = (size - before) / seconds
    print(f"docker: {size - before} created in {seconds:.1f} s, {rate:.1f} a second", flush=True)
    return rate


def _observe(machines: Machines, size: int) -> None:
    """An observation is a listing and everybody's usage, as the factory asks for them each cycle."""
    rounds = [_seconds_of_observation(machines.driver, size) for _ in range(ROUNDS)]
    with contextlib.closing(machines.successor()) as successor:
        first_seconds = _seconds_of_observation(successor, size)
    print(
        f"docker: observing {size}: median {statistics.median(rounds):.4f}, longest {max(rounds):.4f}, "
        f"first after a restart {first_seconds:.4f}",
        flush=True,
    )


def _seconds_of_observation(driver: DockerDriver, size: int) -> float:
    started = time.perf_counter()
    listed = driver.list()
    seconds = time.perf_counter() - started
    assert len(listed) == size
    return seconds


if __name__ == "__main__":
    run()
