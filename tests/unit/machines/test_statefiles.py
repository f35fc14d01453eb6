"""Files for Nagios, site scripts and our other processes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.unit.state_dirs import new_state
from vac.machines import status as statefiles
from vac.machines.status import ErrorKind, Status


def test_their_content_is_the_classics_and_everybody_can_read_them(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    umask = os.umask(0o077)
    try:
        statefiles.write_counts(state, 5, 8, 5, 8, 62.5)
        statefiles.write_version(state, "4.0.0")
        statefiles.touch_heartbeat(state, "factory", 1000.0)
        statefiles.touch_heartbeat(state, "factory", 2000.0)
        statefiles.set_error(state, ErrorKind.CREATION, "first\nsecond")
        statefiles.write(state, Status(guard="full"))
    finally:
        os.umask(umask)
    assert state.counts.read_text() == "5 8 5 8 62.50\n"
    assert state.version.read_text() == "VERSION=4.0.0\n"
    assert state.heartbeat("factory").stat().st_mtime == 2000.0
    assert json.loads(state.status.read_text())["guard"] == "full"
    for path in (state.counts, state.version, state.heartbeat("factory"), state.factory_error, state.status):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("kind", "cleared", "stays"),
    [
        (ErrorKind.CREATION, ErrorKind.CREATION, False),
        (ErrorKind.CREATION, ErrorKind.CONFIGURATION, True),
        (ErrorKind.CONFIGURATION, ErrorKind.CREATION, True),
        (ErrorKind.CONFIGURATION, ErrorKind.CONFIGURATION, False),
    ],
)
def test_an_error_goes_only_with_what_mends_it(
    tmp_path: Path, kind: ErrorKind, cleared: ErrorKind, stays: bool
) -> None:
    state = new_state(tmp_path)
    statefiles.set_error(state, kind, "\n it failed\nmore\n")
    assert state.factory_error.read_text().splitlines()[0] == "it failed"
    statefiles.clear_error(state, cleared)
    statefiles.clear_error(state, cleared)
    assert state.factory_error.exists() is stays


def test_an_error_that_a_classic_factory_left_goes_too(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    state.factory_error.write_text("old trouble")
    statefiles.clear_error(state, ErrorKind.CREATION)
    assert not state.factory_error.exists()
