"""`vac drain --reboot`, in a space whose factories are state directories."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.state_dirs import NAME, new_state, running_machine
from vac.cli import factory_commands
from vac.cli.main import main
from vac.clock import Clock
from vac.host import facts
from vac.machines import requests
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Status
from vac.vacquery.messages import FactoryStatus
from vac.vacquery.poll import Poll, PollResult

THIS = "node1.example.org"


class Space:
    """Other factories: None is one that doesn't answer, a text why it creates nothing."""

    def __init__(self, **others: str | None) -> None:
        self.others: dict[str, str | None] = others
        self.asked = 0

    def run(self, own: Status | None = None) -> PollResult:
        """Stand in for Poll.run(); own: what this factory has reported."""
        self.asked += 1
        said = {**self.others, **({} if own is None else {THIS: own.guard or ""})}
        answers: dict[str, Any] = {
            name: [
                SimpleNamespace(
                    status=FactoryStatus(
                        space="vac01.example.org", factory=name, site="S", creation_blocked=text
                    )
                )
            ]
            for name, text in said.items()
            if text is not None
        }
        missing = tuple(name for name in self.others if name not in answers)
        return PollResult(answers, frozenset(answers), missing, frozenset(), {}, 0.1)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A host whose factory reports at once what it is told, and that counts its reboots instead."""
    state = new_state(tmp_path)
    (tmp_path / "vac.conf").write_text(
        f"[settings]\nvac_space = vac01.example.org\nfactory_name = {THIS}\nfactories = {THIS} f2 f3\n"
        f"state_dir = {state.root}\n"
    )
    host = SimpleNamespace(state=state, space=Space(), reboots=[], path=tmp_path / "vac.conf")
    host.woken = lambda: report(state)
    monkeypatch.setattr(requests, "running", lambda state: 1)
    monkeypatch.setattr(requests, "wake", lambda state: host.woken())
    monkeypatch.setattr(Poll, "run", lambda poll: host.space.run(statuses.read(state)))
    monkeypatch.setattr(
        "subprocess.run",
        lambda command, check: host.reboots.append(command) or SimpleNamespace(returncode=0),
    )
    host.meanwhile = lambda: None
    monkeypatch.setattr("time.sleep", lambda seconds: host.meanwhile())
    return host


def report(state: StateDir) -> bool:
    """Write what the factory reports once it is woken."""
    order = requests.draining(state, time.time())
    guard = f"this factory is draining: {order.reason}" if order else None
    statuses.write(state, Status(time=time.time(), drain=order, guard=guard, guard_name=guard and "draining"))
    return True


def drain(host: SimpleNamespace, *words: str) -> int:
    return main(["--config", str(host.path), "drain", *words])


def test_an_empty_factory_is_rebooted_and_then_creates_again(
    host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drain(host, "--reboot", "--reason", "new kernel") == 0
    assert host.reboots == [factory_commands.REBOOT]
    order = requests.draining(host.state, time.time())
    assert order is not None and order.reason == "to be rebooted: new kernel"
    monkeypatch.setattr(Clock, "__init__", lambda clock: setattr(clock, "boot_id", "the next one"))
    assert requests.draining(host.state, time.time()) is None


def test_machines_are_waited_for(host: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    machine = running_machine(host.state)
    host.meanwhile = (machine.directory / "finished").touch
    assert drain(host, "--reboot") == 0
    assert f"1 left: {NAME.partition('.')[0]}" in capsys.readouterr().out
    assert len(host.reboots) == 1


@pytest.mark.parametrize("change", [requests.undrain, lambda state: requests.drain(state, requests.Drain())])
def test_another_order_meanwhile_keeps_it_from_rebooting(
    host: SimpleNamespace, change: Callable[[StateDir], object]
) -> None:
    running_machine(host.state)
    host.meanwhile = lambda: change(host.state)
    assert drain(host, "--reboot") == 1
    assert host.reboots == []


@pytest.mark.parametrize("why", [None, "this factory is draining: to be rebooted: disk"])
def test_a_factory_waits_while_another_one_is_away(
    host: SimpleNamespace, why: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    host.space = Space(f2=why)

    def meanwhile() -> None:
        assert requests.draining(host.state, time.time()) is None, "it creates machines until its turn comes"
        if host.space.asked > 3:
            host.space = Space(f2="this factory is draining: new disk", f3="overload")

    host.meanwhile = meanwhile
    assert drain(host, "--reboot") == 0
    assert len(host.reboots) == 1
    waits = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waits")]
    words = "f2 doesn't answer" if why is None else "f2 is to be rebooted"
    assert waits == [f"waits, since at most 1 may be away: {words}"]


def test_more_may_be_away_if_it_is_said(host: SimpleNamespace) -> None:
    host.space = Space(f2=None)
    assert drain(host, "--reboot", "--at-most", "2") == 0
    assert len(host.reboots) == 1


def test_a_factory_that_stands_back_has_its_earlier_order_again(host: SimpleNamespace) -> None:
    before = requests.Drain(1.0, None, "new disk")
    requests.drain(host.state, before)
    found: list[object] = []

    def woken() -> bool:
        if host.space.asked == 1:
            host.space.others = {"f2": f"this factory is draining: {factory_commands.REASON}"}
        return report(host.state)

    def meanwhile() -> None:
        found.append(requests.draining(host.state, time.time()))
        host.space.others = {}

    host.woken, host.meanwhile = woken, meanwhile
    assert drain(host, "--reboot") == 0
    assert found == [before]


def test_a_factory_that_does_not_react_is_not_rebooted(
    host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory_commands, "_DRAIN_REPORTED_SECONDS", 0.0)
    assert drain(host, "--reboot") == 1
    monkeypatch.setattr(requests, "running", lambda state: None)
    assert drain(host, "--reboot") == 1
    assert host.reboots == []
    assert requests.draining(host.state, time.time()) is None


@pytest.mark.parametrize("words", [["--until", "+2h"], ["--at-most", "0"], ["--at-most", "few"]])
def test_wrong_combinations_are_refused(host: SimpleNamespace, words: list[str]) -> None:
    try:
        code: object = drain(host, "--reboot", *words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert host.reboots == []


@pytest.mark.parametrize("at_most", [1, 2])
def test_of_factories_that_ask_at_once_no_more_are_away(
    at_most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {f"f{number}": new_state(tmp_path / str(number)) for number in range(5)}
    monkeypatch.setattr(factory_commands, "wake", report)
    monkeypatch.setattr(factory_commands, "_PAUSE_SECONDS", (0.0, 0.02))
    away, most, passed, lock = 0, 0, 0, threading.Lock()

    def one(name: str) -> None:
        nonlocal away, most, passed

        class Others(Space):
            def run(self, own: Status | None = None) -> PollResult:
                said = {other: statuses.read(state) for other, state in states.items()}
                self.others = {other: (status and status.guard) or "" for other, status in said.items()}
                return super().run()

        order = requests.Drain(time.time(), None, factory_commands.REASON, Clock().boot_id)
        poll: Any = Others()
        assert factory_commands._take_turn(states[name], name, order, poll, at_most)
        with lock:
            away += 1
            most = max(most, away)
        time.sleep(0.01)
        with lock:
            away -= 1
            passed += 1
        requests.undrain(states[name])
        report(states[name])

    threads = [threading.Thread(target=one, args=[name]) for name in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == len(states)
    assert 1 <= most <= at_most


def test_doctor_tells_of_a_reboot_that_is_required(
    host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(facts, "REBOOT_REQUIRED", tmp_path / "reboot-required")
    for wanted in (False, True):
        if wanted:
            facts.REBOOT_REQUIRED.touch()
        main(["--config", str(host.path), "doctor"])
        assert ("packages want a reboot: vac drain --reboot" in capsys.readouterr().out) == wanted
