"""The rules for running machines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.scheduling.watching import Limits, Watched, judge

START = 1_000_000.0
LONG_AGO = 0.0
FINE = Watched(started_time=START, shutdown_time=START + 86400)
HEARTBEAT = Limits(fizzle_seconds=600, heartbeat_file="vm-heartbeat", heartbeat_seconds=300)
IDLE = Limits(fizzle_seconds=600, idle_cpu_percent=5.0, idle_seconds=3600)


@pytest.mark.parametrize(
    ("watched", "limits", "age", "message"),
    [
        (FINE, Limits(), 100, None),
        (FINE, Limits(), 86400, "100 Shutdown time reached"),
        (replace(FINE, paused=True), Limits(), 1, "700 Paused"),
        (FINE, HEARTBEAT, 599, None),
        (FINE, HEARTBEAT, 600, "700 Heartbeat file not created"),
        (FINE, replace(HEARTBEAT, fizzle_seconds=0), 700, None),
        (FINE, replace(HEARTBEAT, heartbeat_file=None), 700, None),
        (replace(FINE, heartbeat_file_time=START + 500), HEARTBEAT, 799, None),
        (replace(FINE, heartbeat_file_time=START + 500), HEARTBEAT, 800, "700 Heartbeat file not updated"),
        (replace(FINE, heartbeat_file_time=START + 5), replace(HEARTBEAT, heartbeat_seconds=0), 9000, None),
        (replace(FINE, disk_used_bytes=11), Limits(disk_bytes=10), 1, "700 Disk limit"),
        (replace(FINE, disk_used_bytes=10), Limits(disk_bytes=10), 1, None),
        (FINE, Limits(disk_bytes=10), 1, None),
        (FINE, IDLE, 4199, None),
        (FINE, IDLE, 4200, "700 Idle"),
        (replace(FINE, busy_time=START + 4000), IDLE, 7599, None),
        (replace(FINE, busy_time=START + 4000), IDLE, 7600, "700 Idle"),
    ],
)
def test_a_machine_that_breaks_a_rule_is_ended_with_the_rules_message(
    watched: Watched, limits: Limits, age: float, message: str | None
) -> None:
    assert judge(watched, limits, LONG_AGO, START + age).message == message


@pytest.mark.parametrize("limits", [HEARTBEAT, replace(IDLE, fizzle_seconds=600)])
def test_a_restart_of_the_factory_punishes_no_machine(limits: Limits) -> None:
    restarted = START + 80000
    assert judge(FINE, limits, restarted, restarted + 599).message is None
    assert judge(FINE, limits, restarted, restarted + 3600).message is not None


_TIMES = st.floats(0, 1e5)


@given(
    st.builds(
        Watched,
        started_time=_TIMES,
        shutdown_time=_TIMES,
        heartbeat_file_time=st.none() | _TIMES,
        busy_time=st.none() | _TIMES,
    ),
    st.builds(
        Limits,
        fizzle_seconds=st.integers(0, 1000),
        heartbeat_file=st.none() | st.just("heartbeat"),
        heartbeat_seconds=st.integers(0, 1000),
        idle_cpu_percent=st.none() | st.just(5.0),
    ),
    _TIMES,
    _TIMES,
)
def test_nothing_changes_before_the_time_that_is_told(
    watched: Watched, limits: Limits, factory_started: float, now: float
) -> None:
    verdict = judge(watched, limits, factory_started, now)
    if verdict.message is None:
        assert verdict.next_time is not None and verdict.next_time > now
        halfway = (now + verdict.next_time) / 2
        if halfway < verdict.next_time:
            assert judge(watched, limits, factory_started, halfway).message is None
        assert judge(watched, limits, factory_started, verdict.next_time).message is not None
