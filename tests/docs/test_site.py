"""`make site`: every page and link of the documents is there as a web page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT
from vac.cli.main import COMMANDS
from vac.config.reference import entries

SITE = ROOT / "build" / "site"


@pytest.mark.engine
def test_make_site_makes_pages_whose_links_are_right() -> None:
    """Its tool runs with mkdocs' warnings as errors; what mkdocs doesn't look at is looked at here."""
    done = subprocess.run(["make", "site"], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text() for path in SITE.rglob("*.html")}
    assert len(pages) >= len(PAGES)
    broken = []
    for page, text in pages.items():
        for target in re.findall(r'(?:href|src)="([^"]*)"', text):
            name, _, anchor = target.partition("#")
            assert not target.startswith("//"), f"{page}: {target}"
            if re.match("[a-z]+:", target) or page.name == "404.html":
                continue
            path = Path(page.parent, name).resolve() if name else page
            if not path.exists() or (anchor and path in pages and f'id="{anchor}"' not in pages[path]):
                broken.append(f"{page.relative_to(SITE)}: {target}")
    assert broken == []
    decisions = (SITE / "docs" / "scheduling.html").read_text().partition('id="how-a-decision-is-made"')[2]
    assert decisions.partition("<h2")[0].count("<ol") == 1, "lists in a numbered list are shown in it"
    assert not re.search(r"\d\. <strong>", decisions), "each number is an item"
    options = (SITE / "reference" / "options.html").read_text()
    assert [entry.name for entry in entries() if entry.name not in options] == []
    commands = (SITE / "reference" / "commands.html").read_text()
    assert [name for name in COMMANDS if f"vac {name}" not in commands] == []
