"""What libvirt's figures mean, and that those of a domain that is gone are not lost."""

from __future__ import annotations

import pytest

from vac.drivers.base import EngineState, Observed, Usage
from vac.drivers.libvirt.listing import Samples, machine_state, may_be_ours, starting_up, usage_of

RECORDED = {
    "state.state": 1,
    "state.reason": 1,
    "balloon.current": 98304,
    "balloon.maximum": 98304,
    "balloon.rss": 198120,
    "net.count": 2,
    "net.0.name": "vnet1",
    "net.0.rx.bytes": 180,
    "net.0.tx.bytes": 7,
    "net.1.name": "vnet2",
    "net.1.rx.bytes": 20,
}


def test_usage_is_in_seconds_and_bytes() -> None:
    assert usage_of(RECORDED, 5_124_730_000) == Usage(5.12473, 198120 * 1024, 198120 * 1024, 200, 7)


def test_what_the_hypervisor_does_not_tell_stays_unknown() -> None:
    assert usage_of({"state.state": 1}, 0) == Usage(cpu_seconds=0.0)


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (1, 1, EngineState.RUNNING),
        (2, 0, EngineState.RUNNING),
        (3, 1, EngineState.PAUSED),
        (3, 5, EngineState.PAUSED),
        (3, 11, EngineState.RUNNING),
        (3, 8, EngineState.RUNNING),
        (4, 0, EngineState.RUNNING),
        (5, 2, EngineState.ENDED),
        (6, 1, EngineState.ENDED),
        (7, 0, EngineState.PAUSED),
    ],
)
def test_states(state: int, reason: int, expected: EngineState) -> None:
    figures = {"state.state": state, "state.reason": reason}
    assert machine_state(figures) is expected
    assert starting_up(figures) is ((state, reason) == (3, 11))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("factory1-00.example.com", True),
        ("factory1-117.example.com", True),
        ("factory1-0.example.com", False),
        ("factory1-00xexample.com", False),
        ("factory11-00.example.com", False),
        ("factory1-00.example.com.org", False),
        ("x-factory1-00.example.com", False),
    ],
)
def test_names_of_this_factorys_slots(name: str, ours: bool) -> None:
    assert may_be_ours(name, "factory1.example.com") is ours


def seen(uuid: str, cpu_seconds: float, memory_bytes: int | None = None) -> Observed:
    usage = Usage(cpu_seconds, memory_bytes, memory_bytes)
    return Observed(f"name-{uuid}", uuid, EngineState.RUNNING, usage)


def test_a_machine_that_is_gone_has_ended_with_its_last_figures_until_it_is_forgotten() -> None:
    samples = Samples()
    samples.take([seen("a", 1.0, 500), seen("b", 1.0)])
    samples.take([seen("a", 2.0, 300), seen("b", 2.0)])
    samples.take([seen("b", 3.0)])
    listed = {machine.uuid: machine for machine in samples.all()}
    assert listed["a"].state is EngineState.ENDED
    assert listed["a"].usage == Usage(2.0, 300, 500)
    assert listed["b"].state is EngineState.RUNNING
    assert samples.wait_for_end("a", 0.0)
    assert not samples.wait_for_end("b", 0.0)
    samples.forget("a")
    assert [machine.uuid for machine in samples.all()] == ["b"]


def test_figures_of_a_dying_process_do_not_go_back() -> None:
    samples = Samples()
    samples.take([seen("a", 7.0, 500)])
    samples.take([seen("a", 0.0)])
    assert samples.all()[0].usage == Usage(7.0, None, 500)
