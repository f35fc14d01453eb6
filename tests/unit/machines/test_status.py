"""status.json: written whole, read whatever an older or newer factory has put there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.decoding import build
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.requests import Drain
from vac.machines.status import Creation, Status, Tally, TypeFacts

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
    disk_used={"uuid": 5},
    begin=9.5,
    tallies=(Tally("end", "t", "200", 3, 4.5),),
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


def test_unknown_fields_are_ignored_and_missing_ones_have_defaults() -> None:
    assert build(Status, {"slots": 3, "new": {"a": 1}}, lenient=True) == Status(slots=3)


@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Status)]), json_values))
def test_wrong_types_never_raise(changes: dict[str, Any]) -> None:
    content = {**dataclasses.asdict(FULL), **changes}
    found = build(Status, content, lenient=True)
    assert build(Status, json.loads(json.dumps(dataclasses.asdict(found))), lenient=True) == found
