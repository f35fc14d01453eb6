"""Write the manual pages into a directory: `packaging/man_pages.py DIRECTORY`.

They are made of the commands' own parsers and of the table of options, as `--help` and `vac config options` are.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import vac
from vac.cli import check_vacd
from vac.cli.main import COMMANDS, command_parser
from vac.config.reference import Entry, entries
from vac.config.sections import MACHINETYPE
from vac.daemon.command import make_parser
from vac.roles import ROLES

FILES = {
    "/etc/vac.d/*.conf, /etc/vac.conf, /run/vac.conf": "the configuration, read in this order",
    "/var/lib/vac": "machines, accounting records, images and all else that Vac writes",
}
SEE_ALSO = ("vac(1)", "vacd(8)", "check-vacd(8)", "vac.conf(5)", "vacuum-pipe(5)")


def escaped(text: str) -> str:
    """Return text as roff wants it."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def item(term: str, *texts: str) -> Iterator[str]:
    """Yield a term, in bold, and what it means."""
    yield ".TP"
    yield f".B {escaped(term)}"
    yield from (escaped(text) for text in texts)


def sentence(text: str) -> str:
    """Return the text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def page(name: str, section: int, about: str, body: Iterator[str]) -> str:
    """Return a whole page."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    others = [each for each in SEE_ALSO if each != f"{name}({section})"]
    lines = [
        f'.TH {name.upper()} {section} {date} "Vac {vac.__version__}" "Vac"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(about)}",
        *body,
        ".SH FILES",
        *(line for path, text in FILES.items() for line in item(path, sentence(text))),
        ".SH SEE ALSO",
        *(
            f".BR {each.partition('(')[0]} ({each.partition('(')[2]}{',' if each != others[-1] else ''}"
            for each in others
        ),
    ]
    return "\n".join(lines) + "\n"


def usage(parser: argparse.ArgumentParser) -> str:
    """Return the command line in one line."""
    return " ".join(parser.format_usage().partition("usage: ")[2].split())


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield all arguments and options but --help."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.dest == "help":
            continue
        value = formatter._format_args(action, action.dest.upper())
        names = [f"{name} {value}".strip() if action.nargs != 0 else name for name in action.option_strings]
        text = formatter._expand_help(action) if action.help else ""
        choices = f"One of {', '.join(map(str, action.choices))}." if action.choices else ""
        texts = [sentence(text)] if text else []
        yield from item(", ".join(names) or value, *texts, *([choices] if choices else []))


def command_pages() -> Iterator[tuple[str, str]]:
    """Yield file name and content of each command's page."""

    def commands() -> Iterator[str]:
        yield ".SH SYNOPSIS"
        yield ".B vac\n.I COMMAND\n[\\fIOPTION\\fR]...\n[\\fIARGUMENT\\fR]..."
        yield ".SH DESCRIPTION"
        yield "Ask and command this host's Vac factory and the factories of its space."
        yield escaped("Options stand before or after the command. --help explains each command.")
        yield ".SH EXIT STATUS"
        yield "0 if done, 1 if not done or the news is bad, 2 if used wrongly, unless a command says otherwise."
        yield ".SH COMMANDS"
        for name in COMMANDS:
            parser = command_parser(name)
            yield f".SS {escaped(name)}"
            yield f".B {escaped(usage(parser))}"
            for paragraph in (parser.description or "").split("\n\n"):
                lines = paragraph.split("\n")
                yield ".PP"
                yield "\n.br\n".join(escaped(line) for line in lines)
            yield from options(parser)
            yield ".PP"
            yield escaped(parser.epilog or "")

    def one(parser: argparse.ArgumentParser) -> Iterator[str]:
        yield ".SH SYNOPSIS"
        yield f".B {escaped(usage(parser))}"
        yield ".SH DESCRIPTION"
        yield escaped(parser.description or "")
        yield ".SH OPTIONS"
        yield from options(parser)

    yield "vac.1", page("vac", 1, "show and command Vac factories and their machines", commands())
    yield "vacd.8", page("vacd", 8, "machine factory daemon", one(make_parser(ROLES)))
    yield "check-vacd.8", page("check-vacd", 8, "Nagios check of vacd", one(check_vacd.make_parser()))


def option_item(entry: Entry) -> Iterator[str]:
    """Yield an option with its meaning, values and default."""
    default = "Required." if entry.required else f"Default: {entry.default or 'not set'}."
    old = f" Formerly: {', '.join(entry.old)}." if entry.old else ""
    yield from item(entry.name, sentence(entry.doc), f"Value: {entry.allowed}. {default}{old}")


def file_pages() -> Iterator[tuple[str, str]]:
    """Yield file name and content of the pages on files' formats."""

    def configuration() -> Iterator[str]:
        yield ".SH DESCRIPTION"
        yield escaped(
            "The configuration is INI: [section], option = value, values that go on in indented lines. "
            'Lines that begin with # or ; are comments; " ;" begins a comment after a value. Of an option that is set '
            "again, also in another file, the last one counts. It is read again each minute."
        )
        yield escaped("vac config check says what is wrong, vac config show what is in force.")
        section = ""
        for entry in entries():
            if entry.section != section:
                section = entry.section
                yield f'.SH "[{escaped(section)}]"'
            yield from option_item(entry)
        yield ".SH REMOVED OPTIONS"
        for name, instead in MACHINETYPE.removed.items():
            yield from item(name, sentence(instead))

    def pipe() -> Iterator[str]:
        yield ".SH DESCRIPTION"
        yield escaped(
            "A Vacuum Pipe is a JSON document at an http(s) URL by which an experiment defines machinetypes for all "
            "sites that have a [vacuum_pipe PREFIX] section with that URL. vac pipe check URL|FILE says what is wrong."
        )
        yield ".PP\n.nf"
        yield escaped(
            '{"cache_seconds": 3600,\n "machinetypes": [{"suffix": "prod", "target_share": 1.0, ...}]}'
        )
        yield ".fi"
        yield ".SH MEMBERS"
        yield from item("cache_seconds", "The document is fetched again after so long.")
        yield from item(
            "machinetypes", "A list of machinetypes. PREFIX and suffix make a machinetype's name."
        )
        yield ".SH MEMBERS OF A MACHINETYPE"
        yield from item("suffix", "The machinetype is called PREFIX-suffix. Required.")
        for entry in entries():
            if entry.pipe and entry.section == "machinetype NAME":
                yield from option_item(entry)

    yield "vac.conf.5", page("vac.conf", 5, "configuration of a Vac factory", configuration())
    yield "vacuum-pipe.5", page("vacuum-pipe", 5, "machinetypes that an experiment publishes", pipe())


def main() -> None:
    """Write all pages."""
    os.environ["COLUMNS"] = "10000"
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (*command_pages(), *file_pages()):
        wrapped = [
            line
            if len(line) < 80 or line.startswith(".")
            else textwrap.fill(line, 79, break_on_hyphens=False)
            for line in content.split("\n")
        ]
        (directory / name).write_text("\n".join(wrapped), encoding="utf-8")


if __name__ == "__main__":
    main()
