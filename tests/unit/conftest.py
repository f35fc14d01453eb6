"""Unit tests start no processes: what needs one belongs into tests/engines, or says so with a marker."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vac.machines import files

SPAWNING = frozenset(
    ["subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.spawn", "os.fork", "os.forkpty"]
)
forbidden = threading.Event()


def refuse_to_spawn(event: str, args: tuple[object, ...]) -> None:
    """Audit hook: it sees every way of starting a process, however the code under test imported it."""
    if forbidden.is_set() and event in SPAWNING:
        pytest.fail(f"{event} {args!r}: only tests marked allow_subprocess may start processes")


sys.addaudithook(refuse_to_spawn)


def remove(path: Path) -> None:
    """In place of files.remove_tree, which has `rm` do it."""
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_subprocess(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forbids processes for the length of a test that isn't marked allow_subprocess."""
    if request.node.get_closest_marker("allow_subprocess") is None:
        monkeypatch.setattr(files, "remove_tree", remove)
        forbidden.set()
    yield
    forbidden.clear()
