"""JSON of others, and what files of our own put over dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.decoding import BadJson, filled, parse


@dataclass(frozen=True)
class Part:
    name: str = ""
    size: float = 1.0


@dataclass(frozen=True)
class Whole:
    name: str = ""
    number: int = 0
    fine: bool = True
    until: float | None = None
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    words: tuple[str, ...] = ()
    problems: Mapping[str, str | None] = field(default_factory=dict)


FULL: dict[str, object] = {
    "name": "n",
    "number": 5.0,
    "fine": False,
    "until": 1.5,
    "part": {"name": "p"},
    "parts": [{"name": "a"}, {"name": "b", "size": 2}],
    "words": ["x"],
    "problems": {"docker": None, "libvirt": "down"},
}
EXPECTED = Whole(
    "n", 5, False, 1.5, Part("p"), (Part("a"), Part("b", 2)), ("x",), {"docker": None, "libvirt": "down"}
)


def test_all_kinds_of_fields_are_read() -> None:
    assert filled(Whole(), FULL) == EXPECTED
    assert filled(Whole(), {**FULL, "unknown": 1}) == EXPECTED


def test_null_and_absent_mean_the_default() -> None:
    assert filled(Whole(), dict.fromkeys(FULL)) == Whole() == filled(Whole(), {})


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"number": 1.5},
        {"number": True},
        {"number": float("nan")},
        {"fine": 1},
        {"until": "x"},
        {"until": float("inf")},
        {"part": []},
        {"parts": {}},
        {"words": "x"},
        {"problems": []},
    ],
)
def test_a_value_of_another_type_is_left_out(change: dict[str, object]) -> None:
    (name,) = change
    assert filled(Whole(), {**FULL, **change}) == dataclasses.replace(
        EXPECTED, **{name: getattr(Whole(), name)}
    )
    assert filled(EXPECTED, change) == EXPECTED


def test_a_stand_in_has_what_is_wrong_or_missing() -> None:
    stand_in = dataclasses.replace(EXPECTED, name="other")
    assert filled(stand_in, {"name": "n", "number": "x"}) == EXPECTED
    assert filled(Part("p"), {}) == Part("p")


def test_null_is_a_value_where_the_annotation_says_so() -> None:
    stand_in = dataclasses.replace(EXPECTED, until=5.0, name="n")
    assert filled(stand_in, {"until": None, "name": None}).until is None
    assert filled(stand_in, {"until": None, "name": None}).name == "n"


def test_wrong_entries_are_left_out() -> None:
    found = filled(Whole(), {"parts": [{"name": "a"}, {"name": 1}, 5], "problems": {"a": 1, "b": None}})
    assert (found.parts, found.problems) == ((Part("a"), Part()), {"b": None})


@pytest.mark.parametrize("value", [None, [], "{}", 5])
def test_no_object_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not an object"):
        filled(Whole(), value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "$: is empty (line 1, column 1)"),
        (b"\xff", "$: is not UTF-8: byte 0"),
        (b"<html>", "$: is HTML or XML instead of JSON, perhaps an error or login page"),
        (b'{"name": "a", "name": "b"}', "$: 'name' is there twice in an object"),
        (b'{"number": NaN}', "$: 'NaN' is not a number of JSON's, or too long a one"),
        (b'{"until": 1e999}', "$: '1e999' is not a number of JSON's, or too long a one"),
        (
            b'{"x": [' + b"9" * 31 + b"]}",
            f"$: '{'9' * 31}' is not a number of JSON's, or too long a one",
        ),
        (b'{"x": "\\ud800"}', "$: holds half a surrogate pair, which is no text"),
        (b"[" * 40, "$: is nested more than 32 levels deep"),
    ],
)
def test_what_is_no_clean_json_is_refused(content: bytes, error: str) -> None:
    with pytest.raises(BadJson) as raised:
        parse(content, as_written=True)
    assert str(raised.value) == error


def test_many_brackets_side_by_side_are_no_nesting() -> None:
    assert len(parse(b"[" + b",".join([b"[]"] * 100) + b"]")) == 100
    assert parse(b'["' + b"[" * 100 + b'"]') == ["[" * 100]


def test_numbers_remember_how_they_were_written_if_asked() -> None:
    found = parse(b"[1.50]", as_written=True)[0]
    assert (found, found.text) == (1.5, "1.50")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*FULL, "other"]), inner),
)


@given(JSON)
def test_any_object_can_be_read(tree: object) -> None:
    assert isinstance(filled(Whole(), {**FULL, "problems": tree}), Whole)
    if isinstance(tree, dict):
        assert isinstance(filled(Whole(), tree), Whole)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
    try:
        parse(content)
    except BadJson as error:
        assert error.flaws
