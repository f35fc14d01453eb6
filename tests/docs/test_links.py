"""Links between the documents lead somewhere, and so do their anchors. Nothing is asked of the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, prose

LINKING = (*PAGES, ROOT / "CHANGELOG.md")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = (line.lstrip("#") for line in prose(path) if re.match("#+ ", line))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match("https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            if not re.match("https?:", target):
                waiting.append((page.parent / target).resolve())
    assert set(LINKING) - reached == set()


def test_files_that_the_developers_pages_name_exist() -> None:
    missing = []
    for name in ("architecture.md", "testing.md", "security.md", "reliability.md"):
        named = re.findall(r"`?\b((?:[\w-]+/)*\w+\.py)\b", "\n".join(prose(ROOT / "docs" / name)))
        below = [ROOT, ROOT / "vac", ROOT / "tests", ROOT / "tests" / "unit", *(ROOT / "vac").glob("*")]
        known = {path.name for path in ROOT.glob("tests/**/*.py")} | {"setup.py"}
        for each in named:
            if each not in known and not any((place / each).exists() for place in below):
                missing.append(f"{name}: {each}")
    assert missing == []
