"""Makes the documentation's web pages in build/site: `make site`. Whatever mkdocs warns of is an error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from vac.cli.check_vacd import make_parser as check_parser
from vac.cli.main import COMMANDS, command_parser
from vac.config.reference import reference as options
from vac.daemon.command import make_parser as daemon_parser
from vac.roles import ROLES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"


def gather() -> None:
    """Copy the pages, so that links between them stay right, and write those of options and commands."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    shutil.copytree(ROOT / "examples", SOURCE / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "puppet/vac/README.md", "ansible/vac/README.md"):
        (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, SOURCE / name)
    for page in SOURCE.rglob("*.md"):  # Markdown by the book: items of numbered lists are indented by four
        page.write_text(re.sub(r"(?m)^ {3}(?=\S)", "    ", page.read_text()))
    (SOURCE / "site.css").write_text("table { display: block; overflow-x: auto }\n")
    reference = SOURCE / "reference"
    reference.mkdir()
    (reference / "options.md").write_text(f"# Options\n\n```text\n{options()}\n```\n")
    parsers = [command_parser(name) for name in COMMANDS] + [daemon_parser(ROLES), check_parser()]
    helps = [f"## {one.prog}\n\n```text\n{one.format_help()}```\n" for one in parsers]
    (reference / "commands.md").write_text("\n".join(["# Commands\n", *helps]))


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    gather()
    sys.exit(subprocess.call([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], cwd=ROOT))
