"""docs/vacuum-pipes.md has what the code has: keys, types, defaults, limits, patterns."""

from __future__ import annotations

import re
from pathlib import Path

from vac import decoding
from vac.config import pipe_document, pipe_types
from vac.config.machinetype import MODELS, Machinetype
from vac.config.options import Kind
from vac.config.pipe_document import ACCEPTED
from vac.config.pipe_types import LEAST_CACHE_SECONDS
from vac.config.reference import entries
from vac.config.settings import Settings
from vac.context.user_data import LIMIT_BYTES, ContextRequest, values

PAGE = (Path(__file__).parents[2] / "docs" / "vacuum-pipes.md").read_text()
JSON: dict[object, str] = {Kind.NUMBER: "number", Kind.INTEGER: "integer", Kind.BOOLEAN: "boolean"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below this heading, without its head."""
    part = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def test_keys_are_there_with_type_and_default() -> None:
    expected = {"suffix": ("text", "required")}
    for entry in entries():
        if entry.section == "machinetype NAME" and entry.pipe:
            kind = ACCEPTED[entry.name].kind if entry.name in ACCEPTED else Kind.TEXT
            expected[entry.name] = ("list" if kind.many else JSON.get(kind, "text"), entry.default)
    found = {cells[0].strip("`"): (cells[1], cells[2]) for cells in rows("The document")}
    assert found == expected
    (models,) = [cells[3] for cells in rows("The document") if cells[0] == "`machine_model`"]
    assert re.findall(r"[a-z0-9-]{4,}", models) == list(MODELS)


def test_limits_are_the_codes() -> None:
    text = " ".join(PAGE.split())
    week = pipe_document.LONGEST_CACHE_SECONDS
    for words in (
        f"at most {pipe_document.LARGEST_BYTES // 2**20} MiB, nested at most {decoding.MOST_DEPTH} levels",
        f"{pipe_document.CACHE_SECONDS} if it isn't there, from {LEAST_CACHE_SECONDS} to {week}",
        f"lists up to {pipe_document.MOST_TYPES} of these",
        f"the machinetype's name, {pipe_types.LONGEST_NAME} characters in all",
        f"of a pipe together {pipe_types.MOST_REPOSITORIES},",
        f"at most {pipe_document.MOST_CHARACTERS} characters, each list has at most {pipe_document.MOST_ENTRIES} ",
        f"may have {LIMIT_BYTES // 2**20} MiB",
    ):
        assert words in text


def test_patterns_are_those_that_are_replaced(tmp_path: Path) -> None:
    wanted = ContextRequest(Machinetype("t"), Settings(), "n", "u", tmp_path, 0, 1)
    free = {"user_data_option_XXX", "user_data_file_XXX", "user_data_option_x509_proxy"}
    found = rows("Patterns in user_data")
    told = [name for row in found for name in re.findall("##(.*?)##", row[0] + row[-1])]
    assert sorted(told) == sorted({*values(wanted), *free})
