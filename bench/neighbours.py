"""A machine that troubles its neighbours by all means, beside seven that work: what it costs them."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.conftest import require_root, require_tool
from tests.engines.process_site import MIB, group_makers, open_site
from tests.waiting import wait_for
from vac.drivers.base import EngineState

SOURCE = Path(__file__).with_name("storm.c")
HONEST = 7
STORM = 16
"""Processes that do harm."""
PAIRS = 3
SETTLE_SECONDS, MEASURE_SECONDS = 0.5, 3.0
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


def run() -> None:
    """Print the share of their throughput that seven machines keep. Rage and quiet alternate: all else is in both."""
    print(
        "neighbours: share of their throughput that seven honest machines keep (aim: over 95 %)", flush=True
    )
    require_root()
    with (
        tempfile.TemporaryDirectory() as directory,
        open_site("v1" if "v1" in group_makers() else "v2") as site,
    ):
        program = Path(directory, "storm")
        compiler = [require_tool("gcc"), "-O2", "-Wall", "-static", f"-DCHILDREN={STORM}"]
        subprocess.run([*compiler, "-o", program, SOURCE], check=True)
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
                f"neighbours: {rates[True]:.0f} units/s beside the raging one, {rates[False]:.0f} beside a quiet one"
            )
        print(f"neighbours: median of {PAIRS}: {100 * statistics.median(ratios):.1f} %")
        for count in counts:
            count.with_name("count.end").touch()
        honest = specs[:HONEST]
        wait_for(lambda: {site.state(spec) for spec in honest} == {EngineState.ENDED}, "all have finished")
