"""A real factory with two processors and machines of five seconds keeps its shares, also when it is killed repeatedly.

What a killed factory would forget is its ledger. The judge reads when machines began and ended from their directories.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engines.factory_fixture import FactorySite, Kind, factory_site

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

WORK = "sleep 5; echo '200 all done' > /tmp/joboutputs/shutdown_message"
NO_WORK = "sleep 0.5; echo '300 nothing to do' > /tmp/joboutputs/shutdown_message"


def test_two_processors_are_shared_three_to_one_though_killed() -> None:
    """Also though a third type never has work."""
    assert share_of_three(150, kill_seconds=30, third=2) == pytest.approx(75, abs=6)


@pytest.mark.slow
def test_ten_minutes_of_three_factories_are_shared_three_to_one() -> None:
    """One has a third type that never has work, one is killed each minute besides; they run side by side."""
    variants: list[tuple[float | None, float]] = [(None, 0), (None, 2), (60, 2)]
    with ThreadPoolExecutor() as pool:
        shares = list(pool.map(lambda variant: share_of_three(600, *variant), variants))
    assert shares == pytest.approx([75, 75, 75], abs=3)


def share_of_three(duration: float, kill_seconds: float | None, third: float) -> float:
    """Return what the type with three quarters of the shares had of all processor time, per cent."""
    options = {"fizzle_seconds": 2, "backoff_seconds": 10}
    kinds = {
        "three": Kind(WORK, {**options, "target_share": 3}),
        "one": Kind(WORK, {**options, "target_share": 1}),
        "nowork": Kind(NO_WORK, {**options, "target_share": third}),
    }
    with factory_site(kinds, processors=2) as site:
        site.wait_for(lambda: site.occupied() == 2, "both processors are in use")
        begin = time.time()
        while (left := begin + duration - time.time()) > 0:
            time.sleep(min(left, kill_seconds or left))
            if kill_seconds is not None:
                site.stop(signal.SIGKILL)
                site.start()
        had = {name: processor_seconds(site, name, begin, begin + duration) for name in ("three", "one")}
    total = sum(had.values())
    share = 100 * had["three"] / total
    print(
        f"3:1 after {duration} s, killed each {kill_seconds} s: {share:.1f} % of {total / duration:.2f} processors"
    )
    return share


def processor_seconds(site: FactorySite, machinetype: str, begin: float, end: float) -> float:
    """Return how long machines of this type ran between these moments."""
    return sum(
        max(0.0, min(life.finished or end, end) - max(life.started, begin))
        for life in site.lives(machinetype)
        if life.started is not None
    )
