"""The documents' blocks, commands and links, as a reader finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "examples" / "README.md")
LANGUAGES = ("sh", "ini", "json", "yaml", "mermaid", "text")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A line of a block of commands, or words in the text that are a command."""

    page: str
    line: int
    text: str
    inline: bool


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("```"):
            if opened is not None:
                yield Block(_name(path), *opened, "\n".join(lines))
            opened, lines = (None if opened else (number, line[3:])), []
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{path}: a block isn't closed"


def prose(path: Path) -> list[str]:
    """Return the lines of a page, those of blocks empty."""
    inside, lines = False, []
    for line in path.read_text().splitlines():
        inside ^= line.startswith("```")
        lines.append("" if inside or line.startswith("```") else line)
    return lines


def is_file(block: Block) -> bool:
    """Return True if the block is the content of a script, not something to type."""
    return block.text.startswith("#!")


def commands(path: Path, programs: frozenset[str]) -> Iterator[Command]:
    """Yield what a reader may type: lines of blocks, and code in the text that begins with one of the programs."""
    for block in blocks(path):
        if block.language == "sh" and not is_file(block):
            for number, line in enumerate(block.text.splitlines(), block.line + 1):
                if text := re.sub(r"\s+# .*|^#.*", "", line).strip():
                    yield Command(block.page, number, text, inline=False)
    text = "\n".join(prose(path))
    for match in re.finditer(r"`([^`]+)`", text):
        words = " ".join(match[1].split()).replace("\\|", "|")
        if " " in words and words.split()[0] in programs:
            yield Command(_name(path), text.count("\n", 0, match.start()) + 1, words, inline=True)
