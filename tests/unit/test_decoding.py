"""From JSON to dataclasses."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.decoding import BadJson, build, decode, json_field, parse


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def small(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 10:
        raise ValueError("is not from 0 to 9")
    return value


@dataclass(frozen=True)
class Part:
    name: str
    size: float = 1.0


@dataclass(frozen=True)
class Whole:
    name: str = ""
    number: int = 0
    fine: bool = True
    colour: Colour = Colour.RED
    until: float | None = None
    parts: tuple[Part, ...] = ()
    words: list[str] = field(default_factory=list)
    problems: Mapping[str, str | None] = field(default_factory=dict)
    anything: Any = None
    few: int = json_field(small, "few", "wenig", default=0)


FULL: dict[str, object] = {
    "name": "n",
    "number": 5.0,
    "fine": False,
    "colour": "blue",
    "until": 1.5,
    "parts": [{"name": "a"}, {"name": "b", "size": 2}],
    "words": ["x"],
    "problems": {"docker": None, "libvirt": "down"},
    "anything": {"a": [1]},
    "few": 3,
}
EXPECTED = Whole(
    "n", 5, False, Colour.BLUE, 1.5, (Part("a"), Part("b", 2)), ["x"], {"docker": None, "libvirt": "down"},
    {"a": [1]}, 3,
)  # fmt: skip


def test_all_kinds_of_fields_are_read() -> None:
    assert decode(Whole, json.dumps(FULL)) == EXPECTED
    assert decode(Whole, json.dumps({**FULL, "unknown": 1}).encode()) == EXPECTED


def test_null_and_absent_mean_the_default() -> None:
    assert decode(Whole, json.dumps(dict.fromkeys(FULL))) == Whole() == decode(Whole, "{}")


def test_the_first_name_with_a_value_is_read() -> None:
    assert decode(Whole, '{"few": null, "wenig": 4}').few == 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": 5}, "$.name: 5 is not a text"),
        ({"number": 1.5}, "$.number: 1.5 is not an integer"),
        ({"number": True}, "$.number: true is not an integer"),
        ({"fine": 1}, "$.fine: 1 is not true or false"),
        ({"colour": "green"}, "$.colour: 'green' is not one of red, blue"),
        ({"until": "x"}, "$.until: 'x' is not a number"),
        ({"parts": {}}, "$.parts: an object is not a list"),
        ({"parts": [{"name": "a"}, {}]}, "$.parts[1].name: is missing"),
        ({"parts": [5]}, "$.parts[0]: 5 is not an object"),
        ({"words": [None]}, "$.words[0]: null is not a text"),
        ({"problems": {"a b": 5}}, '$.problems["a b"]: 5 is not a text'),
        ({"few": 10}, "$.few: is not from 0 to 9"),
        ({"wenig": -1, "few": None}, "$.wenig: is not from 0 to 9"),
    ],
)
def test_a_wrong_field_is_named_or_has_its_default(change: dict[str, object], error: str) -> None:
    content = json.dumps({**FULL, **change})
    with pytest.raises(BadJson) as raised:
        decode(Whole, content)
    assert str(raised.value) == error
    name = error[2:].replace("wenig", "few").partition(":")[0].partition("[")[0].partition(".")[0]
    lenient = decode(Whole, content, lenient=True)
    kept = dataclasses.replace(lenient, **{name: getattr(EXPECTED, name)})
    assert kept == EXPECTED
    assert lenient != EXPECTED


def test_a_stand_in_has_what_is_wrong_or_missing() -> None:
    stand_in = dataclasses.replace(EXPECTED, name="other")
    assert decode(Whole, '{"name": "n", "number": "x"}', stand_in=stand_in) == EXPECTED
    assert decode(Part, "{}", stand_in=Part("p")) == Part("p")


def test_null_is_a_value_where_the_annotation_says_so() -> None:
    stand_in = dataclasses.replace(EXPECTED, until=5.0, name="n")
    assert decode(Whole, '{"until": null, "name": null}', stand_in=stand_in).until is None
    assert decode(Whole, '{"until": null, "name": null}', stand_in=stand_in).name == "n"


def test_wrong_entries_are_left_out_when_lenient() -> None:
    found = decode(Whole, '{"parts": [{"name": "a"}, {}, 5], "problems": {"a": 1, "b": null}}', lenient=True)
    assert (found.parts, found.problems) == ((Part("a"),), {"b": None})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "$: is empty (line 1, column 1)"),
        (b"[1]", "$: a list is not an object"),
        (b"\xff", "$: is not UTF-8: byte 0"),
        (b"<html>", "$: is HTML or XML instead of JSON, perhaps an error or login page"),
        (b'{"name": "a", "name": "b"}', "$.name: is there twice"),
        (b'{"number": NaN}', "$.number: 'NaN' is not a number of JSON's, or too long a one"),
        (b'{"until": 1e999}', "$.until: '1e999' is not a number of JSON's, or too long a one"),
        (
            b'{"x": [' + b"9" * 31 + b"]}",
            f"$.x[0]: '{'9' * 31}' is not a number of JSON's, or too long a one",
        ),
        (b'{"x": "\\ud800"}', "$.x: holds half a surrogate pair, which is no text"),
        (b"[" * 40, "$: is nested more than 32 levels deep"),
    ],
)
def test_what_is_no_clean_json_object_is_refused(content: bytes, error: str) -> None:
    for lenient in (False, True) if b"ud800" not in content else (False,):
        with pytest.raises(BadJson) as raised:
            decode(Whole, content, lenient=lenient)
        assert str(raised.value) == error


def test_bytes_that_are_no_utf8_survive_in_files_of_our_own() -> None:
    assert decode(Whole, json.dumps({"name": "caf\udce9"}), stand_in=Whole()).name == "caf\udce9"


def test_many_brackets_side_by_side_are_no_nesting() -> None:
    assert len(parse("[" + ",".join(["[]"] * 100) + "]")) == 100
    assert parse('["' + "[" * 100 + '"]') == ["[" * 100]


def test_numbers_remember_how_they_were_written_if_asked() -> None:
    found = parse("[1.50]", as_written=True)[0]
    assert (found, found.text) == (1.5, "1.50")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*FULL, "other"]), inner),
)


@given(JSON)
def test_any_value_is_decoded_or_refused(tree: object) -> None:
    try:
        build(Whole, tree)
    except BadJson as error:
        assert str(error).isprintable()
    if isinstance(tree, dict):
        build(Whole, tree, lenient=True)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
    try:
        parse(content)
    except BadJson as error:
        assert error.flaws
