"""status.json, and the small files for Nagios, site scripts and our other processes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steps import at_files
from tests.unit.state_dirs import new_state
from vac.decoding import filled
from vac.machines import status as statefiles
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.requests import Drain
from vac.machines.status import Creation, EventCount, Status, TypeFacts

FULL = Status(
    time=1.5,
    space="space.example.org",
    site="SITE",
    factory="a.example.org",
    version="4.0.0",
    factories=("a.example.org", "b.example.org"),
    vacquery_allow=("10.0.0.0/8",),
    slots=64,
    total_processors=60,
    mb_per_processor=2048,
    hs06_per_processor=12.5,
    machinetypes=(TypeFacts(name="t", fqan="/vo", target_share=0.5, max_processors=8), TypeFacts(name="u")),
    engines={"docker": "not there", "bubblewrap": None},
    problems=("bad",),
    warnings=("odd",),
    drain=Drain(1.0, None, "reboot"),
    shutdown_time=5.0,
    decision_time=6.0,
    next_time=7.0,
    guard="this factory is draining",
    guard_name="draining",
    passed_over={"t": "held"},
    held_here={"t": 8.0},
    held_in_space={"u": 9.0},
    silent={"b.example.org": None, "c.example.org": 3.0},
    unusable={"b.example.org": "other space"},
    dropped={"other space": 2},
    created=(Creation(1.0, "t", "a-00.example.org", 1, "share"),),
    failed={"u": Creation(2.0, "u", reason="no image")},
    pipes={"vo": "no such host", "other": None},
    slot_states={"a-00.example.org": "Zombie"},
    joules=1.5,
    disk_used={"uuid": 5},
    begin=9.5,
    event_counts=(EventCount("end", "t", "200", 3, 4.5),),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.prepare()
    statuses.write(state, FULL)
    assert statuses.read(state) == FULL
    assert all(
        getattr(FULL, field.name) != getattr(Status(), field.name) for field in dataclasses.fields(Status)
    )


def test_a_machinetype_is_found_by_its_name() -> None:
    assert FULL.machinetype("u") == TypeFacts(name="u")
    assert FULL.machinetype("x") is None


@pytest.mark.parametrize("content", ["", "[]", "5", "{", "nul"])
def test_what_is_no_status_is_none(tmp_path: Path, content: str) -> None:
    state = StateDir(tmp_path)
    assert statuses.read(state) is None
    state.status.write_text(content)
    assert statuses.read(state) is None


def test_unknown_fields_are_ignored_missing_have_defaults() -> None:
    assert filled(Status(), {"slots": 3, "new": {"a": 1}}) == Status(slots=3)


@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Status)]), json_values))
def test_wrong_types_never_raise(changes: dict[str, Any]) -> None:
    content = {**dataclasses.asdict(FULL), **changes}
    found = filled(Status(), content)
    assert filled(Status(), json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_small_files_have_the_classics_content_for_everybody(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    umask = os.umask(0o077)
    try:
        statefiles.write_counts(state, 5, 8, 5, 8, 62.5)
        statefiles.write_text(state, state.version, "VERSION=4.0.0\n")
        statefiles.touch_heartbeat(state, "factory", 1000.0)
        statefiles.touch_heartbeat(state, "factory", 2000.0)
        statefiles.write_error(state, ("creation", "\n first\nsecond"))
        statefiles.write(state, Status(guard="full"))
    finally:
        os.umask(umask)
    assert state.counts.read_text() == "5 8 5 8 62.50\n"
    assert state.factory_error.read_text() == "first\ncreation\n"
    assert state.version.read_text() == "VERSION=4.0.0\n"
    assert state.heartbeat("factory").stat().st_mtime == 2000.0
    assert json.loads(state.status.read_text())["guard"] == "full"
    for path in (state.counts, state.version, state.heartbeat("factory"), state.factory_error, state.status):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_keeps_no_process_from_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def fail(step: str, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    at_files(monkeypatch.setattr, fail)
    statuses.prepare_role(StateDir(tmp_path), "page", None)
    assert "files of vacd-page can't be made" in caplog.text
