"""A machine that troubles its neighbours by all means, beside seven that work: what it costs them."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import require_root, require_tool
from tests.engines.process_site import MIB, group_makers, open_site
from tests.waiting import wait_for
from vac.drivers.base import EngineState

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SOURCE = Path(__file__).with_name("storm.c")
HONEST = 7
STORM = 16
"""Processes that do harm."""
PAIRS = 3
SETTLE_SECONDS, MEASURE_SECONDS = 0.5, 3.0
LEAST_RATIO = 0.95
NODE_PROCESSORS = HONEST + 1
"""This host stands for a node with a processor for each machine."""
WORK = "$MACHINEFEATURES/storm work $JOBOUTPUTS/count && echo 200 done >$JOBOUTPUTS/shutdown_message\n"
RAGE = "exec $MACHINEFEATURES/storm rage $JOBOUTPUTS\n"


def done(counts: Sequence[Path]) -> int:
    """Units of work of all together until now."""
    return sum(int.from_bytes(count.read_bytes()[:8], "little") for count in counts)


def rate(counts: Sequence[Path]) -> float:
    """Units of work a second, now."""
    time.sleep(SETTLE_SECONDS)
    before, begun = done(counts), time.monotonic()
    time.sleep(MEASURE_SECONDS)
    return (done(counts) - before) / (time.monotonic() - begun)


def test_a_raging_machine_costs_seven_honest_ones_little(tmp_path: Path) -> None:
    """Rage and quiet alternate, so that whatever else this host does is in both."""
    require_root()
    program = tmp_path / "storm"
    compiler = [require_tool("gcc"), "-O2", "-Wall", "-static", f"-DCHILDREN={STORM}"]
    subprocess.run([*compiler, "-o", program, SOURCE], check=True)
    with open_site("v1" if "v1" in group_makers() else "v2") as site:
        settings = replace(
            site.settings, pids_per_processor=300, cpu_limit_factor=(os.cpu_count() or 1) / NODE_PROCESSORS
        )
        specs = []
        for number in range(HONEST + 1):
            spec = site.spec(number, WORK if number < HONEST else RAGE)
            specs.append(replace(spec, settings=settings, memory_bytes=256 * MIB))
            shutil.copy(program, spec.directory / "machinefeatures/storm")
            site.create(specs[-1])
        counts = [spec.directory / "joboutputs/count" for spec in specs[:HONEST]]
        wait_for(lambda: all(count.exists() for count in counts), "they work")
        go = specs[HONEST].directory / "joboutputs/go"
        ratios = []
        for number in range(PAIRS):
            rates = {}
            for raging in (True, False) if number % 2 else (False, True):
                go.touch() if raging else go.unlink(missing_ok=True)
                rates[raging] = rate(counts)
            ratios.append(rates[True] / rates[False])
            print(
                f"units/s beside the raging machine: {rates[True]:.0f}, beside a quiet one: {rates[False]:.0f}"
            )
        go.touch()
        for count in counts:
            count.with_name("count.end").touch()
        honest = specs[:HONEST]
        wait_for(lambda: {site.state(spec) for spec in honest} == {EngineState.ENDED}, "all have finished")
        assert [site.output(spec, "shutdown_message") for spec in honest] == ["200 done\n"] * HONEST
        assert statistics.median(ratios) > LEAST_RATIO
