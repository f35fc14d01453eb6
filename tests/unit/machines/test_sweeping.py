"""What has been discarded is removed by somebody else than who discarded it, sooner or later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.state_dirs import new_state
from vac.machines import files
from vac.machines.files import TrashCollector
from vac.machines.layout import StateDir


def discarded(state: StateDir, name: str, depth: int = 1) -> None:
    path = state.machines / name
    path.joinpath(*"d" * depth).mkdir(parents=True)
    files.discard(path, tmp=state.tmp)
    assert not path.exists()


def at_once(work: Callable[[], None], name: str) -> None:
    work()


def test_all_that_was_discarded_goes_and_nothing_else(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    discarded(state, "a")
    discarded(state, "b")
    (state.tmp / "being-written").touch()
    TrashCollector(state.tmp, at_once).start()
    assert [path.name for path in state.tmp.iterdir()] == ["being-written"]


def test_what_cannot_be_removed_holds_up_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state(tmp_path)
    discarded(state, "mounted")
    (mounted,) = files.trash(state.tmp)
    discarded(state, "other")
    failures, remove_tree = 3, files.remove_tree

    def remove(path: Path) -> None:
        nonlocal failures
        if path == mounted and failures:
            failures -= 1
            raise OSError("something is mounted there")
        remove_tree(path)

    monkeypatch.setattr(files, "remove_tree", remove)
    collector = TrashCollector(state.tmp, at_once)
    for _ in range(3):
        collector.start()
        assert len(list(state.tmp.iterdir())) == 1, "it holds up nobody"
    assert caplog.text.count("can't be removed now") == 1
    collector.start()
    assert not list(state.tmp.iterdir())


def test_who_discards_never_waits_and_what_comes_meanwhile_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state(tmp_path)
    begun, gate, gone = threading.Event(), threading.Event(), threading.Event()
    remove_tree = files.remove_tree

    def slow(path: Path) -> None:
        begun.set()
        assert gate.wait(60)
        remove_tree(path)
        if not files.trash(state.tmp):
            gone.set()

    monkeypatch.setattr(files, "remove_tree", slow)
    collector = TrashCollector(state.tmp)
    discarded(state, "a")
    collector.start()
    assert begun.wait(60)
    discarded(state, "b")
    collector.start()
    gate.set()
    assert gone.wait(60)
