"""Content and format of the log."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vac.text
from vac import logs

FORGED = "\n2026-01-31T12:00:00+0000 vacd-factory[1] INFO all is well"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, with ümlauts – and \\ as it is", "plain text, with ümlauts – and \\ as it is"),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("name\udcff", "name\\udcff"),
        ("nul\0", "nul\\x00"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, escaped: str) -> None:
    assert vac.text.escaped(text) == escaped


@given(st.text(st.characters()))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    escaped = vac.text.escaped(text)
    assert escaped.isprintable()
    assert len(escaped.splitlines()) <= 1


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("vac.x", level, __file__, 1, "%s", (text,), None)


def test_a_line_has_time_with_offset_process_and_level() -> None:
    line = logs.LineFormatter("vacd-factory", journal=False).format(record("7 slots", logging.WARNING))
    beginning = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{{4}} vacd-factory\[{os.getpid()}\] WARNING "
    assert re.fullmatch(beginning + "7 slots", line)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_the_journal_gets_priorities_and_no_times(level: int, priority: int) -> None:
    line = logs.LineFormatter("vacd", journal=True).format(record("text", level))
    assert line == f"<{priority}>vacd: text"


@pytest.mark.parametrize("journal", [False, True])
def test_an_exception_with_hostile_text_forges_no_line(journal: bool) -> None:
    failed = record("it failed" + FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        failed.exc_info = sys.exc_info()
    lines = logs.LineFormatter("vacd", journal=journal).format(failed).split("\n")
    beginning = lines[0].split("it failed")[0]
    assert all(line.startswith(beginning + "    ") for line in lines[1:])
    assert "all is well" in lines[0]
    assert any("test_logs.py" in line for line in lines)


def test_only_the_journals_own_stream_counts_as_journal(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream, (tmp_path / "other").open("w") as other:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert logs.is_journal(stream.fileno(), environ)
        assert not logs.is_journal(other.fileno(), environ)
        assert not logs.is_journal(stream.fileno(), {})


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def take(self) -> list[str]:
        texts, self.texts = self.texts, []
        return texts


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def on_change(heard: Heard) -> Iterator[logs.OnChange]:
    log = logging.getLogger(__name__)
    log.setLevel(logging.INFO)
    log.addHandler(heard)
    yield logs.OnChange(log)
    log.removeHandler(heard)


def test_a_state_is_logged_when_it_begins_changes_and_ends(on_change: logs.OnChange, heard: Heard) -> None:
    for text in ["disk is full", "disk is full", "disk is gone", "disk is full"]:
        on_change.say("disk", text)
    on_change.clear("disk")
    on_change.clear("disk")
    assert heard.take() == ["disk is full", "disk is gone", "disk is full", "no longer: disk is full"]
    on_change.say("disk", "disk is full")
    assert heard.take() == ["disk is full"]


def test_keys_are_independent(on_change: logs.OnChange, heard: Heard) -> None:
    on_change.say("a", "same")
    on_change.say("b", "same")
    on_change.clear("a")
    on_change.say("b", "same")
    assert heard.take() == ["same", "same", "no longer: same"]


def test_only_ends_what_is_not_said_again(on_change: logs.OnChange, heard: Heard) -> None:
    on_change.only({"a": "load too high", "b": "draining"})
    on_change.only({"b": "draining", "c": "no slot"})
    assert heard.take() == ["load too high", "draining", "no longer: load too high", "no slot"]
    on_change.only({})
    assert heard.take() == ["no longer: draining", "no longer: no slot"]


def test_percent_signs_in_a_state_are_text(on_change: logs.OnChange, heard: Heard) -> None:
    on_change.say("x", "100%s of %d")
    assert heard.take() == ["100%s of %d"]
